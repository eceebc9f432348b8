// Writing the gradient of one row on the CPU. Only for files that are compiled once per instruction
// set: everything here has internal linkage.
#pragma once

#include <algorithm>

#include "../core/gradient.h"
#include "../vocab_stats.h"
#include "vector_pack.h"

namespace bgkd {
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

  template <class Element>
  void compute(const T* z, const T* t, const Element& element) {
    for (int i = 0; i < count_; ++i) {
      const float zv = static_cast<float>(z[column_[i]]);
      const float tv = t == nullptr ? 0.f : static_cast<float>(t[column_[i]]);
      value_[i] = extra_[i] + element(zv, tv);
    }
  }

  void write(T* dz) const {
    for (int i = 0; i < count_; ++i) dz[column_[i]] = static_cast<T>(value_[i]);
  }

 private:
  int count_ = 0;
  int64_t column_[2];
  float extra_[2];
  float value_[2];
};

// The logits of a row and the place of its gradient, which may be the student's; t is null without
// a teacher.
template <class T>
struct GradientRow {
  const T* z;
  const T* t;
  T* dz;
  int64_t num_columns;
  SpecialColumns<T> special;

  // element(z, t): the gradient at a column, or at a register of them.
  template <bool kReadsTeacher, class Element>
  void write(const Element& element) {
    constexpr int64_t kStep = 2 * kLanes;
    special.compute(z, t, element);
    const auto step = [&](const T* z_in, const T* t_in, T* out) {
      Vec z0, z1, t0, t1;
      load_two(z_in, z0, z1);
      if constexpr (kReadsTeacher) load_two(t_in, t0, t1);
      store_two(out, element(z0, t0), element(z1, t1));
    };
    int64_t column = 0;
    for (; column + kStep <= num_columns; column += kStep) {
      step(z + column, t + column, dz + column);
    }
    if (column < num_columns) {
      const int64_t count = num_columns - column;
      T z_tail[kStep], t_tail[kStep], dz_tail[kStep];
      copy_tail(z + column, count, z_tail);
      if constexpr (kReadsTeacher) copy_tail(t + column, count, t_tail);
      step(z_tail, t_tail, dz_tail);
      std::copy_n(dz_tail, count, dz + column);
    }
    special.write(dz);
  }
};

// body(token, coefficients, row) writes a row, or returns false: its gradient is 0. The padding
// gets 0. A token that is skipped has the kind kZero.
template <class T, class Body>
void for_each_gradient_row(const GradientArgs& args, int64_t begin, int64_t end, const Body& body) {
  const LogitsShard& logits = args.logits;
  const uint32_t features = args.params.features;
  for (int64_t i = begin; i < end; ++i) {
    TokenStats global{}, upstream{};
    load_stats(global, args.global, args.num_tokens, i, features);
    load_stats(upstream, args.upstream, args.num_tokens, i, features);
    const RowGradient r =
        args.labels.skipped(i) ? RowGradient{} : row_gradient(global, upstream, args.params);
    GradientRow<T> row{static_cast<const T*>(logits.student) + i * logits.student_stride,
                       logits.teacher == nullptr
                           ? nullptr
                           : static_cast<const T*>(logits.teacher) + i * logits.teacher_stride,
                       static_cast<T*>(args.grad) + i * args.grad_stride,
                       logits.num_columns,
                       {}};
    const auto add_special = [&](int64_t token_id, float extra) {
      const int64_t column = token_id - logits.vocab_start;
      if (column >= 0 && column < logits.num_columns) row.special.add(column, extra);
    };
    if (args.labels.ids != nullptr) add_special(args.labels.ids[i], r.at_label);
    if (row.t != nullptr) add_special(static_cast<int64_t>(global[kTeacherArgmax]), r.at_argmax);
    const int64_t written = body(i, r, row) ? logits.num_columns : 0;
    std::fill(row.dz + written, row.dz + args.grad_columns, static_cast<T>(0.f));
  }
}

}  // namespace
}  // namespace bgkd
