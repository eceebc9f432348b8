// The pack of a CUDA thread: one float, with the exponential of the special-function unit.
#pragma once

#include <cuda_runtime.h>

#include "../core/portable.h"

namespace bgkd {

// kChecked_ = false: a term without weight may become NaN (portable.h).
template <bool kChecked_>
struct Lane {
  float value;
};

template <bool kChecked_>
__device__ __forceinline__ Lane<kChecked_> operator+(Lane<kChecked_> a, Lane<kChecked_> b) {
  return {a.value + b.value};
}
template <bool kChecked_>
__device__ __forceinline__ Lane<kChecked_> operator-(Lane<kChecked_> a, Lane<kChecked_> b) {
  return {a.value - b.value};
}
template <bool kChecked_>
__device__ __forceinline__ Lane<kChecked_> operator*(Lane<kChecked_> a, Lane<kChecked_> b) {
  return {a.value * b.value};
}

// An integer n in [-127, 127] as the sum n + kRoundingShift, whose last bits hold n + 127.
constexpr float kRoundingShift = 0x1.8p23f + 127.f;
template <class F>
struct Rounded {
  F shifted, value;
};
template <class F>
__device__ __forceinline__ F operator-(F x, Rounded<F> n) {
  return x - n.value;
}

// 2^n; 0 for n = -127.
__device__ __forceinline__ float power_of_two(float shifted) {
  return __uint_as_float(__float_as_uint(shifted) << 23);
}

template <bool kChecked_>
struct Pack<Lane<kChecked_>> {
  using F = Lane<kChecked_>;
  using Checked = Lane<true>;
  using Narrow = F;
  static constexpr int kColumns = 1;
  static constexpr bool kHasExp2 = true;
  static constexpr bool kChecked = kChecked_;
  static constexpr bool kFusesMultiplyAdd = true;

  static __device__ __forceinline__ F broadcast(float x) { return {x}; }
  static __device__ __forceinline__ float column(F x, int) { return x.value; }
  // NaN in `x` is ignored here: it reaches every statistic through the exponential.
  static __device__ __forceinline__ F maximum(F x, F running) {
    return {fmaxf(x.value, running.value)};
  }
  // NaN stays, in both; fmaxf and fminf would drop it.
  static __device__ __forceinline__ F at_least(F x, float bound) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x.value), "f"(bound));
    return {y};
  }
  static __device__ __forceinline__ F fma(F a, F b, F c) {
    return {__fmaf_rn(a.value, b.value, c.value)};
  }
  static __device__ __forceinline__ F where_greater(F a, F b, F x, F y) {
    return {a.value > b.value ? x.value : y.value};
  }
  // ex2.approx.ftz: 2 ulp for all x (CUDA C++ Programming Guide, "Intrinsic Functions"), results
  // below 2^-126 are 0, as those of the polynomial are from 2^-127 on.
  static __device__ __forceinline__ F exp2(F x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x.value));
    return {y};
  }
  // Not contracted with the product that x may be: n must be an integer.
  static __device__ __forceinline__ Rounded<F> round(F x) {
    const float shifted = __fadd_rn(x.value, kRoundingShift);
    return {{shifted}, {__fadd_rn(shifted, -kRoundingShift)}};
  }
  // NaN stays.
  static __device__ __forceinline__ F scale_by_power_of_two(F x, Rounded<F> n) {
    return {x.value * power_of_two(n.shifted.value)};
  }
  // 2^-22 for arguments near 1, elsewhere a relative 2^-22 (PTX ISA, "lg2").
  static __device__ __forceinline__ F log2(F x) { return {__log2f(x.value)}; }
  // 2 ulp for divisors below 2^126 (CUDA C++ Programming Guide, "Intrinsic Functions").
  static __device__ __forceinline__ F divide(F a, F b) { return {__fdividef(a.value, b.value)}; }
};

}  // namespace bgkd
