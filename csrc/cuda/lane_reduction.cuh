// From the lanes of a thread block to the partial statistics of its part of a row.
#pragma once

#include "../core/online.h"
#include "../vocab_stats.h"
#include "arithmetic.cuh"
#include "reduce.cuh"
#include "row_sweep.cuh"

namespace bgkd {

// One of these per thread block, in shared memory.
struct ReductionBuffer {
  float maximum[2][kMaxWarps];  // student, teacher
  uint32_t argmax[2][kMaxWarps];
  float sum[kNumStats][kMaxWarps];
};

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

// Folds a block of columns into the lane. kMainLoop: the block is whole, and part of the
// exponentials are polynomials; else its columns are checked.
template <bool kMainLoop, class Columns, bool kChecked, uint32_t kFeatures>
__device__ __forceinline__ void fold_block(LaneStats<Lane<kChecked>, kFeatures>& lane,
                                           const Columns& z, const Columns& t, int block,
                                           const StatsParams& params) {
  const auto fold = [&](auto& lanes, PolynomialShare share) {
    update(lanes, z, t, static_cast<float>(block), params.inv_temperature, params.power_exponent,
           share);
  };
  if constexpr (kMainLoop) {
    fold(lane, PolynomialShare{statistics_share(kFeatures)});
  } else {
    using Checked = LaneStats<Lane<true>, kFeatures>;  // the same numbers
    Checked checked = __builtin_bit_cast(Checked, lane);
    fold(checked, PolynomialShare{});
    lane = __builtin_bit_cast(LaneStats<Lane<kChecked>, kFeatures>, checked);
  }
}

// The other sums have no term that could be 0 * inf.
BGKD_INLINE constexpr bool can_be_spoilt(uint32_t features) {
  return (features & (kStudentEntropy | kTeacherEntropy | kForwardKl | kReverseKl | kSoftened)) !=
         0;
}

// Whether a sum has become NaN, by 0 * inf or a logit that is NaN itself; or infinite, which
// `settle` may have to multiply by 0.
template <class F, uint32_t kFeatures>
__device__ __forceinline__ bool is_spoilt(const LaneStats<F, kFeatures>& lane) {
  float sum = 0.f;
  if constexpr (kFeatures & kStudentEntropy) sum += lane.student_h.value;
  if constexpr (kFeatures & kTeacherEntropy) sum += lane.teacher_h.value;
  if constexpr (kFeatures & kForwardKl) sum += lane.forward.value;
  if constexpr (kFeatures & kReverseKl) sum += lane.reverse.value;
  if constexpr (kFeatures & kSoftened) sum += lane.soft_forward.value + lane.soft_reverse.value;
  return !(fabsf(sum) < INFINITY);
}

// First column of this thread whose logit is `maximum`, which stands in its block `block`.
template <class T>
__device__ __forceinline__ uint32_t locate(const T* row, int num_columns, float maximum,
                                           int block) {
  uint32_t found = 0;
#pragma unroll
  for (int k = kBlockColumns<T> - 1; k >= 0; --k) {
    const int column = column_of<T>(block, k);
    if (column < num_columns && to_float(row[column]) == maximum) {
      found = static_cast<uint32_t>(column);
    }
  }
  return found;
}

// Publishes the lowest column of the warp at which the block's maximum stands.
template <class T>
__device__ __forceinline__ void publish_argmax(uint32_t (&argmax)[kMaxWarps], const T* row,
                                               int num_columns, float lane_maximum,
                                               float block_maximum, float block) {
  uint32_t column = 0xffffffffu;
  if (lane_maximum == block_maximum && block_maximum > kLowest) {
    column = locate(row, num_columns, block_maximum, static_cast<int>(block));
  }
  column = __reduce_min_sync(kAllLanes, column);
  if (is_first_of_warp()) argmax[warp_of_thread()] = column;
}

// The lowest column that a warp has published; the first of the part when no logit is finite.
__device__ __forceinline__ int64_t argmax_over_warps(const uint32_t (&argmax)[kMaxWarps]) {
  uint32_t column = argmax[0];
#pragma unroll 1
  for (int warp = 1; warp < num_warps(); ++warp) column = min(column, argmax[warp]);
  return column == 0xffffffffu ? 0 : column;
}

// neutral_stats() of merge.h, one statistic at a time.
__device__ __forceinline__ float neutral_value(int stat) {
  if (stat == kStudentMax || stat == kTeacherMax) return kLowest;
  if (stat == kStudentArgmax || stat == kTeacherArgmax) return static_cast<float>(kMaxVocabSize);
  return 0.f;
}

// Partial statistic `stat` of the part, from what the warps have published. For one thread.
template <class T>
__device__ __forceinline__ float partial_statistic(int stat, const ReductionBuffer& buffer,
                                                   const RowPart<T>& part,
                                                   const LogitsShard& logits,
                                                   const TokenLabels& labels, int64_t token) {
  const int64_t start = logits.vocab_start + part.begin;
  switch (stat) {
    case kStudentMax:
      return maximum_over_warps(buffer.maximum[0]);
    case kTeacherMax:
      return maximum_over_warps(buffer.maximum[1]);
    case kStudentArgmax:
      return static_cast<float>(start + argmax_over_warps(buffer.argmax[0]));
    case kTeacherArgmax:
      return static_cast<float>(start + argmax_over_warps(buffer.argmax[1]));
    case kStudentAtArgmax:
      return to_float(part.z[argmax_over_warps(buffer.argmax[1])]);
    case kStudentAtLabel:
    case kTeacherAtLabel: {
      const int64_t id = labels.ids[token];
      // The host cannot look at labels without waiting for the device: a wrong one shows as NaN.
      if (id < 0 || id >= logits.vocab_size) return __int_as_float(0x7fffffff);
      const int64_t column = id - start;
      if (column < 0 || column >= part.num_columns) return 0.f;
      return to_float(stat == kStudentAtLabel ? part.z[column] : part.t[column]);
    }
    default:
      return sum_over_warps(buffer.sum[stat]);
  }
}

// Leaves in `buffer` what partial_statistic reads. fold_again(lanes) folds the part once more, into
// checked lanes. For all threads of the block.
template <class T, uint32_t kFeatures, class FoldAgain>
__device__ __forceinline__ void reduce_lanes(LaneStats<Lane<false>, kFeatures>& lane,
                                             ReductionBuffer& buffer, const RowPart<T>& part,
                                             const StatsParams& params,
                                             const FoldAgain& fold_again) {
  constexpr bool kHasTeacher = (kFeatures & kTeacher) != 0;
  // ---- the maxima
  const float warp_z_max = warp_maximum(lane.student_max.value);
  const float warp_t_max = kHasTeacher ? warp_maximum(lane.teacher_max.value) : 0.f;
  if (is_first_of_warp()) {
    buffer.maximum[0][warp_of_thread()] = warp_z_max;
    buffer.maximum[1][warp_of_thread()] = warp_t_max;
  }
  // Barrier: the maxima of all warps are there. The answer is the same for all threads.
  const bool again = __syncthreads_or(is_spoilt(lane));
  const float z_max = maximum_over_warps(buffer.maximum[0]);
  const float t_max = kHasTeacher ? maximum_over_warps(buffer.maximum[1]) : 0.f;

  // ---- the sums, relative to the maxima of the block
  const auto sums = [&](auto& lanes) {
    using F = std::decay_t<decltype(lanes.student_sum)>;
    settle(lanes, F{z_max}, F{t_max}, params.inv_temperature, params.power_exponent);
    return sums_of(lanes);
  };
  TokenStats s;
  if constexpr (!can_be_spoilt(kFeatures)) {
    s = sums(lane);
  } else if (again) {  // logits of -inf: leave out terms without weight
    LaneStats<Lane<true>, kFeatures> checked;
    fold_again(checked);
    s = sums(checked);
  } else {
    s = sums(lane);
  }
#pragma unroll
  for (int stat = 0; stat < kNumStats; ++stat) {
    if (!is_sum(stat) || !has_stat(kFeatures, stat)) continue;
    const float sum = warp_sum(s[stat]);
    if (is_first_of_warp()) buffer.sum[stat][warp_of_thread()] = sum;
  }
  publish_argmax(buffer.argmax[0], part.z, part.num_columns, lane.student_max.value, z_max,
                 lane.student_max_block.value);
  if constexpr (kHasTeacher) {
    publish_argmax(buffer.argmax[1], part.t, part.num_columns, lane.teacher_max.value, t_max,
                   lane.teacher_max_block.value);
  }
  __syncthreads();  // the sums and the argmax of all warps are there
}

}  // namespace bgkd
