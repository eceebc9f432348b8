// Gradient with respect to one student logit, from the global statistics and the upstream gradients
// of the statistics.
//
// With q = softmax(z), p = softmax(t), and g_s = d loss / d statistic s (statistics.h):
//
//   d loss / d z_v =  q_v (g_L + g_F - g_y - g_a)
//                   - q_v (log q_v + H) g_H
//                   + q_v (log q_v - log p_v - R) g_R
//                   - p_v g_F
//                   + [v = y] g_y + [v = a] g_a
//                   + the F and R terms at temperature T, divided by T
//
// L: log-sum-exp. F, R: forward and reverse KL. H: the student's entropy. y: the label. a: the
// teacher's argmax.
#pragma once

#include <type_traits>

#include "exponential.h"
#include "merge.h"
#include "statistics.h"

namespace bgkd {

// What a row needs, in rising order of cost.
enum class GradientKind { kZero, kStudent, kLinear, kGeneral, kSoftened };

template <GradientKind kKind>
using GradientKindTag = std::integral_constant<GradientKind, kKind>;

// body(GradientKindTag<...>{}) for a kind that is known at run time.
template <class Body>
BGKD_INLINE void with_gradient_kind(GradientKind kind, const Body& body) {
  switch (kind) {
    case GradientKind::kZero:
      return body(GradientKindTag<GradientKind::kZero>{});
    case GradientKind::kStudent:
      return body(GradientKindTag<GradientKind::kStudent>{});
    case GradientKind::kLinear:
      return body(GradientKindTag<GradientKind::kLinear>{});
    case GradientKind::kGeneral:
      return body(GradientKindTag<GradientKind::kGeneral>{});
    case GradientKind::kSoftened:
      return body(GradientKindTag<GradientKind::kSoftened>{});
  }
}

// Coefficients of one row. log2 p = (t - max) log2e - log2_sum.
struct RowGradient {
  GradientKind kind;
  float student_max, student_log2_sum;
  float teacher_max, teacher_log2_sum;
  float soft_student_log2_sum, soft_teacher_log2_sum;
  float inv_temperature;
  float q;        // times q_v
  float q_log;    // times q_v log2 q_v
  float q_ratio;  // times q_v log2(q_v / p_v)
  float p;        // times p_v
  float soft_q;   // the same of the softened distributions
  float soft_q_ratio;
  float soft_p;
  float at_label, at_argmax;  // added at one column each
};

BGKD_INLINE float times_or_zero(float g, float x) { return g == 0.f ? 0.f : g * x; }

// `g`: global statistics of the row, `up`: upstream gradients (entries of statistics that were not
// requested must be 0).
BGKD_INLINE RowGradient row_gradient(const TokenStats& g, const TokenStats& up,
                                     const StatsParams& params) {
  RowGradient r{};
  const bool has_teacher = (params.features & kTeacher) != 0;
  r.student_max = g[kStudentMax];
  r.student_log2_sum = g[kStudentSum] * kLog2E;
  r.at_label = up[kStudentAtLabel];
  r.q = up[kStudentSum] - up[kStudentAtLabel] - times_or_zero(up[kStudentH], g[kStudentH]);
  r.q_log = -kLn2 * up[kStudentH];
  if (has_teacher) {
    r.teacher_max = g[kTeacherMax];
    r.teacher_log2_sum = g[kTeacherSum] * kLog2E;
    r.at_argmax = up[kStudentAtArgmax];
    r.q += up[kForward] - up[kStudentAtArgmax] - times_or_zero(up[kReverse], g[kReverse]);
    r.q_ratio = kLn2 * up[kReverse];
    r.p = -up[kForward];
    if (params.features & kSoftened) {
      const float inv_temp = params.inv_temperature;
      r.inv_temperature = inv_temp;
      r.soft_student_log2_sum = g[kSoftStudentSum] * kLog2E;
      r.soft_teacher_log2_sum = g[kSoftTeacherSum] * kLog2E;
      r.soft_q = inv_temp * (up[kSoftForward] - times_or_zero(up[kSoftReverse], g[kSoftReverse]));
      r.soft_q_ratio = inv_temp * kLn2 * up[kSoftReverse];
      r.soft_p = -inv_temp * up[kSoftForward];
    }
  }
  if (r.soft_q != 0.f || r.soft_q_ratio != 0.f || r.soft_p != 0.f) {
    r.kind = GradientKind::kSoftened;
  } else if (r.q_log != 0.f || r.q_ratio != 0.f) {
    r.kind = has_teacher ? GradientKind::kGeneral : GradientKind::kStudent;
  } else if (r.p != 0.f) {
    r.kind = GradientKind::kLinear;
  } else if (r.q != 0.f || r.at_label != 0.f || r.at_argmax != 0.f) {
    r.kind = GradientKind::kStudent;
  }
  return r;
}

// log2 p of an absent token, made finite: times a coefficient or a probability of 0 it must be 0.
// No product with a coefficient overflows that loss scaling makes.
template <class F>
BGKD_INLINE F finite_log(F x) {
  return Pack<F>::at_least(x, -1e20f);
}

// d loss / d z of one pack of columns, without the terms at the label and at the argmax. `t` is not
// used by kStudent.
template <GradientKind kKind, class F>
BGKD_INLINE F element_gradient(const RowGradient& r, F z, F t, PolynomialShare& polynomial) {
  using P = Pack<F>;
  const F log2e = P::broadcast(kLog2E);
  const F z_gap = z - P::broadcast(r.student_max);
  const F q_log2_unbounded = P::fma(z_gap, log2e, P::broadcast(-r.student_log2_sum));
  if constexpr (kKind == GradientKind::kLinear) {
    const F t_gap = t - P::broadcast(r.teacher_max);
    const F p_log2 = P::fma(t_gap, log2e, P::broadcast(-r.teacher_log2_sum));
    const F p = exp2_flushed(p_log2, polynomial.next());
    return P::fma(P::broadcast(r.p), p,
                  P::broadcast(r.q) * exp2_flushed(q_log2_unbounded, polynomial.next()));
  }
  const F q_log2 = clamp_exponent(q_log2_unbounded);
  const F q = exp2_clamped(q_log2, polynomial.next());
  if constexpr (kKind == GradientKind::kStudent) {
    return q * P::fma(P::broadcast(r.q_log), q_log2, P::broadcast(r.q));
  }

  const F t_gap = t - P::broadcast(r.teacher_max);
  const F p_log2 = finite_log(P::fma(t_gap, log2e, P::broadcast(-r.teacher_log2_sum)));
  const F q_factor = P::fma(P::broadcast(-r.q_ratio), p_log2,
                            P::fma(P::broadcast(r.q_log + r.q_ratio), q_log2, P::broadcast(r.q)));
  const F gradient =
      P::fma(P::broadcast(r.p), exp2_flushed(p_log2, polynomial.next()), q * q_factor);
  if constexpr (kKind == GradientKind::kGeneral) return gradient;

  const F scale = P::broadcast(kLog2E * r.inv_temperature);
  const F soft_q_log2 =
      clamp_exponent(P::fma(z_gap, scale, P::broadcast(-r.soft_student_log2_sum)));
  const F soft_p_log2 = finite_log(P::fma(t_gap, scale, P::broadcast(-r.soft_teacher_log2_sum)));
  const F soft_q = exp2_clamped(soft_q_log2, polynomial.next());
  const F soft_p = exp2_flushed(soft_p_log2, polynomial.next());
  const F soft_q_factor =
      P::fma(P::broadcast(-r.soft_q_ratio), soft_p_log2,
             P::fma(P::broadcast(r.soft_q_ratio), soft_q_log2, P::broadcast(r.soft_q)));
  return P::fma(soft_q, soft_q_factor, P::fma(P::broadcast(r.soft_p), soft_p, gradient));
}

template <GradientKind kKind, class F>
BGKD_INLINE F element_gradient(const RowGradient& r, F z, F t) {
  PolynomialShare none;
  return element_gradient<kKind>(r, z, t, none);
}

}  // namespace bgkd
