// Reductions over a warp, and over the warps of a block.
#pragma once

#include <cuda_runtime.h>

namespace bgkd {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int warp_of_thread() { return threadIdx.x / kWarpSize; }
__device__ __forceinline__ int num_warps() { return blockDim.x / kWarpSize; }
__device__ __forceinline__ bool is_first_of_warp() { return threadIdx.x % kWarpSize == 0; }

__device__ __forceinline__ float warp_maximum(float x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

// The values of all warps, in their order. For one thread.
__device__ __forceinline__ float maximum_over_warps(const float (&values)[kMaxWarps]) {
  float maximum = values[0];
#pragma unroll 1
  for (int warp = 1; warp < num_warps(); ++warp) maximum = fmaxf(maximum, values[warp]);
  return maximum;
}

__device__ __forceinline__ float sum_over_warps(const float (&values)[kMaxWarps]) {
  float sum = values[0];
#pragma unroll 1
  for (int warp = 1; warp < num_warps(); ++warp) sum += values[warp];
  return sum;
}

}  // namespace bgkd
