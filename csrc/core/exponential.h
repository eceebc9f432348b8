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

// 2^x for x in [-127, 127]; 2^-127 is 0 and 2^0 exactly 1. Minimax polynomials on [-1/2, 1/2] with
// constant term 1. Beside an exponential of the processor's own, which is off by up to 2 ulp
// (2^-22), degree 5: 9.4e-8 in exact arithmetic, 1.57e-7 (1.32 ulp) with the rounding of float32,
// over all floats in that interval. Alone, degree 6: 2e-9, and 8e-8 (0.7 ulp).
template <class F>
BGKD_INLINE F exp2_polynomial(F x) {
  using P = Pack<F>;
  const auto n = P::round(x);
  const F f = x - n;
  F y;
  if constexpr (P::kHasExp2) {
    y = P::broadcast(0x1.5bda58p-10f);
    y = P::fma(y, f, P::broadcast(0x1.3ce8aep-7f));
    y = P::fma(y, f, P::broadcast(0x1.c6b6d8p-5f));
    y = P::fma(y, f, P::broadcast(0x1.ebf9c2p-3f));
    y = P::fma(y, f, P::broadcast(0x1.62e42ap-1f));
  } else {
    y = P::broadcast(0x1.41fbbcp-13f);
    y = P::fma(y, f, P::broadcast(0x1.5f3e54p-10f));
    y = P::fma(y, f, P::broadcast(0x1.3b2d4cp-7f));
    y = P::fma(y, f, P::broadcast(0x1.c6aee8p-5f));
    y = P::fma(y, f, P::broadcast(0x1.ebfbdcp-3f));
    y = P::fma(y, f, P::broadcast(0x1.62e430p-1f));
  }
  y = P::fma(y, f, P::broadcast(1.f));
  return P::scale_by_power_of_two(y, n);
}

// 2^x for what clamp_exponent returns, up to 127. polynomial: even where the processor has a 2^x.
template <class F>
BGKD_INLINE F exp2_clamped(F x, bool polynomial = false) {
  using P = Pack<F>;
  if constexpr (P::kHasExp2) {
    if (!polynomial) return P::exp2(x);
    if constexpr (!P::kChecked) x = P::at_least(x, kSmallestExponent);
  }
  return exp2_polynomial(x);
}

// 2^x for all x up to 127; 0 from -127 down.
template <class F>
BGKD_INLINE F exp2_flushed(F x, bool polynomial = false) {
  using P = Pack<F>;
  if constexpr (P::kHasExp2) {
    if (!polynomial) return P::exp2(x);
  }
  return exp2_polynomial(P::at_least(x, kSmallestExponent));
}

// Picks `share` of every kShareUnit exponentials, evenly. Loops that ask for it are unrolled, and
// the choice is then made by the compiler.
constexpr int kShareUnit = 32;
struct PolynomialShare {
  int share = 0;
  int sum = kShareUnit / 2;

  BGKD_INLINE bool next() {
    sum += share;
    const bool picked = sum >= kShareUnit;
    if (picked) sum -= kShareUnit;
    return picked;
  }
};

}  // namespace bgkd
