// CPU executor of the second sweep. Compiled once per instruction set, with CPU_CAPABILITY set by
// the build.

#include "../core/fdiv.h"

#include "../vocab_fdiv.h"
#include "gradient_row.h"

namespace bgkd {
// Internal linkage: the builds of this file share every name but those at its end.
namespace {

// Registers that are summed before they go into the sum of the row: its error grows with the
// length.
constexpr int kBlockVectors = 16;

FdivRow row_of(const float* global, uint32_t features, int64_t num_tokens, int64_t token,
               const FdivParams& params) {
  TokenStats s{};
  load_stats(s, global, num_tokens, token, features);
  return fdiv_row(s, params);
}

template <class T>
const T* row_pointer(const void* logits, int64_t stride, int64_t token) {
  return static_cast<const T*>(logits) + token * stride;
}

template <FDivergence kKind, class T>
void sum_row(float (&sums)[kNumFdivSums], const FdivRow& row, const T* z, const T* t,
             int64_t num_columns) {
  constexpr int64_t kStep = 2 * kLanes;
  Vec value(0.f), slope(0.f), block_value(0.f), block_slope(0.f);
  PolynomialShare none;
  const auto add = [&](const T* z_in, const T* t_in) {
    Vec z0, z1, t0, t1;
    load_two(z_in, z0, z1);
    load_two(t_in, t0, t1);
    fdiv_add<kKind>(block_value, block_slope, row, z0, t0, none);
    fdiv_add<kKind>(block_value, block_slope, row, z1, t1, none);
  };
  const auto close_block = [&] {
    value = value + block_value;
    slope = slope + block_slope;
    block_value = block_slope = Vec(0.f);
  };
  int64_t column = 0;
  for (int vectors = 2; column + kStep <= num_columns; column += kStep, vectors += 2) {
    add(z + column, t + column);
    if (vectors % kBlockVectors == 0) close_block();
  }
  if (column < num_columns) {
    T z_tail[kStep], t_tail[kStep];
    copy_tail(z + column, num_columns - column, z_tail);
    copy_tail(t + column, num_columns - column, t_tail);
    add(z_tail, t_tail);
  }
  close_block();
  const float unit = fdiv_unit<kKind>(row.params);
  sums[kFdivValue] = unit * sum_of_lanes(value);
  sums[kFdivSlope] = unit * sum_of_lanes(slope);
}

template <class T, FDivergence kKind>
void sums_of_tokens(const FdivArgs& args, int64_t begin, int64_t end) {
  const LogitsShard& logits = args.logits;
  for (int64_t i = begin; i < end; ++i) {
    float sums[kNumFdivSums] = {};
    if (!args.labels.skipped(i)) {
      sum_row<kKind>(sums, row_of(args.global, args.features, args.num_tokens, i, args.params),
                     row_pointer<T>(logits.student, logits.student_stride, i),
                     row_pointer<T>(logits.teacher, logits.teacher_stride, i), logits.num_columns);
    }
    for (int s = 0; s < kNumFdivSums; ++s) args.sums[s * args.num_tokens + i] = sums[s];
  }
}

template <class T, FDivergence kKind>
void gradient_of_tokens(const FdivGradientArgs& args, int64_t begin, int64_t end) {
  const GradientArgs& stats = args.stats;
  for_each_gradient_row<T>(
      stats, begin, end, [&](int64_t i, const RowGradient& r, GradientRow<T>& row) {
        const float upstream = stats.labels.skipped(i) ? 0.f : args.upstream[i];
        if (r.kind == GradientKind::kZero && upstream == 0.f) return false;
        const float slope_sum = args.sums[kFdivSlope * stats.num_tokens + i];
        const FdivGradient g = fdiv_gradient_row<kKind>(r, args.params, slope_sum, upstream);
        with_gradient_kind(fdiv_kind(r.kind), [&]<GradientKind kStats>(GradientKindTag<kStats>) {
          if constexpr (fdiv_kind(kStats) == kStats) {
            row.template write<true>([&](auto z, auto t) {
              PolynomialShare none;
              return fdiv_element_gradient<kKind, kStats>(g, z, t, none);
            });
          }
        });
        return true;
      });
}

}  // namespace

namespace CPU_CAPABILITY {

void compute_fdiv(const FdivArgs& args, int64_t begin, int64_t end) {
  with_dtype_and_divergence<c10::BFloat16, c10::Half>(
      args.logits.dtype, args.kind, args.params,
      [&]<class T, FDivergence kKind>(T, FdivKind<kKind>) {
        sums_of_tokens<T, kKind>(args, begin, end);
      });
}

void compute_fdiv_gradient(const FdivGradientArgs& args, int64_t begin, int64_t end) {
  with_dtype_and_divergence<c10::BFloat16, c10::Half>(
      args.stats.logits.dtype, args.kind, args.params,
      [&]<class T, FDivergence kKind>(T, FdivKind<kKind>) {
        gradient_of_tokens<T, kKind>(args, begin, end);
      });
}

}  // namespace CPU_CAPABILITY
}  // namespace bgkd
