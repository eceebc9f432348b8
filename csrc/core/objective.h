// The named hybrid objectives on one token's global statistics: the loss and its derivatives with
// respect to the statistics. The same formulas as bgkd_megatron/objectives, which accept any
// weighting; these are for kernels that need the gradient before the row leaves the chip.
//
//   loss = w soft + (1 - w) hard,   w without a gradient
//
// Source: arXiv 2605.26246, section "hybrid supervision".
#pragma once

#include "statistics.h"

namespace bgkd {

enum class SoftTerm { kNone, kForwardKl, kReverseKl };
enum class SoftWeight { kStatic, kConfidence, kShannon, kTsallis };
enum class HardLabel { kData, kTeacherArgmax };

struct ObjectiveParams {
  SoftTerm soft;
  bool softened;     // the soft term at temperature T
  float soft_scale;  // T^2, or 1
  SoftWeight weight;
  float static_weight;  // w of kStatic; a schedule sets it for each step
  // kShannon: 1 / log V. kTsallis: 1 / (V^(1 - gamma) - 1).
  float entropy_scale;
  HardLabel hard;
};

struct TokenLoss {
  float loss, hard, soft, soft_weight;
};
constexpr int kNumTokenLosses = 4;

BGKD_INLINE void store_loss(const TokenLoss& token, float* losses, int64_t num_tokens, int64_t i) {
  losses[i] = token.loss;
  losses[num_tokens + i] = token.hard;
  losses[2 * num_tokens + i] = token.soft;
  losses[3 * num_tokens + i] = token.soft_weight;
}

// Features that `objective` reads.
constexpr uint32_t objective_features(const ObjectiveParams& objective) {
  uint32_t features = objective.hard == HardLabel::kData ? kLabel : kTeacher;
  if (objective.soft == SoftTerm::kNone) return features;
  features |= kTeacher;
  features |= objective.softened                       ? kSoftened
              : objective.soft == SoftTerm::kForwardKl ? kForwardKl
                                                       : kReverseKl;
  if (objective.weight == SoftWeight::kShannon) features |= kTeacherEntropy;
  if (objective.weight == SoftWeight::kTsallis) features |= kPowerSum;
  return features;
}

BGKD_INLINE float clamp_to_unit(float x) { return x < 0.f ? 0.f : x > 1.f ? 1.f : x; }

BGKD_INLINE float soft_weight(const ObjectiveParams& objective, const TokenStats& global) {
  switch (objective.weight) {
    case SoftWeight::kStatic:
      return objective.static_weight;
    case SoftWeight::kConfidence:  // 1 - max p; expm1 keeps the digits of a small weight
      return clamp_to_unit(-std::expm1(-global[kTeacherSum]));
    case SoftWeight::kShannon:
      return clamp_to_unit(global[kTeacherH] * objective.entropy_scale);
    case SoftWeight::kTsallis:
      return clamp_to_unit((global[kPower] - 1.f) * objective.entropy_scale);
  }
  return 0.f;
}

// Calls body(Stat) with the statistic of the soft or of the hard term. Constants at every call, so
// that a kernel keeps TokenStats in registers.
template <class Body>
BGKD_INLINE void with_soft_stat(const ObjectiveParams& objective, const Body& body) {
  const bool is_forward = objective.soft == SoftTerm::kForwardKl;
  if (objective.softened) return is_forward ? body(kSoftForward) : body(kSoftReverse);
  return is_forward ? body(kForward) : body(kReverse);
}

template <class Body>
BGKD_INLINE void with_hard_stat(const ObjectiveParams& objective, const Body& body) {
  return objective.hard == HardLabel::kData ? body(kStudentAtLabel) : body(kStudentAtArgmax);
}

// Fills `upstream`: d loss / d statistic. A term without weight is left out, be it infinite.
BGKD_INLINE TokenLoss evaluate(const ObjectiveParams& objective, const TokenStats& global,
                               TokenStats& upstream) {
  upstream = TokenStats{};
  TokenLoss token{};
  const bool has_soft = objective.soft != SoftTerm::kNone;
  if (has_soft) {
    token.soft_weight = soft_weight(objective, global);
    with_soft_stat(objective, [&](Stat stat) {
      token.soft = objective.soft_scale * global[stat];
      upstream[stat] = objective.soft_scale * token.soft_weight;
    });
  }
  const float hard_weight = 1.f - token.soft_weight;
  with_hard_stat(objective, [&](Stat stat) {
    token.hard = -global[stat];
    upstream[stat] = -hard_weight;
  });
  token.loss = (token.soft_weight != 0.f ? token.soft_weight * token.soft : 0.f) +
               (hard_weight != 0.f ? hard_weight * token.hard : 0.f);
  return token;
}

}  // namespace bgkd
