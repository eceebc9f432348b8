// The gradient kernel: one thread block reads one row of both shards, or one of several parts of
// it, once and writes d loss / d student logits, over the student's logits if wanted.
#pragma once

#include "../core/gradient.h"
#include "../vocab_stats.h"
#include "gradient_row.cuh"

namespace bgkd {

// The coefficients of a row, and the columns with an extra term. For one thread.
struct SharedRow {
  RowGradient row;
  int64_t label;  // token ids, or -1
  int64_t argmax;
  float extra[2];
};

__device__ __forceinline__ void load_row(SharedRow& shared, const GradientArgs& args,
                                         int64_t token) {
  shared.row = RowGradient{};
  shared.label = shared.argmax = -1;
  if (args.labels.skipped(token)) return;
  TokenStats global{}, upstream{};
  load_stats(global, args.global, args.num_tokens, token, args.params.features);
  load_stats(upstream, args.upstream, args.num_tokens, token, args.params.features);
  shared.row = row_gradient(global, upstream, args.params);
  if (args.labels.ids != nullptr) shared.label = args.labels.ids[token];
  if (args.logits.teacher != nullptr) shared.argmax = static_cast<int64_t>(global[kTeacherArgmax]);
}

// Grid: (num_tokens, parts).
template <class T>
__global__ void __launch_bounds__(kCudaThreads)
    vocab_gradient_kernel(const GradientArgs args, int64_t columns_per_part) {
  __shared__ SharedRow shared;
  const int64_t token = blockIdx.x;
  if (threadIdx.x == 0) load_row(shared, args, token);
  __syncthreads();  // the coefficients are there, for all threads

  const GradientPart<T> part = gradient_part<T>(args.logits, args.grad, args.grad_stride,
                                                args.grad_columns, token, columns_per_part);
  const RowGradient row = shared.row;
  const ExtraTerm label{column_of_token(part, shared.label, args.logits.vocab_start), row.at_label};
  const ExtraTerm argmax{column_of_token(part, shared.argmax, args.logits.vocab_start),
                         row.at_argmax};
  const auto write = [&]<GradientKind kKind>(GradientKindTag<kKind>) {
    write_gradient<T, kKind != GradientKind::kStudent>(
        part, {label, argmax, shared.extra}, gradient_share(kKind),
        [&](auto z, auto t, PolynomialShare& polynomial) {
          return element_gradient<kKind>(row, z, t, polynomial);
        });
  };
  switch (row.kind) {
    case GradientKind::kZero:
      return write_zeros(part, 0);
    case GradientKind::kStudent:
      return write(GradientKindTag<GradientKind::kStudent>{});
    case GradientKind::kLinear:
      return write(GradientKindTag<GradientKind::kLinear>{});
    case GradientKind::kGeneral:
      return write(GradientKindTag<GradientKind::kGeneral>{});
    case GradientKind::kSoftened:
      return write(GradientKindTag<GradientKind::kSoftened>{});
  }
}

}  // namespace bgkd
