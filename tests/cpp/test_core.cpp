// The torch-free mathematics on scalar lanes, as a CUDA thread runs it, against dense formulas in
// double.

#include <random>
#include <vector>

#include "../../csrc/core/gradient.h"
#include "../../csrc/core/online.h"
#include "../../csrc/launch_plan.h"
#include "../../csrc/vocab_stats.h"
#include "check.h"

using namespace bgkd;

namespace {

constexpr double kInfinity = INFINITY;
constexpr StatsParams kParams{kAllFeatures, 1.f / 2.5f, 0.3f};

struct Token {
  std::vector<float> z, t;
  int label;
};

// Partial statistics of columns [begin, end) by one lane that folds blocks of K.
TokenStats partial_stats(const Token& token, int begin, int end) {
  constexpr int kBlock = 8;
  LaneStats<float, kAllFeatures> lane;
  for (int start = begin; start < end; start += kBlock) {
    Block<float, kBlock> z, t;
    for (int k = 0; k < kBlock; ++k) {
      z.column[k] = start + k < end ? token.z[start + k] : kAbsent;
      t.column[k] = start + k < end ? token.t[start + k] : kAbsent;
    }
    update(lane, z, t, static_cast<float>((start - begin) / kBlock), kParams.inv_temperature,
           kParams.power_exponent);
  }
  settle(lane, lane.student_max, lane.teacher_max, kParams.inv_temperature, kParams.power_exponent);
  TokenStats s = neutral_stats();
  s[kStudentMax] = lane.student_max;
  s[kStudentSum] = lane.student_sum;
  s[kStudentH] = lane.student_h;
  s[kTeacherMax] = lane.teacher_max;
  s[kTeacherSum] = lane.teacher_sum;
  s[kTeacherH] = lane.teacher_h;
  s[kForward] = lane.forward;
  s[kReverse] = lane.reverse;
  s[kPower] = lane.power;
  s[kSoftStudentSum] = lane.soft_student_sum;
  s[kSoftTeacherSum] = lane.soft_teacher_sum;
  s[kSoftForward] = lane.soft_forward;
  s[kSoftReverse] = lane.soft_reverse;
  for (int v = begin; v < end; ++v) {
    if (token.t[v] == s[kTeacherMax]) {
      s[kTeacherArgmax] = static_cast<float>(v);
      s[kStudentAtArgmax] = token.z[v];
      break;
    }
  }
  for (int v = begin; v < end; ++v) {
    if (token.z[v] == s[kStudentMax]) {
      s[kStudentArgmax] = static_cast<float>(v);
      check("the block of the maximum",
            (v - begin) / kBlock == static_cast<int>(lane.student_max_block));
      break;
    }
  }
  if (token.label >= begin && token.label < end) {
    s[kStudentAtLabel] = token.z[token.label];
    s[kTeacherAtLabel] = token.t[token.label];
  }
  return s;
}

double log_sum_exp(const std::vector<float>& x, double scale) {
  double maximum = -kInfinity, sum = 0;
  for (float v : x) maximum = std::fmax(maximum, scale * v);
  for (float v : x) sum += std::exp(scale * v - maximum);
  return maximum + std::log(sum);
}

// sum_v f_v (log f_v - log g_v) with 0 * inf = 0
double divergence(const std::vector<float>& f, const std::vector<float>& g, double scale) {
  const double lf = log_sum_exp(f, scale), lg = log_sum_exp(g, scale);
  double sum = 0;
  for (size_t v = 0; v < f.size(); ++v) {
    const double weight = std::exp(scale * f[v] - lf);
    if (weight > 0) sum += weight * ((scale * f[v] - lf) - (scale * g[v] - lg));
  }
  return sum;
}

double entropy(const std::vector<float>& x) {
  const double l = log_sum_exp(x, 1);
  double sum = 0;
  for (float v : x) {
    if (std::exp(v - l) > 0) sum -= std::exp(v - l) * (v - l);
  }
  return sum;
}

Token random_token(int vocab, unsigned seed, double offset) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal;
  Token token{std::vector<float>(vocab), std::vector<float>(vocab),
              static_cast<int>(rng() % vocab)};
  for (int v = 0; v < vocab; ++v) {
    token.t[v] = static_cast<float>(3 * normal(rng) + offset);
    token.z[v] = static_cast<float>(token.t[v] + normal(rng));
  }
  token.t[vocab / 3] += 9;  // peaked, as a trained model is
  return token;
}

void check_statistics(const Token& token, const std::vector<int>& cuts) {
  TokenStats sum = neutral_stats();
  for (size_t c = 0; c + 1 < cuts.size(); ++c) {
    sum = merge(sum, partial_stats(token, cuts[c], cuts[c + 1]), kParams);
  }
  const TokenStats g = finalize(sum, kParams);
  const double temperature_scale = kParams.inv_temperature;
  const double lz = log_sum_exp(token.z, 1), lt = log_sum_exp(token.t, 1);
  double power = 0;
  for (float t : token.t) power += std::exp(kParams.power_exponent * (t - lt));
  const double tolerance = 2e-6;
  check_close("student_lse", g[kStudentMax] + g[kStudentSum], lz, tolerance);
  check_close("teacher_lse", g[kTeacherMax] + g[kTeacherSum], lt, tolerance);
  check_close("log q_y", g[kStudentAtLabel], token.z[token.label] - lz, tolerance);
  check_close("log p_y", g[kTeacherAtLabel], token.t[token.label] - lt, tolerance);
  check_close("student entropy", g[kStudentH], entropy(token.z), tolerance);
  check_close("teacher entropy", g[kTeacherH], entropy(token.t), tolerance);
  check_close("forward KL", g[kForward], divergence(token.t, token.z, 1), tolerance);
  check_close("reverse KL", g[kReverse], divergence(token.z, token.t, 1), tolerance);
  check_close("soft forward KL", g[kSoftForward], divergence(token.t, token.z, temperature_scale),
              tolerance);
  check_close("soft reverse KL", g[kSoftReverse], divergence(token.z, token.t, temperature_scale),
              tolerance);
  check_close("power sum", g[kPower], power, tolerance);

  // the gradient of one loss that uses every statistic, against differences in double
  TokenStats up{};
  up[kStudentSum] = 0.3f, up[kStudentH] = -0.7f, up[kStudentAtLabel] = 0.9f,
  up[kStudentAtArgmax] = -0.4f;
  up[kForward] = 1.1f, up[kReverse] = 0.6f, up[kSoftForward] = -0.8f, up[kSoftReverse] = 0.5f;
  const int argmax = static_cast<int>(g[kTeacherArgmax]);
  const auto loss = [&](const std::vector<float>& z) {
    const double l = log_sum_exp(z, 1);
    return 0.3 * l - 0.7 * entropy(z) + 0.9 * (z[token.label] - l) - 0.4 * (z[argmax] - l) +
           1.1 * divergence(token.t, z, 1) + 0.6 * divergence(z, token.t, 1) -
           0.8 * divergence(token.t, z, temperature_scale) +
           0.5 * divergence(z, token.t, temperature_scale);
  };
  const RowGradient r = row_gradient(g, up, kParams);
  check("every statistic has a gradient", r.kind == GradientKind::kSoftened);
  for (int v = 0; v < static_cast<int>(token.z.size());
       v += 1 + static_cast<int>(token.z.size()) / 7) {
    if (std::isinf(token.z[v])) continue;
    std::vector<float> above = token.z, below = token.z;
    above[v] += 0.015625f, below[v] -= 0.015625f;  // exact in float32 next to these logits
    const double expected =
        (loss(above) - loss(below)) / (static_cast<double>(above[v]) - below[v]);
    double got = element_gradient<GradientKind::kSoftened>(r, token.z[v], token.t[v]);
    got += (v == token.label ? r.at_label : 0.f) + (v == argmax ? r.at_argmax : 0.f);
    check_close("gradient", got, expected, 3e-4);  // the error of the difference quotient
  }
}

}  // namespace

int main() {
  for (int x = -126; x <= 0; ++x)
    check_close("2^n is exact", exp2_flushed(float(x)), std::exp2(x), 0);
  check("2^-127 is flushed", exp2_flushed(-127.f) == 0.f && exp2_flushed(-INFINITY) == 0.f);
  for (float x = -30; x <= 0; x += 1.7e-3f) {
    const double error = std::fabs(exp2_flushed(x) / std::exp2(static_cast<double>(x)) - 1);
    check("exponential within 8e-8", error < 8e-8);
  }

  for (unsigned seed = 0; seed < 4; ++seed) {
    check_statistics(random_token(257, seed, 0), {0, 257});
    check_statistics(random_token(257, seed, 0),
                     {0, 1, 100, 100, 257});  // uneven shards, one of them empty
    check_statistics(random_token(1, seed, 0), {0, 1});
  }
  Token offset = random_token(64, 7, 0);
  for (float& z : offset.z) z += 1e4f;  // differences survive a large common offset
  check_close("forward KL at offset 1e4", finalize(partial_stats(offset, 0, 64), kParams)[kForward],
              divergence(offset.t, offset.z, 1), 2e-6);

  Token absent = random_token(100, 9, 0);
  absent.t[5] = absent.t[50] =
      -INFINITY;  // p = 0 where q > 0: forward KL finite, reverse KL infinite
  const TokenStats g = finalize(
      merge(partial_stats(absent, 0, 33), partial_stats(absent, 33, 100), kParams), kParams);
  check_close("forward KL, absent teacher tokens", g[kForward], divergence(absent.t, absent.z, 1),
              2e-6);
  check_close("reverse KL, absent teacher tokens", g[kReverse], kInfinity, 0);
  absent.z[5] = absent.z[50] = -INFINITY;  // absent from both
  absent.label = 0;
  check_statistics(absent, {0, 33, 100});

  check("rows of a statistics tensor", num_rows(0) == 3 && num_rows(kAllFeatures) == kNumStats);
  check("a teacher's statistic needs the teacher", !features_are_consistent(kForwardKl));
  const CpuLaunchPlan plan = plan_cpu_launch(100, 1 << 20, 4, kTeacher);
  check("large rows are tasks of one token", plan.tokens_per_task == 1 && plan.num_tasks == 100);
  return report("core");
}
