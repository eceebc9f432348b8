// The statistics kernel: one thread block reads one row of both shards, or one of several parts of
// it, once.
#pragma once

#include "../vocab_stats.h"
#include "reduce.cuh"
#include "row_sweep.cuh"

namespace bgkd {

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

// The column in whose warps' minimum; the first one of the part when no logit is finite.
__device__ __forceinline__ int64_t argmax_over_warps(const uint32_t (&argmax)[kMaxWarps]) {
  uint32_t column = argmax[0];
#pragma unroll 1
  for (int warp = 1; warp < num_warps(); ++warp) column = min(column, argmax[warp]);
  return column == 0xffffffffu ? 0 : column;
}

// Statistic `stat` of the part, from what the warps have published. For one thread.
template <class T>
__device__ __forceinline__ float final_value(int stat, const ReductionBuffer& buffer,
                                             const RowPart<T>& part, const StatsArgs& args,
                                             int64_t token) {
  const int64_t start = args.logits.vocab_start + part.begin;
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
      const int64_t id = args.labels.ids[token];
      // The host cannot look at labels without waiting for the device: a wrong one shows as NaN.
      if (id < 0 || id >= args.logits.vocab_size) return __int_as_float(0x7fffffff);
      const int64_t column = id - start;
      if (column < 0 || column >= part.num_columns) return 0.f;
      return to_float(stat == kStudentAtLabel ? part.z[column] : part.t[column]);
    }
    default:
      return sum_over_warps(buffer.sum[stat]);
  }
}

// Writes the statistics to `partial`, [rows, num_tokens]; each thread one of them.
template <class Value>
__device__ __forceinline__ void store_by_thread(float* partial, int64_t num_tokens, int64_t token,
                                                uint32_t features, const Value& value) {
  int64_t row = -1, rows = 0;
#pragma unroll
  for (int stat = 0; stat < kNumStats; ++stat) {
    if (!has_stat(features, stat)) continue;
    if (threadIdx.x == stat) row = rows;
    ++rows;
  }
  if (row >= 0) partial[row * num_tokens + token] = value(static_cast<int>(threadIdx.x));
}

// Grid: (num_tokens, parts). kFeatures: a superset of args.params.features. partial: [parts, rows,
// num_tokens].
template <class T, uint32_t kFeatures>
__global__ void __launch_bounds__(kCudaThreads, kCudaBlocksPerSm)
    vocab_stats_kernel(const StatsArgs args, float* partial, int64_t columns_per_part) {
  constexpr bool kHasTeacher = (kFeatures & kTeacher) != 0;
  const int64_t token = blockIdx.x;
  const RowPart<T> part = row_part<T>(args.logits, token, columns_per_part);
  partial += blockIdx.y * num_rows(args.params.features) * args.num_tokens;

  // The same for all threads of the block, so none waits at a barrier below for one that has left.
  if (part.num_columns == 0 || args.labels.skipped(token)) {
    const TokenStats neutral = neutral_stats();
    store_by_thread(partial, args.num_tokens, token, args.params.features, [&](int stat) {
      return stat == kStudentMax || stat == kTeacherMax         ? kLowest
             : stat == kStudentArgmax || stat == kTeacherArgmax ? neutral[kStudentArgmax]
                                                                : 0.f;
    });
    return;
  }

  // ---- every thread its columns
  const auto fold_into = [&](auto& lanes) {
    return [&](const auto& z, const auto& t, int block, auto) {
      update(lanes, z, t, static_cast<float>(block), args.params.inv_temperature,
             args.params.power_exponent);
    };
  };
  LaneStats<Lane<false>, kFeatures> lane;
  sweep<T, Lane<false>, kHasTeacher>(part, is_aligned(part), fold_into(lane));

  // ---- the maxima, and whether a term 0 * inf has spoilt a sum
  __shared__ ReductionBuffer buffer;
  const float warp_z_max = warp_maximum(lane.student_max.value);
  const float warp_t_max = kHasTeacher ? warp_maximum(lane.teacher_max.value) : 0.f;
  if (is_first_of_warp()) {
    buffer.maximum[0][warp_of_thread()] = warp_z_max;
    buffer.maximum[1][warp_of_thread()] = warp_t_max;
  }
  float sum_of_products = 0.f;
  if constexpr (kFeatures & kStudentEntropy) sum_of_products += lane.student_h.value;
  if constexpr (kFeatures & kTeacherEntropy) sum_of_products += lane.teacher_h.value;
  if constexpr (kFeatures & kForwardKl) sum_of_products += lane.forward.value;
  if constexpr (kFeatures & kReverseKl) sum_of_products += lane.reverse.value;
  if constexpr (kFeatures & kSoftened) {
    sum_of_products += lane.soft_forward.value + lane.soft_reverse.value;
  }
  // Barrier: the maxima of all warps are there. The answer is the same for all threads.
  const bool again = __syncthreads_or(sum_of_products != sum_of_products);
  const float z_max = maximum_over_warps(buffer.maximum[0]);
  const float t_max = kHasTeacher ? maximum_over_warps(buffer.maximum[1]) : 0.f;

  // ---- the sums, relative to the maxima of the block
  const auto sums = [&](auto& lanes) {
    using F = std::decay_t<decltype(lanes.student_sum)>;
    settle(lanes, F{z_max}, F{t_max}, args.params.inv_temperature, args.params.power_exponent);
    return sums_of(lanes);
  };
  TokenStats s;
  if (again) {  // logits of -inf: read the row once more and leave out terms without weight
    LaneStats<Lane<true>, kFeatures> checked;
    sweep_ragged<T, Lane<true>, kHasTeacher>(part, 0, num_blocks(part), fold_into(checked));
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
  store_by_thread(partial, args.num_tokens, token, args.params.features,
                  [&](int stat) { return final_value(stat, buffer, part, args, token); });
}

}  // namespace bgkd
