// Base-2 exponential, as softmax needs it: the processor's own, or a polynomial.
#pragma once

#include "portable.h"

namespace bgkd {

constexpr float kSmallestExponent = -127.f;  // 2^x is flushed to 0 from here on

// Makes an exponent finite: 0 * log2 0 must be 0.
template <class F>
BGKD_INLINE F clamp_exponent(F x) {
  if constexpr (!Pack<F>::kChecked) return x;
  return Pack<F>::at_least(x, kSmallestExponent);
}

// 2^x for x in [-127, 127]; 2^-127 is 0 and 2^0 exactly 1. The polynomial: minimax of degree 6 on
// [-1/2, 1/2] with constant term 1, 2e-9 in exact arithmetic; with the rounding of float32 the
// relative error is below 8e-8 (0.7 ulp).
template <class F>
BGKD_INLINE F exp2_clamped(F x) {
  using P = Pack<F>;
  if constexpr (P::kHasExp2) {
    return P::exp2(x);
  } else {
    const F n = P::round(x);
    const F f = x - n;
    F y = P::broadcast(0x1.41fbbcp-13f);
    y = P::fma(y, f, P::broadcast(0x1.5f3e54p-10f));
    y = P::fma(y, f, P::broadcast(0x1.3b2d4cp-7f));
    y = P::fma(y, f, P::broadcast(0x1.c6aee8p-5f));
    y = P::fma(y, f, P::broadcast(0x1.ebfbdcp-3f));
    y = P::fma(y, f, P::broadcast(0x1.62e430p-1f));
    y = P::fma(y, f, P::broadcast(1.f));
    return P::scale_by_power_of_two(y, n);
  }
}

// 2^x for all x up to 127; 0 from -127 down.
template <class F>
BGKD_INLINE F exp2_flushed(F x) {
  if constexpr (Pack<F>::kHasExp2) return exp2_clamped(x);
  return exp2_clamped(clamp_exponent(x));
}

}  // namespace bgkd
