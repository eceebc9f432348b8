// What kernels may use besides the arithmetic of expressions.h, one kernel for each group.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace cg = cooperative_groups;

__device__ unsigned launches;
__constant__ float table[4] = {1.f, 2.f, 4.f, 8.f};
extern __shared__ float4 dynamic_shared[];

struct Sizes {
  int64_t rows, columns;
  float scale;
  uint8_t flags[3];
};

// One block of 64. `votes` gets 18 words for each thread.
__global__ void warp_votes(const int* x, unsigned* votes) {
  const int thread = threadIdx.x, lane = thread & 31;
  const int v = x[thread];
  unsigned* out = votes + thread * 18;
  out[0] = __ballot_sync(~0u, v > 0);
  out[1] = __any_sync(~0u, v > 90);
  out[2] = __all_sync(~0u, v > -200);
  out[3] = __reduce_add_sync(~0u, v);
  out[4] = __reduce_max_sync(~0u, v);
  out[5] = __reduce_min_sync(~0u, static_cast<unsigned>(v));
  out[6] = __reduce_xor_sync(~0u, static_cast<unsigned>(v));
  out[7] = __match_any_sync(~0u, v & 3);
  int all_equal;
  out[8] = __match_all_sync(~0u, v & 3, &all_equal) + all_equal;
  out[9] = __shfl_up_sync(~0u, v, 3);
  out[10] = __shfl_down_sync(~0u, v, 5, 16);
  out[11] = __shfl_sync(~0u, v, lane * 7, 8);
  out[12] = __shfl_xor_sync(~0u, v, 9);
  out[13] = __syncthreads_count(v > 0);
  out[14] = __syncthreads_or(v > 90);
  out[15] = __syncthreads_and(v > -200);
  // half of each warp, by a mask
  out[16] = lane < 16 ? __reduce_add_sync(0x0000ffffu, v) : __reduce_add_sync(0xffff0000u, v * 2);
  out[17] = v > 0 ? __popc(__activemask()) : 0;
}

// Rows of `columns` floats; one block of 128 for each, in the y dimension of the grid.
__global__ void addressing(const float* x, const int64_t* ids, Sizes sizes, float* out,
                           double* total) {
  float* shared = reinterpret_cast<float*>(dynamic_shared);
  const int64_t row = blockIdx.y;
  const int id = static_cast<int>(ids[row]);
  for (int i = threadIdx.x; i < sizes.columns; i += blockDim.x) {
    shared[i] = x[row * sizes.columns + i] * (i == id ? table[i & 3] : sizes.scale);
  }
  __syncthreads();
  // a pointer that the compiler cannot place in one memory
  const float* either = threadIdx.x & 1 ? shared : x + row * sizes.columns;
  float v = 0;
  for (int i = threadIdx.x; i < sizes.columns; i += blockDim.x) v += either[i];
  auto tile = cg::tiled_partition<32>(cg::this_thread_block());
  v = cg::reduce(tile, v, cg::plus<float>());
  if (tile.thread_rank() == 0) {
    atomicAdd(out + row, v);
    atomicAdd(total, static_cast<double>(v));
  }
  if (threadIdx.x == 0) atomicAdd(&launches, sizes.flags[1]);
}

__global__ void read_launches(unsigned* out) { *out = launches; }

// 64 threads; every atomic that integers have, then compare-and-swap for a float maximum.
__global__ void atomics(const int* x, int* results, float* largest) {
  const int v = x[threadIdx.x];
  atomicAdd(results + 0, v);
  atomicSub(results + 1, v);
  atomicMin(results + 2, v);
  atomicMax(results + 3, v);
  atomicAnd(results + 4, v | 8);
  atomicOr(results + 5, v & 12);
  atomicXor(results + 6, v);
  atomicInc(reinterpret_cast<unsigned*>(results + 7), 9u);
  atomicDec(reinterpret_cast<unsigned*>(results + 8), 9u);
  atomicExch(results + 9, 5);
  int* cell = reinterpret_cast<int*>(largest);
  int seen = atomicAdd(cell, 0);
  while (v * 0.5f > __int_as_float(seen)) {
    const int assumed = seen;
    seen = atomicCAS(cell, assumed, __float_as_int(v * 0.5f));
    if (seen == assumed) break;
  }
}

// 32 threads: cache hints and vectors of every width, packed bf16 arithmetic.
__global__ void vectors(const uint4* x, uint4* out) {
  const int i = threadIdx.x;
  uint4 a = __ldcs(x + i);
  uint32_t b[4], c[8];
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "l"(x + i));
#if __CUDA_ARCH__ >= 1000
  asm volatile("ld.global.v8.b32 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8];"
               : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3]), "=r"(c[4]), "=r"(c[5]), "=r"(c[6]),
                 "=r"(c[7])
               : "l"(x + (i & ~1)));
#else
  for (int k = 0; k < 8; ++k) c[k] = reinterpret_cast<const uint32_t*>(x + (i & ~1))[k];
#endif
  __nv_bfloat162 p, q, r;
  memcpy(&p, &a.x, 4);
  memcpy(&q, &b[1], 4);
  memcpy(&r, &c[2], 4);
  const __nv_bfloat162 fused = __hfma2(p, q, r), most = __hmax2(p, q), least = __hmin2(q, r);
  memcpy(&a.x, &fused, 4);
  memcpy(&a.y, &most, 4);
  memcpy(&a.z, &least, 4);
  a.w = reinterpret_cast<const uint16_t*>(x)[i * 8 + 7] | c[7] << 16;
  __stcs(out + i, a);
}
