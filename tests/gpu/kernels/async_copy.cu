// Shared memory filled by cp.async, two stages in flight. kBug 0 is right.
#include <cstdint>

enum Bug { kNone, kNoWait, kWaitForTooFew, kNoBarrier, kRefillTooEarly };

__device__ __forceinline__ void copy16(uint4* to, const uint4* from, int bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(bytes)
               : "memory");
}

// out[block] = sum over `steps` tiles of 64 x 4 words, each thread adding what its neighbour
// copied; x has 256 words for each step and block. Words from `valid` on count as 0. Blocks of 64.
template <int kBug>
__global__ void pipelined_sum(const uint4* x, unsigned* out, int steps, int valid) {
  __shared__ uint4 tile[2][64];
  const int thread = threadIdx.x;
  const uint4* from = x + blockIdx.x * steps * 64;
  const int mine = max(0, min(16, (valid - thread * 4) * 4));
  copy16(&tile[0][thread], from + thread, mine);
  asm volatile("cp.async.commit_group;" ::: "memory");
  unsigned sum = 0;
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      copy16(&tile[(step + 1) & 1][thread], from + (step + 1) * 64 + thread, mine);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (kBug == kNone || kBug == kNoBarrier || kBug == kRefillTooEarly) {
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    }
    if (kBug == kWaitForTooFew) asm volatile("cp.async.wait_group 2;" ::: "memory");
    if (kBug != kNoBarrier) __syncthreads();
    const uint4 v = tile[step & 1][thread ^ 33];
    sum += v.x + v.y + v.z + v.w;
    if (kBug != kRefillTooEarly) __syncthreads();
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  atomicAdd(out + blockIdx.x, sum);
}

template __global__ void pipelined_sum<0>(const uint4*, unsigned*, int, int);
template __global__ void pipelined_sum<1>(const uint4*, unsigned*, int, int);
template __global__ void pipelined_sum<2>(const uint4*, unsigned*, int, int);
template __global__ void pipelined_sum<3>(const uint4*, unsigned*, int, int);
template __global__ void pipelined_sum<4>(const uint4*, unsigned*, int, int);
