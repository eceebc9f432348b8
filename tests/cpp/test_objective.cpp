// The objectives on a token's statistics: weights, what has no weight, derivatives.

#include <initializer_list>

#include "../../csrc/core/objective.h"
#include "check.h"

using namespace bgkd;

namespace {

constexpr float kInf = INFINITY;
constexpr AffineWeight kU{0.f, 1.f}, kRest{1.f, -1.f};

// log q_y = -1.5, log p_y = -0.4, max p = e^-0.3, KLs 0.7 and 1.9 nats, entropies 2.1 and 1.3.
TokenStats statistics() {
  TokenStats s{};
  s[kStudentH] = 2.1f, s[kStudentAtLabel] = -1.5f;
  s[kTeacherSum] = 0.3f, s[kStudentAtArgmax] = -0.9f;
  s[kTeacherH] = 1.3f, s[kTeacherAtLabel] = -0.4f;
  s[kForward] = 0.7f, s[kReverse] = 1.9f, s[kPower] = 3.f;
  s[kSoftForward] = 0.25f, s[kSoftReverse] = 0.35f;
  return s;
}

ObjectiveParams objective(SoftTerm soft, Weighting weighting) {
  ObjectiveParams o{};
  o.soft = soft;
  o.squared_temperature = 1.f;
  o.adaptive_mu = 0.5f;
  o.weighting = weighting;
  o.entropy_maximum = 4.f;
  o.soft_weight = kU;
  o.hard_weight = kRest;
  return o;
}

float u_of(Weighting weighting, const TokenStats& s) {
  TokenStats upstream;
  return evaluate(objective(SoftTerm::kForwardKl, weighting), s, upstream).soft_weight;
}

float omega_of(float student_logprob, float teacher_logprob) {
  TokenStats s = statistics();
  s[kStudentAtLabel] = student_logprob, s[kTeacherAtLabel] = teacher_logprob;
  return u_of(Weighting::kWsl, s);
}

void test_weights() {
  TokenStats s = statistics();
  check_close("constant", u_of(Weighting::kConstant, s), 1, 0);
  check_close("1 - max p", u_of(Weighting::kConfidence, s), 1 - std::exp(-0.3), 1e-7);
  check_close("1 - p_y", u_of(Weighting::kLabelConfidence, s), 1 - std::exp(-0.4), 1e-7);
  check_close("H / log V", u_of(Weighting::kShannon, s), 1.3 / 4, 1e-7);
  check_close("Tsallis", u_of(Weighting::kTsallis, s), 2.0 / 4, 1e-7);
  check_close("omega", u_of(Weighting::kWsl, s), 1 - std::exp(-1.5 / 0.4), 1e-7);

  s[kTeacherSum] = 1e-7f, s[kTeacherAtLabel] = -1e-7f;
  check("digits of a small weight",
        std::fabs(u_of(Weighting::kConfidence, s) / 1e-7f - 1) < 1e-6 &&
            std::fabs(u_of(Weighting::kLabelConfidence, s) / 1e-7f - 1) < 1e-6);
  s[kTeacherAtLabel] = 1e-7f, s[kTeacherH] = 4.1f, s[kPower] = 0.9f;
  check_close("p_y rounded to above 1", u_of(Weighting::kLabelConfidence, s), 0, 0);
  check_close("H rounded to above log V", u_of(Weighting::kShannon, s), 1, 0);
  check_close("Tsallis below 0", u_of(Weighting::kTsallis, s), 0, 0);
  s[kTeacherAtLabel] = -kInf, s[kTeacherH] = NAN;
  check_close("p_y = 0", u_of(Weighting::kLabelConfidence, s), 1, 0);
  check("NaN stays", std::isnan(u_of(Weighting::kShannon, s)));

  const double least = std::log(1e-8);
  check_close("a student's p below 1e-8", omega_of(-30, -9), 1 - std::exp(least / 9), 1e-7);
  check_close("a teacher's p below 1e-8", omega_of(-9, -kInf), 1 - std::exp(9 / least), 1e-7);
  check_close("a teacher without a doubt", omega_of(-2e-8f, 0), 1 - std::exp(-2), 1e-7);
  check_close("a ratio above 10", omega_of(-9, -0.1f), 1 - std::exp(-10), 1e-8);
  check_close("a ratio below 0", omega_of(1e-7f, -0.1f), 0, 0);

  ObjectiveParams o = objective(SoftTerm::kForwardKl, Weighting::kShannon);
  o.soft_weight = {2.f, 0.5f}, o.hard_weight = {0.25f, 3.f};
  TokenStats upstream;
  const TokenLoss token = evaluate(o, statistics(), upstream);
  check_close("w_s", token.soft_weight, 2 + 0.5 * 1.3 / 4, 1e-7);
  check_close("w_h", token.hard_weight, 0.25 + 3 * 1.3 / 4, 1e-7);
  check_close("loss", token.loss, token.soft_weight * 0.7 + token.hard_weight * 1.5, 1e-7);
}

// Loss and derivatives in double.
struct Exact {
  double soft, hard, loss, up[kNumStats];
};

Exact exact(const ObjectiveParams& o, const TokenStats& s, const TokenLoss& weights) {
  Exact e{};
  const double w = weights.soft_weight, t2 = o.squared_temperature;
  const int hard = o.hard == HardLabel::kData ? kStudentAtLabel : kStudentAtArgmax;
  const int forward = o.softened ? kSoftForward : kForward;
  const int reverse = o.softened ? kSoftReverse : kReverse;
  double share = o.soft == SoftTerm::kForwardKl;
  if (o.soft == SoftTerm::kAdaptiveKl) {
    share = 1 / (1 + std::exp(-o.adaptive_mu * (double{s[kStudentH]} - s[kTeacherH])));
    if (!o.adaptive_detach) {
      e.up[kStudentH] =
          w * o.adaptive_mu * share * (1 - share) * (double{s[kForward]} - s[kReverse]);
    }
  }
  if (o.soft != SoftTerm::kNone) {
    e.soft = t2 * (share * s[forward] + (1 - share) * s[reverse]);
    e.up[forward] = w * t2 * share, e.up[reverse] = w * t2 * (1 - share);
  }
  e.hard = -s[hard];
  e.up[hard] = -weights.hard_weight;
  e.up[kStudentH] -= o.entropy_regularizer;
  e.loss = w * e.soft + weights.hard_weight * e.hard - o.entropy_regularizer * s[kStudentH];
  return e;
}

void test_derivatives() {
  for (SoftTerm soft :
       {SoftTerm::kNone, SoftTerm::kForwardKl, SoftTerm::kReverseKl, SoftTerm::kAdaptiveKl}) {
    for (int variant = 0; variant < 16; ++variant) {
      ObjectiveParams o = objective(soft, Weighting::kShannon);
      o.softened = (variant & 1) != 0 && soft != SoftTerm::kAdaptiveKl;
      if (o.softened) o.squared_temperature = 4.f;
      o.adaptive_detach = (variant & 2) != 0;
      o.hard = (variant & 4) != 0 ? HardLabel::kTeacherArgmax : HardLabel::kData;
      o.entropy_regularizer = (variant & 8) != 0 ? 0.125f : 0.f;
      TokenStats upstream;
      const TokenLoss token = evaluate(o, statistics(), upstream);
      const Exact e = exact(o, statistics(), token);
      check_close("soft term", token.soft, e.soft, 2e-7);
      check_close("hard term", token.hard, e.hard, 0);
      check_close("loss", token.loss, e.loss, 2e-7);
      for (int stat = 0; stat < kNumStats; ++stat) {
        check_close(kStatNames[stat], upstream[stat], e.up[stat], 2e-7);
      }
    }
  }
}

void test_what_has_no_weight_is_left_out() {
  TokenStats s = statistics();
  s[kForward] = s[kReverse] = kInf;
  s[kTeacherH] = 0.f;
  for (SoftTerm soft : {SoftTerm::kForwardKl, SoftTerm::kAdaptiveKl}) {
    TokenStats upstream;
    const TokenLoss token = evaluate(objective(soft, Weighting::kShannon), s, upstream);
    check_close("an infinite soft term", token.soft, kInf, 0);
    check_close("without weight", token.loss, 1.5, 1e-7);
    for (int stat : {kForward, kReverse, kStudentH}) {
      check_close("and without derivative", upstream[stat], 0, 0);
    }
  }
  s = statistics();
  s[kStudentAtLabel] = -kInf, s[kTeacherH] = 4.f;
  TokenStats upstream;
  const ObjectiveParams o = objective(SoftTerm::kForwardKl, Weighting::kShannon);
  check_close("an infinite hard term", evaluate(o, s, upstream).loss, 0.7, 1e-7);
  check_close("has no derivative", upstream[kStudentAtLabel], 0, 0);
}

void test_features() {
  const auto features = [](SoftTerm soft, Weighting weighting) {
    return objective_features(objective(soft, weighting));
  };
  const auto hard_only = [&](Weighting weighting) { return features(SoftTerm::kNone, weighting); };
  check("no teacher", hard_only(Weighting::kConstant) == kLabel);
  check("max p", hard_only(Weighting::kConfidence) == (kTeacher | kLabel));
  check("H(p)", hard_only(Weighting::kShannon) == (kTeacher | kLabel | kTeacherEntropy));
  check("power sum", hard_only(Weighting::kTsallis) == (kTeacher | kLabel | kPowerSum));
  check("adaptive",
        features(SoftTerm::kAdaptiveKl, Weighting::kConstant) ==
            (kTeacher | kLabel | kForwardKl | kReverseKl | kStudentEntropy | kTeacherEntropy));
  ObjectiveParams o = objective(SoftTerm::kReverseKl, Weighting::kWsl);
  o.hard = HardLabel::kTeacherArgmax;
  check("wsl reads the label", objective_features(o) == (kTeacher | kLabel | kReverseKl));
  o.weighting = Weighting::kLabelConfidence;
  check("so does p_y", objective_features(o) == (kTeacher | kLabel | kReverseKl));
  o.weighting = Weighting::kConstant, o.softened = true, o.entropy_regularizer = 0.1f;
  check("softened, regularized", objective_features(o) == (kTeacher | kSoftened | kStudentEntropy));
}

}  // namespace

int main() {
  test_weights();
  test_derivatives();
  test_what_has_no_weight_is_left_out();
  test_features();
  return report("objective");
}
