// CPU executor of the gradient. Compiled once per instruction set, with CPU_CAPABILITY set by the
// build.

#include "../core/gradient.h"

#include "../vocab_stats.h"
#include "gradient_row.h"

namespace bgkd {
// Internal linkage: the builds of this file share every name but the one at its end.
namespace {

template <class T>
void gradient_of_dtype(const GradientArgs& args, int64_t begin, int64_t end) {
  for_each_gradient_row<T>(
      args, begin, end, [](int64_t, const RowGradient& r, GradientRow<T>& row) {
        with_gradient_kind(r.kind, [&]<GradientKind kKind>(GradientKindTag<kKind>) {
          if constexpr (kKind != GradientKind::kZero) {
            row.template write<kKind != GradientKind::kStudent>(
                [&](auto z, auto t) { return element_gradient<kKind>(r, z, t); });
          }
        });
        return r.kind != GradientKind::kZero;
      });
}

}  // namespace

namespace CPU_CAPABILITY {

void compute_gradient(const GradientArgs& args, int64_t begin, int64_t end) {
  with_dtype<c10::BFloat16, c10::Half>(args.logits.dtype,
                                       [&]<class T>(T) { gradient_of_dtype<T>(args, begin, end); });
}

}  // namespace CPU_CAPABILITY
}  // namespace bgkd
