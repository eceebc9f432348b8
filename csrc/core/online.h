// Online update: fold a block of K logit pairs per lane into the running statistics of one token.
//
// Per block the running sums are rescaled once (Milakov and Gimelshein 2018, "Online normalizer
// calculation for softmax"), and the K terms are added up first: rescaling costs 2/K of the
// exponentials, and the error of a long sum grows with n/K instead of n.
#pragma once

#include "exponential.h"
#include "statistics.h"

namespace bgkd {

// Running partial statistics of the columns one lane has seen. kFeatures is a compile-time set:
// what is not in it costs nothing.
template <class F, uint32_t kFeatures>
struct LaneStats {
  using P = Pack<F>;

  F student_max = P::broadcast(kLowest);
  F student_max_block = P::broadcast(0.f);  // which block the maximum came from, the first on ties
  F student_sum = P::broadcast(0.f);
  F student_h = P::broadcast(0.f);
  F teacher_max = P::broadcast(kLowest);
  F teacher_max_block = P::broadcast(0.f);
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

template <int K, class F, uint32_t kFeatures>
BGKD_INLINE void update(LaneStats<F, kFeatures>& s, const F (&z)[K], const F (&t)[K], float block,
                        float inv_temperature, float power_exponent) {
  using P = Pack<F>;
  constexpr bool kHasTeacher = (kFeatures & kTeacher) != 0;
  const F zero = P::broadcast(0.f);
  const F log2e = P::broadcast(kLog2E);
  const F inv_temp = P::broadcast(inv_temperature);

  F z_max = z[0];
  F t_max = kHasTeacher ? t[0] : zero;
  for (int k = 1; k < K; ++k) {
    z_max = P::maximum(z[k], z_max);
    if constexpr (kHasTeacher) t_max = P::maximum(t[k], t_max);
  }

  // ---- new maxima; `shift` is log2 of the factor by which the sums so far shrink (-inf for the
  // first block)
  const F block_id = P::broadcast(block);
  s.student_max_block = P::where_greater(z_max, s.student_max, block_id, s.student_max_block);
  z_max = P::maximum(z_max, s.student_max);
  const F z_shift = (s.student_max - z_max) * log2e;
  const F z_scale = exp2_nonpositive(z_shift);
  s.student_max = z_max;

  F t_shift = zero, t_scale = zero;
  if constexpr (kHasTeacher) {
    s.teacher_max_block = P::where_greater(t_max, s.teacher_max, block_id, s.teacher_max_block);
    t_max = P::maximum(t_max, s.teacher_max);
    t_shift = (s.teacher_max - t_max) * log2e;
    t_scale = exp2_nonpositive(t_shift);
    s.teacher_max = t_max;
  }

  // ---- sums of this block
  F z_sum = zero, z_h = zero, t_sum = zero, t_h = zero, forward = zero, reverse = zero,
    power = zero;
  F soft_z_sum = zero, soft_t_sum = zero, soft_forward = zero, soft_reverse = zero;
  for (int k = 0; k < K; ++k) {
    const F z_log2 = (z[k] - z_max) * log2e;
    const F z_log2_finite = clamp_exponent(z_log2);
    const F q = exp2_clamped(z_log2_finite);
    z_sum = z_sum + q;
    if constexpr (kFeatures & kStudentEntropy) z_h = P::fma(q, z_log2_finite, z_h);
    if constexpr (kHasTeacher) {
      const F t_log2 = (t[k] - t_max) * log2e;
      const F t_log2_finite = clamp_exponent(t_log2);
      const F p = exp2_clamped(t_log2_finite);
      // relative to the maxima, so that an offset common to all logits of one model loses nothing
      const F difference = t_log2 - z_log2;
      t_sum = t_sum + p;
      if constexpr (kFeatures & kTeacherEntropy) t_h = P::fma(p, t_log2_finite, t_h);
      if constexpr (kFeatures & kForwardKl) forward = forward + weighted(p, difference);
      if constexpr (kFeatures & kReverseKl) reverse = reverse - weighted(q, difference);
      if constexpr (kFeatures & kPowerSum) {
        power = power + exp2_nonpositive(t_log2 * P::broadcast(power_exponent));
      }
      if constexpr (kFeatures & kSoftened) {
        const F q_soft = exp2_nonpositive(z_log2 * inv_temp);
        const F p_soft = exp2_nonpositive(t_log2 * inv_temp);
        soft_z_sum = soft_z_sum + q_soft;
        soft_t_sum = soft_t_sum + p_soft;
        soft_forward = soft_forward + weighted(p_soft, difference);
        soft_reverse = soft_reverse - weighted(q_soft, difference);
      }
    }
  }

  // ---- rescale what was there and add; the plain sums last, the others need their old values
  // sum of q log2 q relative to the new maximum: every log2 q drops by the shift
  if constexpr (kFeatures & kStudentEntropy) {
    s.student_h = P::fma(z_scale, P::fma(clamp_exponent(z_shift), s.student_sum, s.student_h), z_h);
  }
  if constexpr (kHasTeacher) {
    const F gap_shift = t_shift - z_shift;
    if constexpr (kFeatures & kTeacherEntropy) {
      s.teacher_h =
          P::fma(t_scale, P::fma(clamp_exponent(t_shift), s.teacher_sum, s.teacher_h), t_h);
    }
    if constexpr (kFeatures & kForwardKl) {
      s.forward = rescaled_cross(s.forward, s.teacher_sum, t_scale, gap_shift) + forward;
    }
    if constexpr (kFeatures & kReverseKl) {
      s.reverse = rescaled_cross(s.reverse, s.student_sum, z_scale, zero - gap_shift) + reverse;
    }
    if constexpr (kFeatures & kPowerSum) {
      const F scale = exp2_nonpositive(t_shift * P::broadcast(power_exponent));
      s.power = P::fma(scale, s.power, power);
    }
    if constexpr (kFeatures & kSoftened) {
      const F z_soft_scale = exp2_nonpositive(z_shift * inv_temp);
      const F t_soft_scale = exp2_nonpositive(t_shift * inv_temp);
      s.soft_forward = rescaled_cross(s.soft_forward, s.soft_teacher_sum, t_soft_scale, gap_shift) +
                       soft_forward;
      s.soft_reverse =
          rescaled_cross(s.soft_reverse, s.soft_student_sum, z_soft_scale, zero - gap_shift) +
          soft_reverse;
      s.soft_student_sum = P::fma(z_soft_scale, s.soft_student_sum, soft_z_sum);
      s.soft_teacher_sum = P::fma(t_soft_scale, s.soft_teacher_sum, soft_t_sum);
    }
    s.teacher_sum = P::fma(t_scale, s.teacher_sum, t_sum);
  }
  s.student_sum = P::fma(z_scale, s.student_sum, z_sum);
}

}  // namespace bgkd
