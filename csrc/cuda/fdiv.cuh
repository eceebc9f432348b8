// The two kernels of the second sweep: sums of a divergence; its gradient and that of the
// statistics.
#pragma once

#include "../vocab_fdiv.h"
#include "gradient.cuh"
#include "reduce.cuh"

namespace bgkd {

__device__ __forceinline__ FdivRow load_fdiv_row(const float* global, uint32_t features,
                                                 int64_t num_tokens, int64_t token,
                                                 const FdivParams& params) {
  TokenStats s{};
  load_stats(s, global, num_tokens, token, features);
  return fdiv_row(s, params);
}

// Grid: (num_tokens, parts). sums: [parts, kNumFdivSums, num_tokens].
template <class T, FDivergence kKind>
__global__ void __launch_bounds__(kCudaThreads)
    fdiv_kernel(const FdivArgs args, float* sums, int64_t columns_per_part) {
  using F = ColumnPack<true>;
  __shared__ float warp_sums[kNumFdivSums][kMaxWarps];
  const int64_t token = blockIdx.x;
  const RowPart<T> part = row_part<T>(args.logits, token, columns_per_part);
  F value = Pack<F>::broadcast(0.f), slope = value;
  // The same for all threads; a token that is skipped has no columns, its sums are 0.
  if (!args.labels.skipped(token)) {
    const FdivRow row =
        load_fdiv_row(args.global, args.features, args.num_tokens, token, args.params);
    sweep<T, F, true>(
        part, is_aligned(part), [&](const auto& z, const auto& t, int, auto is_whole) {
          PolynomialShare polynomial{decltype(is_whole)::value ? fdiv_share(kKind) : 0};
          // short sums first: their error grows with the length
          F block_value = Pack<F>::broadcast(0.f), block_slope = block_value;
#pragma unroll
          for (int k = 0; k < std::decay_t<decltype(z)>::kSize; ++k) {
            fdiv_add<kKind>(block_value, block_slope, row, z[k], t[k], polynomial);
          }
          value = value + block_value;
          slope = slope + block_slope;
        });
  }
  const float warp_value = warp_sum(sum_of_columns<Lane<true>>(value).value);
  const float warp_slope = warp_sum(sum_of_columns<Lane<true>>(slope).value);
  if (is_first_of_warp()) {
    warp_sums[kFdivValue][warp_of_thread()] = warp_value;
    warp_sums[kFdivSlope][warp_of_thread()] = warp_slope;
  }
  __syncthreads();  // the sums of all warps are there
  if (threadIdx.x < kNumFdivSums) {
    const float sum = fdiv_unit<kKind>(args.params) * sum_over_warps(warp_sums[threadIdx.x]);
    sums[(blockIdx.y * kNumFdivSums + threadIdx.x) * args.num_tokens + token] = sum;
  }
}

// Rows of which the statistics' gradient is a multiple of q go to one launch; all others to a
// second one, so that those do not pay for its registers.
template <class T, FDivergence kKind, bool kGeneral>
__global__ void __launch_bounds__(kCudaThreads)
    fdiv_gradient_kernel(const FdivGradientArgs args, int64_t columns_per_part) {
  __shared__ SharedRow shared;
  const GradientArgs& stats = args.stats;
  const int64_t token = blockIdx.x;
  if (threadIdx.x == 0) load_row(shared, stats, token);
  __syncthreads();  // the coefficients are there, for all threads
  const RowGradient row = shared.row;
  const GradientKind kind = fdiv_kind(row.kind);
  if ((kind != GradientKind::kStudent) != kGeneral) return;

  const GradientPart<T> part = gradient_part<T>(stats.logits, stats.grad, stats.grad_stride,
                                                stats.grad_columns, token, columns_per_part);
  const float upstream = stats.labels.skipped(token) ? 0.f : args.upstream[token];
  if (row.kind == GradientKind::kZero && upstream == 0.f) return write_zeros(part, 0);
  const ExtraTerm label{column_of_token(part, shared.label, stats.logits.vocab_start),
                        row.at_label};
  const ExtraTerm argmax{column_of_token(part, shared.argmax, stats.logits.vocab_start),
                         row.at_argmax};
  const float slope_sum = args.sums[kFdivSlope * stats.num_tokens + token];
  const FdivGradient g = fdiv_gradient_row<kKind>(row, args.params, slope_sum, upstream);
  const auto write = [&]<GradientKind kStats>(GradientKindTag<kStats>) {
    write_gradient<T, true>(part, {label, argmax, shared.extra}, fdiv_gradient_share(),
                            [&](auto z, auto t, PolynomialShare& polynomial) {
                              return fdiv_element_gradient<kKind, kStats>(g, z, t, polynomial);
                            });
  };
  if constexpr (!kGeneral) {
    write(GradientKindTag<GradientKind::kStudent>{});
  } else if (kind == GradientKind::kGeneral) {
    write(GradientKindTag<GradientKind::kGeneral>{});
  } else {
    write(GradientKindTag<GradientKind::kSoftened>{});
  }
}

}  // namespace bgkd
