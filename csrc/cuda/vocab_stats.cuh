// The statistics kernel: one thread block reads one row of both shards, or one of several parts of
// it, once.
#pragma once

#include "lane_reduction.cuh"

namespace bgkd {

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
__global__ void __launch_bounds__(kCudaThreads, statistics_blocks_per_sm(kFeatures))
    vocab_stats_kernel(const StatsArgs args, float* partial, int64_t columns_per_part) {
  constexpr bool kHasTeacher = (kFeatures & kTeacher) != 0;
  // The instance has no others: the compiler leaves out what is only for them.
  const uint32_t features = args.params.features & kFeatures;
  const int64_t token = blockIdx.x;
  const RowPart<T> part = row_part<T>(args.logits, token, columns_per_part);
  partial += blockIdx.y * num_rows(features) * args.num_tokens;

  // The same for all threads of the block, so none waits at a barrier below for one that has left.
  if (part.num_columns == 0 || args.labels.skipped(token)) {
    return store_by_thread(partial, args.num_tokens, token, features, neutral_value);
  }

  const auto fold_into = [&](auto& lanes) {
    return [&](const auto& z, const auto& t, int block, auto is_whole) {
      fold_block<decltype(is_whole)::value>(lanes, z, t, block, args.params);
    };
  };
  LaneStats<Lane<false>, kFeatures> lane;
  sweep<T, ColumnPack<false>, kHasTeacher>(part, is_aligned(part), fold_into(lane));

  __shared__ ReductionBuffer buffer;
  reduce_lanes(lane, buffer, part, args.params, [&](auto& checked) {  // reads the row once more
    sweep_ragged<T, Lane<true>, kHasTeacher>(part, 0, num_blocks(part), fold_into(checked));
  });
  store_by_thread(partial, args.num_tokens, token, features, [&](int stat) {
    return partial_statistic(stat, buffer, part, args.logits, args.labels, token);
  });
}

}  // namespace bgkd
