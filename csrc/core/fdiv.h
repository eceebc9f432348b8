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
// with m = (1 - l) p + l q, for skew forward m = l p + (1 - l) q. g is given up to a constant,
// which drops out. A token absent from both distributions adds nothing.
#pragma once

#include <type_traits>

#include "exponential.h"
#include "gradient.h"
#include "statistics.h"

namespace bgkd {

enum class FDivergence { kJensenShannon, kSkewForward, kSkewReverse, kTotalVariation };
constexpr int kNumFDivergences = 4;

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
  }
}

// Rows of the sums, in memory [2, N].
enum FdivSum : int { kFdivValue, kFdivSlope, kNumFdivSums };

// lambda and 1 - lambda must be visible beside 1 in float32. At 0 and 1 a divergence is 0, or a KL,
// for which one sweep is enough.
constexpr double kSmallestLambda = 0x1p-24;

// The normalization of one token's distributions. log2 p = (t - max) log2e - log2_sum.
struct FdivRow {
  float student_max, student_log2_sum;
  float teacher_max, teacher_log2_sum;
  float lambda;
};

BGKD_INLINE FdivRow fdiv_row(const TokenStats& global, float lambda) {
  return {global[kStudentMax], global[kStudentSum] * kLog2E, global[kTeacherMax],
          global[kTeacherSum] * kLog2E, lambda};
}

// q, d and g at a column. d and g of a divergence with logarithms are in bits: `fdiv_unit` converts
// once per token. Where q is 0, g may be anything.
template <class F>
struct FdivTerm {
  F q, value, slope;
};

BGKD_INLINE constexpr float fdiv_unit(FDivergence kind) {
  return kind == FDivergence::kTotalVariation ? 1.f : kLn2;
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
  } else {
    const F scale = P::broadcast(kFdivScale), unscale = P::broadcast(0x1p-60f);
    const F q_scaled = exp2_flushed(q_log2 + scale, polynomial.next());
    const F p_scaled = exp2_flushed(p_log2 + scale, polynomial.next());
    const F q = q_scaled * unscale, p = p_scaled * unscale;
    const F lambda = P::broadcast(row.lambda), rest = P::broadcast(1.f - row.lambda);
    if constexpr (kKind == FDivergence::kSkewForward) {
      const F m = P::fma(lambda, p_scaled, rest * q_scaled);
      const F value = weighted(p, p_log2 - (P::log2(m) - scale));
      return {q, value, P::broadcast(row.lambda - 1.f) * log2e * P::divide(p_scaled, m)};
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
  slope = slope + weighted(term.q, term.slope);
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

BGKD_INLINE FdivGradient fdiv_gradient_row(const RowGradient& stats, FDivergence kind, float lambda,
                                           float slope_sum, float upstream) {
  const float unit = fdiv_unit(kind);
  return {{stats.student_max, stats.student_log2_sum, stats.teacher_max, stats.teacher_log2_sum,
           lambda},
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
  const F slope = term.slope - P::broadcast(g.slope_sum);
  if constexpr (kStats == GradientKind::kStudent) {
    return weighted(term.q, P::fma(coefficient, slope, P::broadcast(g.stats.q)));
  } else {
    return P::fma(coefficient, weighted(term.q, slope),
                  element_gradient<kStats>(g.stats, z, t, polynomial));
  }
}

}  // namespace bgkd
