// One read of both rows, one write of the gradient: a cluster of thread blocks keeps a row in its
// shared memory from the statistics to the gradient.
#pragma once

#include "../core/gradient.h"
#include "../fused_loss.h"
#include "cluster.cuh"
#include "gradient_row.cuh"
#include "lane_reduction.cuh"

namespace bgkd {

// What a thread has read, for itself alone: no barrier is needed between writing and reading it.
// Thread i keeps 16-byte vector n at [n][i], so that a warp's accesses fall on all banks.
struct RowCache {
  uint4* vectors;

  __device__ __forceinline__ uint4& at(int n) const {
    return vectors[n * blockDim.x + threadIdx.x];
  }

  template <class Columns>
  __device__ __forceinline__ void keep(const Columns& columns, int first) const {
#pragma unroll
    for (int i = 0; i < kVectorsPerBlock; ++i) {
      at(first + i) = make_uint4(columns.word[4 * i], columns.word[4 * i + 1],
                                 columns.word[4 * i + 2], columns.word[4 * i + 3]);
    }
  }
  template <class Columns>
  __device__ __forceinline__ void recall(Columns& columns, int first) const {
#pragma unroll
    for (int i = 0; i < kVectorsPerBlock; ++i) {
      const uint4 v = at(first + i);
      columns.word[4 * i] = v.x, columns.word[4 * i + 1] = v.y;
      columns.word[4 * i + 2] = v.z, columns.word[4 * i + 3] = v.w;
    }
  }
};

struct FusedShared {
  ReductionBuffer buffer;
  TokenStats partial;  // of this block's part; the other blocks of the cluster read it
  RowGradient row;
  int64_t label, argmax;
  float extra[2];
};

// Statistics of an instance, one bit each: a table would be in memory.
template <uint32_t kFeatures>
constexpr uint32_t kStatBits = [] {
  uint32_t bits = 0;
  for (int stat = 0; stat < kNumStats; ++stat) bits |= uint32_t{has_stat(kFeatures, stat)} << stat;
  return bits;
}();

// For one thread: the cluster's partial statistics in the order of its blocks, merged and
// evaluated. Every block does the same and gets the same bits.
__device__ __forceinline__ void evaluate_row(FusedShared& shared, const FusedArgs& args,
                                             const StatsParams& params, int64_t token) {
  TokenStats sum = of_block(shared.partial, 0);
  for (unsigned rank = 1; rank < cluster_size(); ++rank) {
    sum = merge(sum, of_block(shared.partial, rank), params);
  }
  const TokenStats global = finalize(sum, params);
  TokenStats upstream;
  const TokenLoss loss = evaluate(args.objective, global, upstream);
  shared.row = row_gradient(global, upstream, params);
  shared.label = args.labels.ids == nullptr ? -1 : args.labels.ids[token];
  shared.argmax = static_cast<int64_t>(global[kTeacherArgmax]);
  if (cluster_rank() != 0) return;
  store_stats(global, args.global, args.num_tokens, token, params.features);
  store_loss(loss, args.losses, args.num_tokens, token);
}

template <class T>
__device__ __forceinline__ void skip_row(const FusedArgs& args, const GradientPart<T>& part,
                                         uint32_t features, int64_t token) {
  write_zeros(part, 0);
  if (blockIdx.y != 0 || threadIdx.x != 0) return;
  store_stats(TokenStats{}, args.global, args.num_tokens, token, features);
  store_loss(TokenLoss{}, args.losses, args.num_tokens, token);
}

// Grid: (num_tokens, blocks of a cluster); cluster (1, the same). Dynamic shared memory: both parts
// of the row. kFeatures: a superset of args.params.features, with a teacher.
template <class T, uint32_t kFeatures>
__global__ void __launch_bounds__(kCudaThreads, 2)
    fused_kernel(const FusedArgs args, int64_t columns_per_part) {
  extern __shared__ uint4 vectors[];
  __shared__ FusedShared shared;
  const int64_t token = blockIdx.x;
  // The instance has no other features: the compiler leaves out what is only for them.
  StatsParams params = args.params;
  params.features &= kFeatures;
  const GradientPart<T> part = gradient_part<T>(args.logits, args.grad, args.grad_stride,
                                                args.grad_columns, token, columns_per_part);
  // The same for all threads of the cluster.
  if (args.labels.skipped(token)) {
    return skip_row(args, part, params.features, token);
  }

  // ---- statistics of this part; every thread keeps what it reads
  const int blocks = num_blocks(part.row);
  const RowCache z_cache{vectors};
  const RowCache t_cache{vectors + blocks * kVectorsPerBlock * blockDim.x};
  LaneStats<Lane<false>, kFeatures> lane;
  sweep<T, ColumnPack<false>, true>(
      part.row, is_aligned(part.row), [&](const auto& z, const auto& t, int block, auto is_whole) {
        z_cache.keep(z, block * kVectorsPerBlock);
        t_cache.keep(t, block * kVectorsPerBlock);
        fold_block<decltype(is_whole)::value>(lane, z, t, block, params);
      });
  reduce_lanes(lane, shared.buffer, part.row, params, [&](auto& checked) {
    for (int block = 0; block < blocks; ++block) {
      PackedBlock<T, Lane<true>, kVectorsPerBlock> z, t;
      z_cache.recall(z, block * kVectorsPerBlock);
      t_cache.recall(t, block * kVectorsPerBlock);
      update(checked, z, t, static_cast<float>(block), params.inv_temperature,
             params.power_exponent);
    }
  });
  const int stat = threadIdx.x;
  if (stat < kNumStats) {
    // Labels, where there are none, are not read; other statistics without a feature are 0.
    const bool is_absent =
        (kStatBits<kFeatures> >> stat & 1) == 0 ||
        (args.labels.ids == nullptr && (stat == kStudentAtLabel || stat == kTeacherAtLabel));
    shared.partial[stat] =
        part.row.num_columns == 0 || is_absent
            ? neutral_value(stat)
            : partial_statistic(stat, shared.buffer, part.row, args.logits, args.labels, token);
  }

  // ---- the objective
  cluster_sync();  // all partial statistics of the cluster are there, and all rows have been read
  if (threadIdx.x == 0) evaluate_row(shared, args, params, token);
  // Barrier: the coefficients are there; and no block leaves while another one reads its
  // statistics.
  cluster_sync();

  // ---- the gradient
  const RowGradient row = shared.row;
  if (row.kind == GradientKind::kZero) return write_zeros(part, 0);
  const ExtraTerm label{column_of_token(part, shared.label, 0), row.at_label};
  const ExtraTerm argmax{column_of_token(part, shared.argmax, 0), row.at_argmax};
  const int columns_per_block = blockDim.x * kBlockColumns<T>;
  const int whole_blocks =
      is_16_byte_aligned(part.dz) ? part.row.num_columns / columns_per_block : 0;
  const auto write = [&]<GradientKind kKind>(GradientKindTag<kKind>) {
    const auto element = [&](auto z, auto t, PolynomialShare& polynomial) {
      return element_gradient<kKind>(row, z, t, polynomial);
    };
    ExtraColumns<T> extra(label, argmax, shared.extra);
    extra.template compute<true>(
        part.row, [&](auto z, auto t) { return element_gradient<kKind>(row, z, t); });
    const auto write_cached = [&](int block, auto is_whole) {
      PackedBlock<T, ColumnPack<true>, kVectorsPerBlock> z, t;
      z_cache.recall(z, block * kVectorsPerBlock);
      t_cache.recall(t, block * kVectorsPerBlock);
      write_block<decltype(is_whole)::value>(part, block, z, t, fused_gradient_share(kKind),
                                             element);
    };
#pragma unroll 1
    for (int block = 0; block < whole_blocks; ++block) {
      write_cached(block, std::bool_constant<true>{});
    }
    for (int block = whole_blocks; block < blocks; ++block) {
      write_cached(block, std::bool_constant<false>{});
    }
    extra.write(part.dz);
    write_zeros(part, part.row.num_columns);
  };
  if constexpr (kFeatures & kSoftened) {
    if (row.kind == GradientKind::kSoftened) {
      return write(GradientKindTag<GradientKind::kSoftened>{});
    }
  }
  if (row.kind == GradientKind::kGeneral) return write(GradientKindTag<GradientKind::kGeneral>{});
  write(GradientKindTag<GradientKind::kLinear>{});
}

}  // namespace bgkd
