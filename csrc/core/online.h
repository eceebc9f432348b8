// Online update: fold a block of K logit pairs per lane into the running statistics of one token.
//
// Per block the running sums are rescaled once (Milakov and Gimelshein 2018, "Online normalizer
// calculation for softmax"), and the K terms are added up first: rescaling costs 2/K of the
// exponentials, and the error of a long sum grows with n/K instead of n.
#pragma once

#include "exponential.h"
#include "statistics.h"

namespace bgkd {

// Running statistics of the columns one lane has seen. The sums are those of partial statistics
// (statistics.h), but relative to a reference in base 2: the maximum times log2 e, rounded. Then
// z log2 e - reference is one fused operation per logit, exact up to its last rounding; `settle`
// moves the sums to the maximum itself. kFeatures is a compile-time set: what is not in it costs
// nothing.
template <class F, uint32_t kFeatures>
struct LaneStats {
  using P = Pack<F>;

  F student_max = P::broadcast(kLowest);
  F student_max_block = P::broadcast(0.f);  // which block the maximum came from, the first on ties
  F student_reference = P::broadcast(kLowest);
  F student_sum = P::broadcast(0.f);
  F student_h = P::broadcast(0.f);
  F teacher_max = P::broadcast(kLowest);
  F teacher_max_block = P::broadcast(0.f);
  F teacher_reference = P::broadcast(kLowest);
  F teacher_sum = P::broadcast(0.f);
  F teacher_h = P::broadcast(0.f);
  F forward = P::broadcast(0.f);
  F reverse = P::broadcast(0.f);
  F power = P::broadcast(0.f);
  F soft_student_sum = P::broadcast(0.f);
  F soft_teacher_sum = P::broadcast(0.f);
  F soft_forward = P::broadcast(0.f);
  F soft_reverse = P::broadcast(0.f);
};

// K columns of a lane. An executor may bring a type of its own, one that unpacks 16-bit logits when
// they are asked for, or several at once: Value is then a pack of several columns for each lane of
// F.
template <class F, int K>
struct Block {
  using Value = F;
  static constexpr int kSize = K;
  F column[K];

  BGKD_INLINE F operator[](int k) const { return column[k]; }
  BGKD_INLINE F maximum() const {
    F maximum = column[0];
    for (int k = 1; k < K; ++k) maximum = Pack<F>::maximum(column[k], maximum);
    return maximum;
  }
};

// Where multiply-add is not fused, the rounding of z log2 e would show: there the reference is the
// maximum itself, and a difference to it is taken before it is multiplied.
//
// A fused reference is finite even when no logit has been seen: the difference of two must be a
// number. (Logits above 2.3e38 in magnitude are thus out of range.)
template <class F>
BGKD_INLINE F reference_of(F maximum) {
  using P = Pack<F>;
  if constexpr (!P::kFusesMultiplyAdd) return maximum;
  return P::maximum(maximum * P::broadcast(kLog2E), P::broadcast(kLowest));
}

// z log2 e relative to `reference`.
template <class F, class W>
BGKD_INLINE W relative_to(F reference, W z) {
  using P = Pack<W>;
  const W log2e = P::broadcast(kLog2E);
  if constexpr (!P::kFusesMultiplyAdd) return (z - spread<W>(reference)) * log2e;
  return P::fma(z, log2e, spread<W>(Pack<F>::broadcast(0.f) - reference));
}

// What every exponent gains when the reference moves.
template <class F>
BGKD_INLINE F reference_shift(F before, F after) {
  using P = Pack<F>;
  if constexpr (!P::kFusesMultiplyAdd) return (before - after) * P::broadcast(kLog2E);
  return before - after;
}

// The sums after both references moved; `shift` = old reference - new one.
template <class F, uint32_t kFeatures>
BGKD_INLINE void rescale(LaneStats<F, kFeatures>& s, F z_shift, F t_shift, float inv_temperature,
                         float power_exponent) {
  using P = Pack<F>;
  const F z_scale = exp2_flushed(z_shift);
  // The plain sums come last, the others need their old values. Every log2 q drops by the shift.
  if constexpr (kFeatures & kStudentEntropy) {
    s.student_h = z_scale * P::fma(clamp_exponent(z_shift), s.student_sum, s.student_h);
  }
  if constexpr (kFeatures & kTeacher) {
    const F t_scale = exp2_flushed(t_shift);
    const F gap_shift = t_shift - z_shift;
    if constexpr (kFeatures & kTeacherEntropy) {
      s.teacher_h = t_scale * P::fma(clamp_exponent(t_shift), s.teacher_sum, s.teacher_h);
    }
    if constexpr (kFeatures & kForwardKl) {
      s.forward = rescaled_cross(s.forward, s.teacher_sum, t_scale, gap_shift);
    }
    if constexpr (kFeatures & kReverseKl) {
      s.reverse = rescaled_cross(s.reverse, s.student_sum, z_scale, P::broadcast(0.f) - gap_shift);
    }
    if constexpr (kFeatures & kPowerSum) {
      s.power = s.power * exp2_flushed(t_shift * P::broadcast(power_exponent));
    }
    if constexpr (kFeatures & kSoftened) {
      const F inv_temp = P::broadcast(inv_temperature);
      const F z_soft_scale = exp2_flushed(z_shift * inv_temp);
      const F t_soft_scale = exp2_flushed(t_shift * inv_temp);
      s.soft_forward = rescaled_cross(s.soft_forward, s.soft_teacher_sum, t_soft_scale, gap_shift);
      s.soft_reverse = rescaled_cross(s.soft_reverse, s.soft_student_sum, z_soft_scale,
                                      P::broadcast(0.f) - gap_shift);
      s.soft_student_sum = z_soft_scale * s.soft_student_sum;
      s.soft_teacher_sum = t_soft_scale * s.soft_teacher_sum;
    }
    s.teacher_sum = t_scale * s.teacher_sum;
  }
  s.student_sum = z_scale * s.student_sum;
}

// Adds K columns. `block` is the caller's number for them; `t` is read only with kTeacher.
template <class Columns, class F, uint32_t kFeatures>
BGKD_INLINE void update(LaneStats<F, kFeatures>& s, const Columns& z, const Columns& t, float block,
                        float inv_temperature, float power_exponent,
                        PolynomialShare polynomial = {}) {
  using P = Pack<F>;
  constexpr bool kHasTeacher = (kFeatures & kTeacher) != 0;

  // ---- new maxima and references
  const F block_id = P::broadcast(block);
  const F z_max = z.maximum();
  s.student_max_block = P::where_greater(z_max, s.student_max, block_id, s.student_max_block);
  s.student_max = P::maximum(z_max, s.student_max);
  const F z_reference = reference_of(s.student_max);
  const F z_shift = reference_shift(s.student_reference, z_reference);
  s.student_reference = z_reference;
  F t_reference = z_reference, t_shift = z_shift;
  if constexpr (kHasTeacher) {
    const F t_max = t.maximum();
    s.teacher_max_block = P::where_greater(t_max, s.teacher_max, block_id, s.teacher_max_block);
    s.teacher_max = P::maximum(t_max, s.teacher_max);
    t_reference = reference_of(s.teacher_max);
    t_shift = reference_shift(s.teacher_reference, t_reference);
    s.teacher_reference = t_reference;
  }
  rescale(s, z_shift, t_shift, inv_temperature, power_exponent);

  // ---- sums of this block
  using W = typename Columns::Value;
  using Wide = Pack<W>;
  const W inv_temp = Wide::broadcast(inv_temperature);
  LaneStats<W, kFeatures> sum;
  for (int k = 0; k < Columns::kSize; ++k) {
    // relative to the maxima, so that an offset common to all logits of one model loses nothing
    const W z_log2 = relative_to(z_reference, z[k]);
    const W z_log2_finite = clamp_exponent(z_log2);
    const W q = exp2_clamped(z_log2_finite, polynomial.next());
    sum.student_sum = sum.student_sum + q;
    if constexpr (kFeatures & kStudentEntropy) {
      sum.student_h = Wide::fma(q, z_log2_finite, sum.student_h);
    }
    if constexpr (kHasTeacher) {
      const W t_log2 = relative_to(t_reference, t[k]);
      const W t_log2_finite = clamp_exponent(t_log2);
      const W p = exp2_clamped(t_log2_finite, polynomial.next());
      const W difference = t_log2 - z_log2;
      sum.teacher_sum = sum.teacher_sum + p;
      if constexpr (kFeatures & kTeacherEntropy) {
        sum.teacher_h = Wide::fma(p, t_log2_finite, sum.teacher_h);
      }
      if constexpr (kFeatures & kForwardKl) {
        sum.forward = add_weighted(sum.forward, p, difference);
      }
      if constexpr (kFeatures & kReverseKl) {  // of the opposite sign, here and below
        sum.reverse = add_weighted(sum.reverse, q, difference);
      }
      if constexpr (kFeatures & kPowerSum) {
        const W power_log2 = t_log2 * Wide::broadcast(power_exponent);
        sum.power = sum.power + exp2_flushed(power_log2, polynomial.next());
      }
      if constexpr (kFeatures & kSoftened) {
        const W q_soft = exp2_flushed(z_log2 * inv_temp, polynomial.next());
        const W p_soft = exp2_flushed(t_log2 * inv_temp, polynomial.next());
        sum.soft_student_sum = sum.soft_student_sum + q_soft;
        sum.soft_teacher_sum = sum.soft_teacher_sum + p_soft;
        sum.soft_forward = add_weighted(sum.soft_forward, p_soft, difference);
        sum.soft_reverse = add_weighted(sum.soft_reverse, q_soft, difference);
      }
    }
  }

  const auto total = [](W x) { return sum_of_columns<F>(x); };
  s.student_sum = s.student_sum + total(sum.student_sum);
  s.student_h = s.student_h + total(sum.student_h);
  if constexpr (kHasTeacher) {
    s.teacher_sum = s.teacher_sum + total(sum.teacher_sum);
    s.teacher_h = s.teacher_h + total(sum.teacher_h);
    s.forward = s.forward + total(sum.forward);
    s.reverse = s.reverse - total(sum.reverse);
    s.power = s.power + total(sum.power);
    s.soft_student_sum = s.soft_student_sum + total(sum.soft_student_sum);
    s.soft_teacher_sum = s.soft_teacher_sum + total(sum.soft_teacher_sum);
    s.soft_forward = s.soft_forward + total(sum.soft_forward);
    s.soft_reverse = s.soft_reverse - total(sum.soft_reverse);
  }
}

// Moves the sums from the references to `z_max` and `t_max` themselves, maxima of these columns or
// of more: the lane then holds partial statistics as statistics.h defines them.
template <class F, uint32_t kFeatures>
BGKD_INLINE void settle(LaneStats<F, kFeatures>& s, F z_max, F t_max, float inv_temperature,
                        float power_exponent) {
  using P = Pack<F>;
  const F lowest = P::broadcast(kLowest), zero = P::broadcast(0.f);
  // Without a finite logit every sum is 0, and stays 0.
  const F z_shift =
      P::where_greater(z_max, lowest, zero - relative_to(s.student_reference, z_max), zero);
  const F t_shift =
      P::where_greater(t_max, lowest, zero - relative_to(s.teacher_reference, t_max), zero);
  rescale(s, z_shift, t_shift, inv_temperature, power_exponent);
}

}  // namespace bgkd
