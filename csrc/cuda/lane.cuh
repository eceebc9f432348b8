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

template <bool kChecked_>
struct Pack<Lane<kChecked_>> {
  using F = Lane<kChecked_>;
  static constexpr bool kHasExp2 = true;
  static constexpr bool kChecked = kChecked_;
  static constexpr bool kFusesMultiplyAdd = true;

  static __device__ __forceinline__ F broadcast(float x) { return {x}; }
  // NaN in `x` is ignored here: it reaches every statistic through the exponential.
  static __device__ __forceinline__ F maximum(F x, F running) {
    return {fmaxf(x.value, running.value)};
  }
  // NaN stays; fmaxf would drop it.
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
  // 2^-22 for arguments near 1, elsewhere a relative 2^-22 (PTX ISA, "lg2").
  static __device__ __forceinline__ F log2(F x) { return {__log2f(x.value)}; }
  // 2 ulp for divisors below 2^126 (CUDA C++ Programming Guide, "Intrinsic Functions").
  static __device__ __forceinline__ F divide(F a, F b) { return {__fdividef(a.value, b.value)}; }
};

}  // namespace bgkd
