// Divergences that need normalized probabilities inside a nonlinear function, D = S d(p_v, q_v): a
// second sweep over both shards, after the statistics of the first.
//
// With g = dD / dq at fixed p, the gradient is  d D / d z_v = q_v (g_v - S_u q_u g_u), so that one
// sweep needs two sums over the vocabulary, of d and of q g; over shards they simply add. The
// gradient of all statistics is written in the same pass: it may overwrite the logits, so there is
// no other.
//   Jensen-Shannon    d = l q ln(q/m) + (1 - l) p ln(p/m)     g = l ln(q/m)
//   skew reverse KL   d = q ln(q/m)                           g = ln(q/m) - l q/m
//   skew forward KL   d = p ln(p/m)                           g = -(1 - l) p/m
//   total variation   d = |p - q| / 2                         g = sign(q - p) / 2
//   alpha-beta        d = (q^s - p^s) / (a s) - (p^a q^b - p^s) / (a b),   s = a + b
//                                                             q g = (q^s - p^a q^b) / a
// with m = (1 - l) p + l q, for skew forward m = l p + (1 - l) q. g is given up to a constant,
// which drops out. A token absent from both distributions adds nothing.
//
// Alpha-beta (Cichocki, Cruces and Amari 2011) at a = 0, b = 0 or s = 0 is the limit: there
// (x^c - y^c) / c becomes ln(x / y).
#pragma once

#include <type_traits>

#include "exponential.h"
#include "gradient.h"
#include "statistics.h"

namespace bgkd {

enum class FDivergence { kJensenShannon, kSkewForward, kSkewReverse, kTotalVariation, kAlphaBeta };
constexpr int kNumFDivergences = 5;

template <FDivergence kKind>
using FdivKind = std::integral_constant<FDivergence, kKind>;

// body(FdivKind<...>{}) for a kind that is known at run time. For the host.
template <class Body>
inline __attribute__((always_inline)) void with_divergence(FDivergence kind, const Body& body) {
  switch (kind) {
    case FDivergence::kJensenShannon:
      return body(FdivKind<FDivergence::kJensenShannon>{});
    case FDivergence::kSkewForward:
      return body(FdivKind<FDivergence::kSkewForward>{});
    case FDivergence::kSkewReverse:
      return body(FdivKind<FDivergence::kSkewReverse>{});
    case FDivergence::kTotalVariation:
      return body(FdivKind<FDivergence::kTotalVariation>{});
    case FDivergence::kAlphaBeta:
      return body(FdivKind<FDivergence::kAlphaBeta>{});
  }
}

// Rows of the sums, in memory [2, N].
enum FdivSum : int { kFdivValue, kFdivSlope, kNumFdivSums };

// lambda and 1 - lambda must be visible beside 1 in float32. At 0 and 1 a divergence is 0, or a KL,
// for which one sweep is enough.
constexpr double kSmallestLambda = 0x1p-24;

// alpha, beta and their sum are 0, or at least this far from it: a difference of powers is divided
// by them, so that float32 keeps 1e-5 of it.
constexpr double kSmallestExponentOfPower = 0.01;
constexpr double kLargestExponentOfPower = 10;
constexpr double kZeroExponent = 1e-5;  // less is 0, up to rounding

BGKD_INLINE bool is_zero_exponent(float x) {
  return x < static_cast<float>(kZeroExponent) && x > -static_cast<float>(kZeroExponent);
}

struct FdivParams {
  float lambda;  // of a mixture
  float alpha;   // of kAlphaBeta
  float beta;
};

// The normalization of one token's distributions. log2 p = (t - max) log2e - log2_sum.
struct FdivRow {
  float student_max, student_log2_sum;
  float teacher_max, teacher_log2_sum;
  FdivParams params;
};

BGKD_INLINE FdivRow fdiv_row(const TokenStats& global, const FdivParams& params) {
  return {global[kStudentMax], global[kStudentSum] * kLog2E, global[kTeacherMax],
          global[kTeacherSum] * kLog2E, params};
}

// q, d and g at a column. d and g of a mixture are in bits: `fdiv_unit` converts once per token.
// Where q is 0, g may be anything. For alpha-beta `slope` is q g: there g grows without bounds
// where q vanishes.
template <class F>
struct FdivTerm {
  F q, value, slope;
};

BGKD_INLINE constexpr bool is_mixture(FDivergence kind) {
  return kind != FDivergence::kTotalVariation && kind != FDivergence::kAlphaBeta;
}

BGKD_INLINE constexpr float fdiv_unit(FDivergence kind) { return is_mixture(kind) ? kLn2 : 1.f; }

// Stands for log2 0, so that 0 times it is 0.
constexpr float kLog2OfNothing = -1e30f;

// The least log2 of a probability, such that no power of it exceeds 2^100: infinities of opposite
// sign would become NaN. Both distributions are bounded before any power of them is taken, so that
// what comes out is the divergence of two measures, never negative.
BGKD_INLINE float least_log2(const FdivParams& params) {
  const float sum = params.alpha + params.beta;
  const float smaller = params.alpha < params.beta ? params.alpha : params.beta;
  const float least = sum < smaller ? sum : smaller;  // the steepest power
  return least * kLog2OfNothing > 100.f ? 100.f / least : kLog2OfNothing;
}

// (x - y) / c, the limit where c is 0.
template <class F>
BGKD_INLINE F over(float c, F x, F y, F limit) {
  return is_zero_exponent(c) ? limit : (x - y) * Pack<F>::broadcast(1.f / c);
}

template <class F>
BGKD_INLINE FdivTerm<F> alpha_beta_term(const FdivParams& params, F q_log2, F p_log2,
                                        PolynomialShare& polynomial) {
  using P = Pack<F>;
  const float alpha = params.alpha, beta = params.beta, sum = alpha + beta;
  const F zero = P::broadcast(0.f);
  const float least = least_log2(params);
  const F q_finite = P::at_least(q_log2, least), p_finite = P::at_least(p_log2, least);
  const F log_ratio = P::broadcast(kLn2) * (q_finite - p_finite);
  const F of_both = P::fma(P::broadcast(alpha), p_finite, P::broadcast(beta) * q_finite);
  const F cross = exp2_flushed(of_both, polynomial.next());
  const F q_power = exp2_flushed(P::broadcast(sum) * q_finite, polynomial.next());
  const F p_power = exp2_flushed(P::broadcast(sum) * p_finite, polynomial.next());
  const F ascent = over(sum, q_power, p_power, log_ratio);
  F value, slope;
  if (!is_zero_exponent(alpha)) {
    slope = P::broadcast(1.f / alpha) * (q_power - cross);
    // p^a (q^b - p^b) / b
    const F of_teacher = over(beta, cross, p_power, weighted(cross, log_ratio));
    value = P::broadcast(1.f / alpha) * (ascent - of_teacher);
  } else if (!is_zero_exponent(beta)) {
    slope = weighted(q_power, log_ratio);
    value = P::broadcast(1.f / beta) * (slope - ascent);
  } else {
    slope = log_ratio;
    value = P::broadcast(0.5f) * log_ratio * log_ratio;
  }
  // Absent from both. The comparison is such that NaN stays.
  const F both = q_finite + p_finite, lowest = P::broadcast(1.9999f * least);
  return {exp2_flushed(q_log2, polynomial.next()), P::where_greater(lowest, both, zero, value),
          P::where_greater(lowest, both, zero, slope)};
}

// Probabilities are mixed times 2^60, so that the smaller part of a mixture does not underflow
// where the larger one does not.
constexpr float kFdivScale = 60.f;

template <FDivergence kKind, class F>
BGKD_INLINE FdivTerm<F> fdiv_term(const FdivRow& row, F z, F t, PolynomialShare& polynomial) {
  using P = Pack<F>;
  const F log2e = P::broadcast(kLog2E);
  const F q_log2 =
      P::fma(z - P::broadcast(row.student_max), log2e, P::broadcast(-row.student_log2_sum));
  const F p_log2 =
      P::fma(t - P::broadcast(row.teacher_max), log2e, P::broadcast(-row.teacher_log2_sum));
  if constexpr (kKind == FDivergence::kTotalVariation) {
    const F q = exp2_flushed(q_log2, polynomial.next());
    const F p = exp2_flushed(p_log2, polynomial.next());
    const F gap = q - p;  // 0 or NaN where neither is greater
    const F slope = P::where_greater(q, p, P::broadcast(0.5f),
                                     P::where_greater(p, q, P::broadcast(-0.5f), gap));
    return {q, slope * gap, slope};
  } else if constexpr (kKind == FDivergence::kAlphaBeta) {
    return alpha_beta_term(row.params, q_log2, p_log2, polynomial);
  } else {
    const F scale = P::broadcast(kFdivScale), unscale = P::broadcast(0x1p-60f);
    const F q_scaled = exp2_flushed(q_log2 + scale, polynomial.next());
    const F p_scaled = exp2_flushed(p_log2 + scale, polynomial.next());
    const F q = q_scaled * unscale, p = p_scaled * unscale;
    const F lambda = P::broadcast(row.params.lambda);
    const F rest = P::broadcast(1.f - row.params.lambda);
    if constexpr (kKind == FDivergence::kSkewForward) {
      const F m = P::fma(lambda, p_scaled, rest * q_scaled);
      const F value = weighted(p, p_log2 - (P::log2(m) - scale));
      return {q, value, P::broadcast(row.params.lambda - 1.f) * log2e * P::divide(p_scaled, m)};
    } else {
      const F m = P::fma(rest, p_scaled, lambda * q_scaled);
      const F m_log2 = P::log2(m) - scale;
      if constexpr (kKind == FDivergence::kJensenShannon) {
        const F slope = lambda * (q_log2 - m_log2);
        return {q, P::fma(rest, weighted(p, p_log2 - m_log2), weighted(q, slope)), slope};
      } else {
        const F log_ratio = q_log2 - m_log2;
        return {q, weighted(q, log_ratio), log_ratio - lambda * log2e * P::divide(q_scaled, m)};
      }
    }
  }
}

// Adds the terms of a column to the two sums.
template <FDivergence kKind, class F>
BGKD_INLINE void fdiv_add(F& value, F& slope, const FdivRow& row, F z, F t,
                          PolynomialShare& polynomial) {
  const FdivTerm<F> term = fdiv_term<kKind>(row, z, t, polynomial);
  value = value + term.value;
  if constexpr (kKind == FDivergence::kAlphaBeta) {
    slope = slope + term.slope;
  } else {
    slope = slope + weighted(term.q, term.slope);
  }
}

// What a row needs besides the divergence: kStudent stands for kZero and, as there is a teacher,
// for a multiple of q alone; kGeneral for kLinear.
BGKD_INLINE constexpr GradientKind fdiv_kind(GradientKind kind) {
  return kind == GradientKind::kZero     ? GradientKind::kStudent
         : kind == GradientKind::kLinear ? GradientKind::kGeneral
                                         : kind;
}

// A row's gradient: of the divergence, and of the statistics with the coefficients `stats`.
struct FdivGradient {
  FdivRow row;
  float coefficient;  // fdiv_unit times d loss / d D
  float slope_sum;    // S q g over the whole vocabulary in fdiv_term's unit
  RowGradient stats;
};

BGKD_INLINE FdivGradient fdiv_gradient_row(const RowGradient& stats, FDivergence kind,
                                           const FdivParams& params, float slope_sum,
                                           float upstream) {
  const float unit = fdiv_unit(kind);
  return {{stats.student_max, stats.student_log2_sum, stats.teacher_max, stats.teacher_log2_sum,
           params},
          unit * upstream,
          slope_sum / unit,
          stats};
}

// d loss / d z, without the terms at the label and at the argmax. kStats: fdiv_kind of the row's.
template <FDivergence kKind, GradientKind kStats, class F>
BGKD_INLINE F fdiv_element_gradient(const FdivGradient& g, F z, F t, PolynomialShare& polynomial) {
  using P = Pack<F>;
  const FdivTerm<F> term = fdiv_term<kKind>(g.row, z, t, polynomial);
  const F coefficient = P::broadcast(g.coefficient);
  if constexpr (kKind == FDivergence::kAlphaBeta) {
    const F own = term.slope - term.q * P::broadcast(g.slope_sum);
    return P::fma(coefficient, own,
                  kStats == GradientKind::kStudent
                      ? weighted(term.q, P::broadcast(g.stats.q))
                      : element_gradient<kStats>(g.stats, z, t, polynomial));
  }
  const F slope = term.slope - P::broadcast(g.slope_sum);
  if constexpr (kStats == GradientKind::kStudent) {
    return weighted(term.q, P::fma(coefficient, slope, P::broadcast(g.stats.q)));
  } else {
    return P::fma(coefficient, weighted(term.q, slope),
                  element_gradient<kStats>(g.stats, z, t, polynomial));
  }
}

}  // namespace bgkd
