// Merge of partial statistics (lanes of a row, shards of the vocabulary) and their final form over
// the whole vocabulary.
#pragma once

#include "exponential.h"
#include "statistics.h"

namespace bgkd {

// What the statistics depend on besides the logits.
struct StatsParams {
  uint32_t features;
  float inv_temperature;
  float power_exponent;
};

// Of a shard without columns: changes nothing when merged.
BGKD_INLINE TokenStats neutral_stats() {
  TokenStats s{};
  s[kStudentMax] = s[kTeacherMax] = kLowest;
  s[kStudentArgmax] = s[kTeacherArgmax] = static_cast<float>(kMaxVocabSize);
  return s;
}

// Takes the maximum with its token id (and the student's logit there); the lowest id on ties.
BGKD_INLINE bool second_wins(float max_a, float id_a, float max_b, float id_b) {
  return max_b > max_a || (max_b == max_a && id_b < id_a);
}

// Exact merge: both sums are taken relative to the common maximum. The result depends on the order
// of merging only through float32 rounding; every rank merges in rank order and so gets the same
// bits.
BGKD_INLINE TokenStats merge(const TokenStats& a, const TokenStats& b, const StatsParams& params) {
  const uint32_t features = params.features;
  TokenStats s{};

  s[kStudentMax] = a[kStudentMax] > b[kStudentMax] ? a[kStudentMax] : b[kStudentMax];
  const float za_shift = (a[kStudentMax] - s[kStudentMax]) * kLog2E;
  const float zb_shift = (b[kStudentMax] - s[kStudentMax]) * kLog2E;
  const float za = exp2_flushed(za_shift);
  const float zb = exp2_flushed(zb_shift);
  s[kStudentSum] = za * a[kStudentSum] + zb * b[kStudentSum];
  s[kStudentArgmax] =
      second_wins(a[kStudentMax], a[kStudentArgmax], b[kStudentMax], b[kStudentArgmax])
          ? b[kStudentArgmax]
          : a[kStudentArgmax];
  s[kStudentH] = za * (a[kStudentH] + clamp_exponent(za_shift) * a[kStudentSum]) +
                 zb * (b[kStudentH] + clamp_exponent(zb_shift) * b[kStudentSum]);
  s[kStudentAtLabel] = a[kStudentAtLabel] + b[kStudentAtLabel];
  if (!(features & kTeacher)) return s;

  s[kTeacherMax] = a[kTeacherMax] > b[kTeacherMax] ? a[kTeacherMax] : b[kTeacherMax];
  const float ta_shift = (a[kTeacherMax] - s[kTeacherMax]) * kLog2E;
  const float tb_shift = (b[kTeacherMax] - s[kTeacherMax]) * kLog2E;
  const float ta = exp2_flushed(ta_shift);
  const float tb = exp2_flushed(tb_shift);
  s[kTeacherSum] = ta * a[kTeacherSum] + tb * b[kTeacherSum];
  const bool b_wins =
      second_wins(a[kTeacherMax], a[kTeacherArgmax], b[kTeacherMax], b[kTeacherArgmax]);
  s[kTeacherArgmax] = b_wins ? b[kTeacherArgmax] : a[kTeacherArgmax];
  s[kStudentAtArgmax] = b_wins ? b[kStudentAtArgmax] : a[kStudentAtArgmax];
  s[kTeacherH] = ta * (a[kTeacherH] + clamp_exponent(ta_shift) * a[kTeacherSum]) +
                 tb * (b[kTeacherH] + clamp_exponent(tb_shift) * b[kTeacherSum]);
  s[kTeacherAtLabel] = a[kTeacherAtLabel] + b[kTeacherAtLabel];
  const float a_gap = ta_shift - za_shift;
  const float b_gap = tb_shift - zb_shift;
  s[kForward] = rescaled_cross(a[kForward], a[kTeacherSum], ta, a_gap) +
                rescaled_cross(b[kForward], b[kTeacherSum], tb, b_gap);
  s[kReverse] = rescaled_cross(a[kReverse], a[kStudentSum], za, -a_gap) +
                rescaled_cross(b[kReverse], b[kStudentSum], zb, -b_gap);
  if (features & kPowerSum) {
    const float g = params.power_exponent;
    s[kPower] = exp2_flushed(g * ta_shift) * a[kPower] + exp2_flushed(g * tb_shift) * b[kPower];
  }
  if (features & kSoftened) {
    const float za_soft = exp2_flushed(za_shift * params.inv_temperature);
    const float zb_soft = exp2_flushed(zb_shift * params.inv_temperature);
    const float ta_soft = exp2_flushed(ta_shift * params.inv_temperature);
    const float tb_soft = exp2_flushed(tb_shift * params.inv_temperature);
    s[kSoftStudentSum] = za_soft * a[kSoftStudentSum] + zb_soft * b[kSoftStudentSum];
    s[kSoftTeacherSum] = ta_soft * a[kSoftTeacherSum] + tb_soft * b[kSoftTeacherSum];
    s[kSoftForward] = rescaled_cross(a[kSoftForward], a[kSoftTeacherSum], ta_soft, a_gap) +
                      rescaled_cross(b[kSoftForward], b[kSoftTeacherSum], tb_soft, b_gap);
    s[kSoftReverse] = rescaled_cross(a[kSoftReverse], a[kSoftStudentSum], za_soft, -a_gap) +
                      rescaled_cross(b[kSoftReverse], b[kSoftStudentSum], zb_soft, -b_gap);
  }
  return s;
}

// All parts of token `i`, in their order. partial: [num_parts, rows, num_tokens].
BGKD_INLINE TokenStats merge_parts(const float* partial, int64_t num_parts, int64_t num_tokens,
                                   int64_t i, const StatsParams& params) {
  const int64_t part_size = num_rows(params.features) * num_tokens;
  TokenStats sum = neutral_stats();
  for (int64_t part = 0; part < num_parts; ++part) {
    TokenStats next = neutral_stats();
    load_stats(next, partial + part * part_size, num_tokens, i, params.features);
    sum = merge(sum, next, params);
  }
  return sum;
}

// Partial statistics of the whole vocabulary -> global statistics (statistics.h). Everything is
// formed from differences to the maxima, so that logits with a large common offset lose nothing.
BGKD_INLINE TokenStats finalize(const TokenStats& s, const StatsParams& params) {
  const uint32_t features = params.features;
  TokenStats g{};
  const float log_zsum = std::log(s[kStudentSum]);
  g[kStudentMax] = s[kStudentMax];
  g[kStudentSum] = log_zsum;
  g[kStudentArgmax] = s[kStudentArgmax];
  g[kStudentH] = log_zsum - kLn2 * s[kStudentH] / s[kStudentSum];
  g[kStudentAtLabel] = (s[kStudentAtLabel] - s[kStudentMax]) - log_zsum;
  if (!(features & kTeacher)) return g;

  const float log_tsum = std::log(s[kTeacherSum]);
  const float log_ratio = log_tsum - log_zsum;
  g[kTeacherMax] = s[kTeacherMax];
  g[kTeacherSum] = log_tsum;
  g[kTeacherArgmax] = s[kTeacherArgmax];
  g[kStudentAtArgmax] = (s[kStudentAtArgmax] - s[kStudentMax]) - log_zsum;
  g[kTeacherH] = log_tsum - kLn2 * s[kTeacherH] / s[kTeacherSum];
  g[kTeacherAtLabel] = (s[kTeacherAtLabel] - s[kTeacherMax]) - log_tsum;
  g[kForward] = kLn2 * s[kForward] / s[kTeacherSum] - log_ratio;
  g[kReverse] = kLn2 * s[kReverse] / s[kStudentSum] + log_ratio;
  if (features & kPowerSum) g[kPower] = s[kPower] * std::exp(-params.power_exponent * log_tsum);
  if (features & kSoftened) {
    const float scale = kLn2 * params.inv_temperature;
    const float log_soft_zsum = std::log(s[kSoftStudentSum]);
    const float log_soft_tsum = std::log(s[kSoftTeacherSum]);
    const float soft_log_ratio = log_soft_tsum - log_soft_zsum;
    g[kSoftStudentSum] = log_soft_zsum;
    g[kSoftTeacherSum] = log_soft_tsum;
    g[kSoftForward] = scale * s[kSoftForward] / s[kSoftTeacherSum] - soft_log_ratio;
    g[kSoftReverse] = scale * s[kSoftReverse] / s[kSoftStudentSum] + soft_log_ratio;
  }
  return g;
}

}  // namespace bgkd
