// Small kernels, each with one mistake chosen by kBug; kBug 0 is right. What the executor must
// find.
#include <cstdint>

extern __shared__ uint4 dynamic_shared[];

__device__ __forceinline__ float warp_sum(float v) {
  for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(~0u, v, m);
  return v;
}

// Two block-wide sums through the same shared array; blocks of 256.
template <int kBug>
__global__ void block_sums(const float* x, float* out, int n) {
  __shared__ float part[32];
  float* sums = reinterpret_cast<float*>(dynamic_shared);
  const int thread = threadIdx.x, warps = blockDim.x / 32;
  for (int round = 0; round < 2; ++round) {
    float v = 0;
    for (int i = thread; i < n; i += blockDim.x) v += x[blockIdx.x * n + i] * (round + 1);
    v = warp_sum(v);
    if ((thread & 31) == 0) part[thread >> 5] = v;
    if (kBug != 1) __syncthreads();  // 1: no barrier between the write and the read
    if (thread < 32) {
      v = thread < warps ? part[thread] : 0.f;
      v = warp_sum(v);
      if (thread == 0) sums[round] = v;
    }
    if (kBug != 2) __syncthreads();  // 2: the next round overwrites what warp 0 still reads
  }
  if (thread == 0) {
    out[blockIdx.x * 2] = sums[0];
    out[blockIdx.x * 2 + 1] = sums[1];
  }
}

// Neighbours of a warp exchange values through shared memory; blocks of 256.
template <int kBug>
__global__ void warp_exchange(const float* x, float* out) {
  __shared__ float s[256];
  const int thread = threadIdx.x;
  s[thread] = x[blockIdx.x * 256 + thread];
  if (kBug == 0) __syncwarp();                                        // 1: missing
  if (kBug == 2) __syncwarp(thread & 1 ? 0xaaaaaaaau : 0x55555555u);  // 2: of other threads
  out[blockIdx.x * 256 + thread] = s[thread ^ 1];
}

enum Bug {
  kNone,
  kUnwritten,
  kPastSharedArray,
  kDivergentBarrier,
  kMisaligned,
  kOneAddress,
  kPastGlobalArray,
  kBlocksAdd,
  kStoreAgainstAtomic,
  kShuffleInBranch,
  kTwoBarriers,
  kWarpMask,
};

// Blocks of 64; out has 64 elements for each block and one more, counter one.
template <int kBug>
__global__ void mixed(const float* x, float* out, unsigned* counter, int n) {
  __shared__ float a[64];
  __shared__ float b[64];
  const int thread = threadIdx.x;
  if (kBug != kUnwritten || thread < 63) a[thread & 63] = 1.f;
  b[thread & 63] = 2.f;
  __syncthreads();
  float v = a[(thread + 1) & 63];
  if (kBug == kPastSharedArray) v += a[thread + n];
  if (kBug == kDivergentBarrier && thread < 32) __syncthreads();
  if (kBug == kTwoBarriers) {
    if (thread < 32) {
      __syncthreads();
      v += 1.f;
    } else {
      __syncthreads();
      v += 2.f;
    }
  }
  if (kBug == kMisaligned) {
    const float4 q = *reinterpret_cast<const float4*>(x + 1);
    v += q.x + q.y + q.z + q.w;
  }
  if (kBug == kShuffleInBranch && (thread & 1)) v += __shfl_xor_sync(~0u, v, 2);
  if (kBug == kWarpMask) v += __shfl_xor_sync(0x0000ffffu, v, 1);
  const int last = gridDim.x * 64;
  if (kBug == kOneAddress) {
    out[0] = v + thread;
  } else {
    out[blockIdx.x * 64 + thread] = v + b[3];
  }
  if (kBug == kPastGlobalArray) out[last + 1] = 1.f;
  if (kBug == kBlocksAdd) {
    if (thread == 0) out[last] += 1.f;
  } else if (thread == 0) {
    atomicAdd(&out[last], 1.f);
  }
  const unsigned odd = __ballot_sync(~0u, thread & 1);
  if ((thread & 31) == 0) atomicAdd(counter, (unsigned)__popc(odd));
  if (kBug == kStoreAgainstAtomic && thread == 0 && blockIdx.x == 0) counter[0] = 0;
}

// A local array indexed at run time lives in local memory.
__global__ void local_array(const int* index, float* out) {
  float values[16];
  for (int i = 0; i < 16; ++i) values[i] = i * i + threadIdx.x;
  out[threadIdx.x] = values[index[threadIdx.x] & 15];
}

// Waits for a block that may not run.
__global__ void spin(volatile int* flag) {
  while (*flag == 0) {
  }
}

template __global__ void block_sums<0>(const float*, float*, int);
template __global__ void block_sums<1>(const float*, float*, int);
template __global__ void block_sums<2>(const float*, float*, int);
template __global__ void warp_exchange<0>(const float*, float*);
template __global__ void warp_exchange<1>(const float*, float*);
template __global__ void warp_exchange<2>(const float*, float*);
#define MIXED(bug) template __global__ void mixed<bug>(const float*, float*, unsigned*, int);
MIXED(0)
MIXED(1) MIXED(2) MIXED(3) MIXED(4) MIXED(5) MIXED(6) MIXED(7) MIXED(8) MIXED(9) MIXED(10) MIXED(11)
