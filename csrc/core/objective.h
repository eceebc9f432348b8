// The named hybrid objectives on one token's global statistics: the loss and its derivatives with
// respect to the statistics. The same formulas as bgkd_megatron/objectives, which accept any
// weighting; these are for kernels that need the gradient before the row leaves the chip.
//
//   loss = w_s soft + w_h hard - c H(q),   w_s and w_h without a gradient
//
// Both weights are affine in one number u in [0, 1], which the statistics or nothing decide.
//
// Source: arXiv 2605.26246, section "hybrid supervision".
#pragma once

#include "statistics.h"

namespace bgkd {

// kAdaptiveKl: a KL(p||q) + (1 - a) KL(q||p), a = sigmoid(mu (H(q) - H(p))).
enum class SoftTerm { kNone, kForwardKl, kReverseKl, kAdaptiveKl };
// What u is; kWsl: 1 - exp(-log q_y / log p_y).
enum class Weighting { kConstant, kConfidence, kLabelConfidence, kShannon, kTsallis, kWsl };
enum class HardLabel { kData, kTeacherArgmax };

// offset + slope u.
struct AffineWeight {
  float offset;
  float slope;
};

struct ObjectiveParams {
  SoftTerm soft;
  bool softened;              // a KL at temperature T
  float squared_temperature;  // T^2, or 1
  float adaptive_mu;
  bool adaptive_detach;  // no gradient through a
  Weighting weighting;
  // Of the uniform teacher. kShannon: log V. kTsallis: V^(1 - gamma) - 1.
  float entropy_maximum;
  AffineWeight soft_weight;
  AffineWeight hard_weight;
  HardLabel hard;
  float entropy_regularizer;  // c
};

struct TokenLoss {
  float loss, hard, soft, soft_weight, hard_weight;
};
constexpr int kNumTokenLosses = 5;

BGKD_INLINE void store_loss(const TokenLoss& token, float* losses, int64_t num_tokens, int64_t i) {
  losses[i] = token.loss;
  losses[num_tokens + i] = token.hard;
  losses[2 * num_tokens + i] = token.soft;
  losses[3 * num_tokens + i] = token.soft_weight;
  losses[4 * num_tokens + i] = token.hard_weight;
}

constexpr uint32_t soft_term_features(SoftTerm soft, bool softened) {
  switch (soft) {
    case SoftTerm::kNone:
      return 0;
    case SoftTerm::kForwardKl:
      return kTeacher | (softened ? kSoftened : kForwardKl);
    case SoftTerm::kReverseKl:
      return kTeacher | (softened ? kSoftened : kReverseKl);
    case SoftTerm::kAdaptiveKl:
      return kTeacher | kForwardKl | kReverseKl | kStudentEntropy | kTeacherEntropy;
  }
  return kAllFeatures;
}

constexpr uint32_t weighting_features(Weighting weighting) {
  switch (weighting) {
    case Weighting::kConstant:
      return 0;
    case Weighting::kConfidence:
      return kTeacher;
    case Weighting::kLabelConfidence:
    case Weighting::kWsl:
      return kTeacher | kLabel;
    case Weighting::kShannon:
      return kTeacher | kTeacherEntropy;
    case Weighting::kTsallis:
      return kTeacher | kPowerSum;
  }
  return kAllFeatures;
}

// Features that `objective` reads.
constexpr uint32_t objective_features(const ObjectiveParams& objective) {
  return soft_term_features(objective.soft, objective.softened) |
         weighting_features(objective.weighting) |
         (objective.hard == HardLabel::kData ? kLabel : kTeacher) |
         (objective.entropy_regularizer != 0.f ? uint32_t{kStudentEntropy} : 0);
}

// NaN stays NaN.
BGKD_INLINE float clamped(float x, float low, float high) {
  return x < low ? low : x > high ? high : x;
}

// The reference release keeps probabilities above 1e-8, and logarithms of the teacher's away from
// 0; the ratio of the logarithms within 10.
BGKD_INLINE float wsl_omega(float student_logprob, float teacher_logprob) {
  constexpr float kLeastLogprob = -18.420680744f, kLeastSize = 1e-8f, kLargestRatio = 10.f;
  const float ratio = clamped(student_logprob, kLeastLogprob, INFINITY) /
                      clamped(teacher_logprob, kLeastLogprob, -kLeastSize);
  return -std::expm1(-clamped(ratio, -kLargestRatio, kLargestRatio));
}

// u before it is clamped, which is for rounding. expm1 keeps the digits of a small weight.
BGKD_INLINE float unclamped_u(const ObjectiveParams& objective, const TokenStats& global) {
  switch (objective.weighting) {
    case Weighting::kConstant:
      return 1.f;
    case Weighting::kConfidence:  // 1 - max p
      return -std::expm1(-global[kTeacherSum]);
    case Weighting::kLabelConfidence:  // 1 - p_y
      return -std::expm1(global[kTeacherAtLabel]);
    case Weighting::kShannon:
      return global[kTeacherH] / objective.entropy_maximum;
    case Weighting::kTsallis:
      return (global[kPower] - 1.f) / objective.entropy_maximum;
    case Weighting::kWsl:
      return wsl_omega(global[kStudentAtLabel], global[kTeacherAtLabel]);
  }
  return 0.f;
}

BGKD_INLINE float weight_at(const AffineWeight& weight, float u) {
  return weight.offset + weight.slope * u;
}

// Calls body(Stat) with the statistic of a KL or of the hard term. Constants at every call, so
// that a kernel keeps TokenStats in registers.
template <class Body>
BGKD_INLINE void with_kl_stat(const ObjectiveParams& objective, const Body& body) {
  const bool is_forward = objective.soft == SoftTerm::kForwardKl;
  if (objective.softened) return is_forward ? body(kSoftForward) : body(kSoftReverse);
  return is_forward ? body(kForward) : body(kReverse);
}

template <class Body>
BGKD_INLINE void with_hard_stat(const ObjectiveParams& objective, const Body& body) {
  return objective.hard == HardLabel::kData ? body(kStudentAtLabel) : body(kStudentAtArgmax);
}

// The soft term; adds w_s times its derivatives to `upstream`, nothing where w_s is 0.
BGKD_INLINE float evaluate_soft(const ObjectiveParams& objective, const TokenStats& global,
                                float weight, TokenStats& upstream) {
  if (objective.soft == SoftTerm::kNone) return 0.f;
  float soft = 0.f;
  if (objective.soft != SoftTerm::kAdaptiveKl) {
    with_kl_stat(objective, [&](Stat stat) {
      soft = objective.squared_temperature * global[stat];
      upstream[stat] = objective.squared_temperature * weight;
    });
    return soft;
  }
  const float forward = global[kForward], reverse = global[kReverse];
  const float gap = global[kStudentH] - global[kTeacherH];
  const float share = 1.f / (1.f + std::exp(-objective.adaptive_mu * gap));
  if (weight != 0.f) {
    upstream[kForward] = weight * share;
    upstream[kReverse] = weight * (1.f - share);
    if (!objective.adaptive_detach) {
      upstream[kStudentH] =
          weight * (forward - reverse) * (objective.adaptive_mu * share * (1.f - share));
    }
  }
  return share * forward + (1.f - share) * reverse;
}

// Fills `upstream`: d loss / d statistic. A term without weight is left out, be it infinite.
BGKD_INLINE TokenLoss evaluate(const ObjectiveParams& objective, const TokenStats& global,
                               TokenStats& upstream) {
  upstream = TokenStats{};
  TokenLoss token{};
  const float u = clamped(unclamped_u(objective, global), 0.f, 1.f);
  token.soft_weight = weight_at(objective.soft_weight, u);
  token.hard_weight = weight_at(objective.hard_weight, u);
  token.soft = evaluate_soft(objective, global, token.soft_weight, upstream);
  with_hard_stat(objective, [&](Stat stat) {
    token.hard = -global[stat];
    upstream[stat] = -token.hard_weight;
  });
  token.loss = (token.soft_weight != 0.f ? token.soft_weight * token.soft : 0.f) +
               (token.hard_weight != 0.f ? token.hard_weight * token.hard : 0.f);
  if (objective.entropy_regularizer != 0.f) {
    token.loss -= objective.entropy_regularizer * global[kStudentH];
    upstream[kStudentH] -= objective.entropy_regularizer;
  }
  return token;
}

}  // namespace bgkd
