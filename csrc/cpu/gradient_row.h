// Writing the gradient of one row on the CPU. Only for files that are compiled once per instruction
// set: everything here has internal linkage.
#pragma once

#include <algorithm>

#include "vector_pack.h"

namespace bgkd {
namespace {

// element(z, t): the gradient of a register of columns. dz may be z.
template <bool kReadsTeacher, class T, class Element>
void write_gradient(const T* z, const T* t, T* dz, int64_t num_columns, const Element& element) {
  constexpr int64_t kStep = 2 * kLanes;
  const auto step = [&](const T* z_in, const T* t_in, T* out) {
    Vec z0, z1, t0, t1;
    load_two(z_in, z0, z1);
    if constexpr (kReadsTeacher) load_two(t_in, t0, t1);
    store_two(out, element(z0, t0), element(z1, t1));
  };
  int64_t column = 0;
  for (; column + kStep <= num_columns; column += kStep) step(z + column, t + column, dz + column);
  if (column < num_columns) {
    const int64_t count = num_columns - column;
    T z_tail[kStep], t_tail[kStep], dz_tail[kStep];
    copy_tail(z + column, count, z_tail);
    if constexpr (kReadsTeacher) copy_tail(t + column, count, t_tail);
    step(z_tail, t_tail, dz_tail);
    std::copy_n(dz_tail, count, dz + column);
  }
}

}  // namespace
}  // namespace bgkd
