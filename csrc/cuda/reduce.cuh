// From the lanes of a thread block to the partial statistics of one token.
#pragma once

#include "../core/merge.h"
#include "../core/online.h"
#include "lane.cuh"

namespace bgkd {

constexpr int kWarpSize = 32;
constexpr int kMaxWarps = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

// One of these per thread block, in shared memory.
struct ReductionBuffer {
  float maximum[2][kMaxWarps];  // student, teacher
  uint32_t argmax[2][kMaxWarps];
  float sum[kNumStats][kMaxWarps];
};

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

// The sums of a lane by name; absent ones are 0 and cost nothing.
template <class F, uint32_t kFeatures>
__device__ __forceinline__ TokenStats sums_of(const LaneStats<F, kFeatures>& lane) {
  TokenStats s{};
  s[kStudentSum] = lane.student_sum.value;
  s[kStudentH] = lane.student_h.value;
  s[kTeacherSum] = lane.teacher_sum.value;
  s[kTeacherH] = lane.teacher_h.value;
  s[kForward] = lane.forward.value;
  s[kReverse] = lane.reverse.value;
  s[kPower] = lane.power.value;
  s[kSoftStudentSum] = lane.soft_student_sum.value;
  s[kSoftTeacherSum] = lane.soft_teacher_sum.value;
  s[kSoftForward] = lane.soft_forward.value;
  s[kSoftReverse] = lane.soft_reverse.value;
  return s;
}

BGKD_INLINE constexpr bool is_sum(int stat) {
  switch (stat) {
    case kStudentMax:
    case kStudentArgmax:
    case kStudentAtLabel:
    case kTeacherMax:
    case kTeacherArgmax:
    case kStudentAtArgmax:
    case kTeacherAtLabel:
      return false;
    default:
      return true;
  }
}

}  // namespace bgkd
