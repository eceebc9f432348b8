// The pack operations on at::vec registers, and loads and stores of 16-bit and 32-bit logits.
// Everything that depends on the instruction set is inside the namespace CPU_CAPABILITY, as in
// PyTorch itself.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "../core/portable.h"

namespace bgkd {

using Vec = at::vec::Vectorized<float>;
constexpr int kLanes = Vec::size();

template <>
struct Pack<Vec> {
  static constexpr bool kHasExp2 = false;
  static constexpr bool kChecked = true;
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  static constexpr bool kFusesMultiplyAdd = true;
#else
  static constexpr bool kFusesMultiplyAdd = false;
#endif
  static BGKD_INLINE Vec broadcast(float x) { return Vec(x); }
  static BGKD_INLINE Vec maximum(Vec x, Vec running) { return at::vec::clamp_min(running, x); }
  static BGKD_INLINE Vec at_least(Vec x, float bound) { return at::vec::clamp_min(x, Vec(bound)); }
  static BGKD_INLINE Vec fma(Vec a, Vec b, Vec c) { return at::vec::fmadd(a, b, c); }
  static BGKD_INLINE Vec where_greater(Vec a, Vec b, Vec x, Vec y) {
#if defined(CPU_CAPABILITY_AVX512)
    // at::vec turns the mask register into a vector and back.
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
#else
    return Vec::blendv(y, x, a > b);
#endif
  }
  static BGKD_INLINE Vec scale_by_power_of_two(Vec x, Vec n) {
#if defined(CPU_CAPABILITY_AVX512)
    // One instruction instead of four. It keeps 2^-127 as a denormal; flush it, as everywhere else.
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, _mm512_set1_ps(-127.f), _CMP_NEQ_UQ), x, n);
#else
    using Int = at::vec::Vectorized<int32_t>;
    const Int exponent = at::vec::convert_to_int_of_same_size(n) + Int(127);
    return x * at::vec::cast<float, int32_t>(exponent << Int(23));
#endif
  }
  static BGKD_INLINE Vec round(Vec x) { return x.round(); }
  static BGKD_INLINE Vec log2(Vec x) { return x.log2(); }
  static BGKD_INLINE Vec divide(Vec a, Vec b) { return a / b; }
};

// `Two` registers of float32 from 2 * kLanes logits.
template <class T>
BGKD_INLINE void load_two(const T* logits, Vec& first, Vec& second) {
  if constexpr (std::is_same_v<T, float>) {
    first = Vec::loadu(logits);
    second = Vec::loadu(logits + kLanes);
  } else {
    std::tie(first, second) = at::vec::convert_to_float<T>(at::vec::Vectorized<T>::loadu(logits));
  }
}

// Round to nearest even.
template <class T>
BGKD_INLINE void store_two(T* logits, Vec first, Vec second) {
  if constexpr (std::is_same_v<T, float>) {
    first.store(logits);
    second.store(logits + kLanes);
  } else {
    at::vec::convert_from_float<T>(first, second).store(logits);
  }
}

// In the order of the lanes.
BGKD_INLINE float sum_of_lanes(Vec x) {
  float lane[kLanes];
  x.store(lane);
  float sum = 0.f;
  for (int i = 0; i < kLanes; ++i) sum += lane[i];
  return sum;
}

// The last `count` columns of a row, and absent ones up to kSize.
template <class T, size_t kSize>
BGKD_INLINE void copy_tail(const T* logits, int64_t count, T (&padded)[kSize]) {
  std::copy_n(logits, count, padded);
  std::fill(padded + count, padded + kSize, static_cast<T>(kAbsent));
}

}  // namespace bgkd
