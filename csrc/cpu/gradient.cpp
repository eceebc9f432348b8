// CPU executor of the gradient. Compiled once per instruction set, with CPU_CAPABILITY set by the
// build.

#include "../core/gradient.h"

#include <algorithm>
#include <type_traits>

#include "../vocab_stats.h"
#include "gradient_row.h"

namespace bgkd {
// Internal linkage: the builds of this file share every name but the one at its end.
namespace {

// Gradients at up to two columns, with the terms that act there alone. They are computed before the
// row is overwritten, in float32, so that a 16-bit gradient is rounded once.
template <class T>
class SpecialColumns {
 public:
  void add(int64_t column, float extra) {
    if (extra == 0.f) return;
    for (int i = 0; i < count_; ++i) {
      if (column_[i] == column) {
        extra_[i] += extra;
        return;
      }
    }
    column_[count_] = column;
    extra_[count_++] = extra;
  }

  void compute(const RowGradient& r, const T* z, const T* t) {
    for (int i = 0; i < count_; ++i) {
      const float zv = static_cast<float>(z[column_[i]]);
      const float tv = t == nullptr ? 0.f : static_cast<float>(t[column_[i]]);
      value_[i] = extra_[i] + of_kind(r, zv, tv);
    }
  }

  void write(T* dz) const {
    for (int i = 0; i < count_; ++i) dz[column_[i]] = static_cast<T>(value_[i]);
  }

 private:
  static float of_kind(const RowGradient& r, float z, float t) {
    switch (r.kind) {
      case GradientKind::kZero:
        return 0.f;
      case GradientKind::kStudent:
        return element_gradient<GradientKind::kStudent>(r, z, t);
      case GradientKind::kLinear:
        return element_gradient<GradientKind::kLinear>(r, z, t);
      case GradientKind::kGeneral:
        return element_gradient<GradientKind::kGeneral>(r, z, t);
      case GradientKind::kSoftened:
        return element_gradient<GradientKind::kSoftened>(r, z, t);
    }
    return 0.f;
  }

  int count_ = 0;
  int64_t column_[2];
  float extra_[2];
  float value_[2];
};

template <class T>
void gradient_of_dtype(const GradientArgs& args, int64_t begin, int64_t end) {
  const LogitsShard& logits = args.logits;
  const int64_t num_columns = logits.num_columns;
  const uint32_t features = args.params.features;
  for (int64_t i = begin; i < end; ++i) {
    T* dz = static_cast<T*>(args.grad) + i * args.grad_stride;
    TokenStats global{}, upstream{};
    load_stats(global, args.global, args.num_tokens, i, features);
    load_stats(upstream, args.upstream, args.num_tokens, i, features);
    const RowGradient r =
        args.labels.skipped(i) ? RowGradient{} : row_gradient(global, upstream, args.params);
    if (r.kind == GradientKind::kZero || num_columns == 0) {
      std::fill_n(dz, args.grad_columns, static_cast<T>(0.f));
      continue;
    }
    const T* z = static_cast<const T*>(logits.student) + i * logits.student_stride;
    const T* t = logits.teacher == nullptr
                     ? nullptr
                     : static_cast<const T*>(logits.teacher) + i * logits.teacher_stride;

    SpecialColumns<T> special;
    const auto add_special = [&](int64_t token_id, float extra) {
      const int64_t column = token_id - logits.vocab_start;
      if (column >= 0 && column < num_columns) special.add(column, extra);
    };
    if (args.labels.ids != nullptr) add_special(args.labels.ids[i], r.at_label);
    if (t != nullptr) add_special(static_cast<int64_t>(global[kTeacherArgmax]), r.at_argmax);
    special.compute(r, z, t);

    const auto write = [&]<GradientKind kKind>(std::integral_constant<GradientKind, kKind>) {
      write_gradient<kKind != GradientKind::kStudent>(z, t, dz, num_columns, [&](Vec zv, Vec tv) {
        return element_gradient<kKind>(r, zv, tv);
      });
    };
    switch (r.kind) {
      case GradientKind::kZero:
        break;  // written above
      case GradientKind::kStudent:
        write(std::integral_constant<GradientKind, GradientKind::kStudent>{});
        break;
      case GradientKind::kLinear:
        write(std::integral_constant<GradientKind, GradientKind::kLinear>{});
        break;
      case GradientKind::kGeneral:
        write(std::integral_constant<GradientKind, GradientKind::kGeneral>{});
        break;
      case GradientKind::kSoftened:
        write(std::integral_constant<GradientKind, GradientKind::kSoftened>{});
        break;
    }
    special.write(dz);
    std::fill(dz + num_columns, dz + args.grad_columns, static_cast<T>(0.f));
  }
}

}  // namespace

namespace CPU_CAPABILITY {

void compute_gradient(const GradientArgs& args, int64_t begin, int64_t end) {
  with_dtype<c10::BFloat16, c10::Half>(args.logits.dtype,
                                       [&]<class T>(T) { gradient_of_dtype<T>(args, begin, end); });
}

}  // namespace CPU_CAPABILITY
}  // namespace bgkd
