// CPU executor of scale_rows. Compiled once per instruction set.

#include <algorithm>

#include "../fused_loss.h"
#include "vector_pack.h"

namespace bgkd {
// Internal linkage: the builds of this file share every name but the one at its end.
namespace {

template <class T>
void scale_row(T* row, int64_t num_columns, float scale) {
  constexpr int64_t kStep = 2 * kLanes;
  const Vec factor(scale);
  const auto step = [&](T* columns) {
    Vec first, second;
    load_two(columns, first, second);
    store_two(columns, first * factor, second * factor);
  };
  int64_t column = 0;
  for (; column + kStep <= num_columns; column += kStep) step(row + column);
  if (column < num_columns) {
    T tail[kStep];
    copy_tail(row + column, num_columns - column, tail);
    step(tail);
    std::copy_n(tail, num_columns - column, row + column);
  }
}

template <class T>
void scale_of_dtype(const ScaleArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    T* row = static_cast<T*>(args.rows) + i * args.stride;
    const float scale = args.scale[i];
    if (scale == 1.f) continue;
    if (scale == 0.f) {  // also where the gradient is not finite
      std::fill_n(row, args.num_columns, static_cast<T>(0.f));
    } else {
      scale_row(row, args.num_columns, scale);
    }
  }
}

}  // namespace

namespace CPU_CAPABILITY {

void scale_rows(const ScaleArgs& args, int64_t begin, int64_t end) {
  with_dtype<c10::BFloat16, c10::Half>(args.dtype,
                                       [&]<class T>(T) { scale_of_dtype<T>(args, begin, end); });
}

}  // namespace CPU_CAPABILITY
}  // namespace bgkd
