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
//   ... s = 0         d = ln(q/p) / a + ((p/q)^a - 1) / a^2   q g = (1 - (p/q)^a) / a
//   ... b = 0         d = (q^a - p^a) / a^2 - p^a ln(q/p) / a   q g = (q^a - p^a) / a
//   ... a = 0         d = q^b ln(q/p) / b - (q^b - p^b) / b^2   q g = q^b ln(q/p)
//   ... a = b = 0     d = ln(q/p)^2 / 2                       q g = ln(q/p)
// with m = (1 - l) p + l q, for skew forward m = l p + (1 - l) q. g is given up to a constant,
// which drops out. A token absent from both distributions adds nothing.
//
// Alpha-beta: Cichocki, Cruces and Amari 2011. At 0, (x^c - y^c) / c becomes ln(x / y).
#pragma once

#include <type_traits>

#include "exponential.h"
#include "gradient.h"
#include "statistics.h"

namespace bgkd {

// Each is a loop of its own. The last ones are limits of alpha-beta, which its exponents choose.
enum class FDivergence {
  kJensenShannon,
  kSkewForward,
  kSkewReverse,
  kTotalVariation,
  kAlphaBeta,
  kOppositeExponents,  // s = 0
  kAlphaAlone,         // b = 0
  kBetaAlone,          // a = 0
  kLogRatio,           // a = b = 0
};
constexpr int kNumFDivergences = 5;  // that can be asked for

template <FDivergence kKind>
using FdivKind = std::integral_constant<FDivergence, kKind>;

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

// body(FdivKind<...>{}) for a kind that is known at run time. For the host.
template <class Body>
inline __attribute__((always_inline)) void with_divergence(FDivergence kind,
                                                           const FdivParams& params,
                                                           const Body& body) {
  using Kind = FDivergence;
  switch (kind) {
    case Kind::kJensenShannon:
      return body(FdivKind<Kind::kJensenShannon>{});
    case Kind::kSkewForward:
      return body(FdivKind<Kind::kSkewForward>{});
    case Kind::kSkewReverse:
      return body(FdivKind<Kind::kSkewReverse>{});
    case Kind::kTotalVariation:
      return body(FdivKind<Kind::kTotalVariation>{});
    default:
      break;
  }
  const bool no_alpha = is_zero_exponent(params.alpha), no_beta = is_zero_exponent(params.beta);
  if (no_alpha && no_beta) return body(FdivKind<Kind::kLogRatio>{});
  if (no_alpha) return body(FdivKind<Kind::kBetaAlone>{});
  if (no_beta) return body(FdivKind<Kind::kAlphaAlone>{});
  if (is_zero_exponent(params.alpha + params.beta))
    return body(FdivKind<Kind::kOppositeExponents>{});
  return body(FdivKind<Kind::kAlphaBeta>{});
}

// The normalization of one token's distributions. log2 p = (t - max) log2e - log2_sum.
struct FdivRow {
  float student_max, student_log2_sum;
  float teacher_max, teacher_log2_sum;
  FdivParams params;
};

BGKD_INLINE constexpr bool is_alpha_beta(FDivergence kind) {
  return kind >= FDivergence::kAlphaBeta;
}

BGKD_INLINE constexpr bool is_mixture(FDivergence kind) {
  return kind < FDivergence::kTotalVariation;
}

BGKD_INLINE FdivRow fdiv_row(const TokenStats& global, const FdivParams& params) {
  return {global[kStudentMax], global[kStudentSum] * kLog2E, global[kTeacherMax],
          global[kTeacherSum] * kLog2E, params};
}

// q, d and g at a column, d and g divided by fdiv_unit, which is applied once per token. Where q is
// 0, g may be anything. For alpha-beta `slope` is q g: there g grows without bounds where q
// vanishes.
template <class F>
struct FdivTerm {
  F q, value, slope;
};

// Logarithms are in bits; what is divided by alpha is divided at the end.
template <FDivergence kKind>
BGKD_INLINE float fdiv_unit(const FdivParams& params) {
  using Kind = FDivergence;
  if constexpr (kKind == Kind::kTotalVariation) return 1.f;
  if constexpr (is_mixture(kKind) || kKind == Kind::kBetaAlone || kKind == Kind::kLogRatio)
    return kLn2;
  return 1.f / params.alpha;
}

// Stands for log2 0, so that 0 times it is 0.
constexpr float kLog2OfNothing = -1e30f;

// The least log2 of a probability, such that no power of it exceeds 2^100: infinities of opposite
// sign would become NaN. Both distributions are bounded before any power of them is taken, so that
// what comes out is the divergence of two measures, never negative. Without a branch, on which the
// compiler would write every loop twice.
BGKD_INLINE float least_log2(const FdivParams& params) {
  const float smaller = std::fmin(params.alpha, params.beta);
  const float steepest = std::fmin(smaller, params.alpha + params.beta);
  return 100.f / std::fmin(steepest, 100.f / kLog2OfNothing);
}

template <FDivergence kKind, class F>
BGKD_INLINE FdivTerm<F> alpha_beta_term(const FdivParams& params, F q_log2, F p_log2,
                                        PolynomialShare& polynomial) {
  using P = Pack<F>;
  using Kind = FDivergence;
  const float alpha = params.alpha, beta = params.beta;
  const float least = least_log2(params);
  const F q_finite = P::at_least(q_log2, least), p_finite = P::at_least(p_log2, least);
  const auto power = [&](float exponent, F log2) {
    return exp2_flushed(P::broadcast(exponent) * log2, polynomial.next());
  };
  // 0 for a token absent from both, whose powers are equal up to their errors alone. The comparison
  // is such that NaN stays, and with `least` itself, which is in a register already.
  const auto if_present = [&](F x) {
    const F mean = P::broadcast(0.50001f) * (q_finite + p_finite);
    return P::where_greater(P::broadcast(least), mean, P::broadcast(0.f), x);
  };
  F value, slope;
  if constexpr (kKind == Kind::kAlphaBeta) {
    const float sum = alpha + beta;
    const F of_both = P::fma(P::broadcast(alpha), p_finite, P::broadcast(beta) * q_finite);
    const F cross = exp2_flushed(of_both, polynomial.next());
    const F q_power = power(sum, q_finite), p_power = power(sum, p_finite);
    slope = if_present(q_power - cross);
    value = if_present(P::fma(P::broadcast(1.f / sum), q_power - p_power,
                              P::broadcast(-1.f / beta) * (cross - p_power)));
  } else if constexpr (kKind == Kind::kOppositeExponents) {
    const F log_ratio = p_finite - q_finite;
    slope = if_present(P::broadcast(1.f) - power(alpha, log_ratio));
    value = P::fma(P::broadcast(-kLn2), log_ratio, P::broadcast(-1.f / alpha) * slope);
  } else if constexpr (kKind == Kind::kAlphaAlone) {
    const F p_power = power(alpha, p_finite);
    slope = if_present(power(alpha, q_finite) - p_power);
    value = P::fma(P::broadcast(1.f / alpha), slope,
                   p_power * (P::broadcast(kLn2) * (p_finite - q_finite)));
  } else if constexpr (kKind == Kind::kBetaAlone) {
    const F q_power = power(beta, q_finite), p_power = power(beta, p_finite);
    slope = q_power * (q_finite - p_finite);
    value = P::broadcast(1.f / beta) *
            P::fma(P::broadcast(-kLog2E / beta), if_present(q_power - p_power), slope);
  } else {
    static_assert(kKind == Kind::kLogRatio);
    slope = q_finite - p_finite;
    value = P::broadcast(0.5f * kLn2) * slope * slope;
  }
  return {exp2_flushed(q_log2, polynomial.next()), value, slope};
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
  } else if constexpr (is_alpha_beta(kKind)) {
    return alpha_beta_term<kKind>(row.params, q_log2, p_log2, polynomial);
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
  if constexpr (is_alpha_beta(kKind)) {
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

template <FDivergence kKind>
BGKD_INLINE FdivGradient fdiv_gradient_row(const RowGradient& stats, const FdivParams& params,
                                           float slope_sum, float upstream) {
  const float unit = fdiv_unit<kKind>(params);
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
  if constexpr (is_alpha_beta(kKind)) {
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
