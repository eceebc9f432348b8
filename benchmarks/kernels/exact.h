// One token in float64 by dense formulas: the time of a kernel that computes something else means
// nothing. No CUDA here.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "../../csrc/vocab_fdiv.h"

namespace bgkd::bench {

using Logits = std::vector<double>;
using PerStat = std::array<double, kNumStats>;

// How a number differs from the exact one beyond what is allowed, in words, or "". NaN differs.
inline std::string difference(const std::string& what, double got, double exact, double allowed) {
  if (std::fabs(got - exact) <= allowed) return "";
  char text[200];
  std::snprintf(text, sizeof text, "%s is %.9g, in float64 %.9g", what.c_str(), got, exact);
  return text;
}
// Some roundings of float32.
inline std::string difference(const std::string& what, double got, double exact) {
  return difference(what, got, exact, 2e-5 * (1 + std::fabs(exact)));
}

struct LogSoftmax {
  Logits log_p;
  double log_sum, maximum;  // the sum relative to the maximum
  size_t argmax;

  LogSoftmax(const Logits& x, double scale) {
    argmax = std::max_element(x.begin(), x.end()) - x.begin();
    maximum = x.at(argmax);
    double sum = 0;
    for (double value : x) sum += std::exp(scale * (value - maximum));
    log_sum = std::log(sum);
    for (double value : x) log_p.push_back(scale * (value - maximum) - log_sum);
  }
  double log(size_t v) const { return log_p[v]; }
  double operator()(size_t v) const { return std::exp(log_p[v]); }
};

struct ExactToken {
  size_t label;
  double inv_temperature, spread;  // spread: of the logits
  LogSoftmax q, p, soft_q, soft_p;
  PerStat stats{};  // global ones, csrc/core/statistics.h

  ExactToken(const Logits& student, const Logits& teacher, int64_t label, const StatsParams& params)
      : label(static_cast<size_t>(label)),
        inv_temperature(params.inv_temperature),
        q(student, 1),
        p(teacher, 1),
        soft_q(student, inv_temperature),
        soft_p(teacher, inv_temperature) {
    spread = 1 + q.maximum - *std::min_element(student.begin(), student.end()) + p.maximum -
             *std::min_element(teacher.begin(), teacher.end());
    stats[kStudentMax] = q.maximum, stats[kTeacherMax] = p.maximum;
    stats[kStudentSum] = q.log_sum, stats[kTeacherSum] = p.log_sum;
    stats[kSoftStudentSum] = soft_q.log_sum, stats[kSoftTeacherSum] = soft_p.log_sum;
    stats[kStudentArgmax] = static_cast<double>(q.argmax);
    stats[kTeacherArgmax] = static_cast<double>(p.argmax);
    stats[kStudentAtArgmax] = q.log(p.argmax);
    stats[kStudentAtLabel] = q.log(label), stats[kTeacherAtLabel] = p.log(label);
    for (size_t v = 0; v < student.size(); ++v) {
      stats[kStudentH] -= q(v) * q.log(v);
      stats[kTeacherH] -= p(v) * p.log(v);
      stats[kForward] += p(v) * (p.log(v) - q.log(v));
      stats[kReverse] += q(v) * (q.log(v) - p.log(v));
      stats[kPower] += std::exp(params.power_exponent * p.log(v));
      stats[kSoftForward] += soft_p(v) * (soft_p.log(v) - soft_q.log(v));
      stats[kSoftReverse] += soft_q(v) * (soft_q.log(v) - soft_p.log(v));
    }
  }

  // up: d loss / d statistic. Formulas: csrc/core/gradient.h.
  Logits gradient(const PerStat& up) const {
    Logits gradient;
    for (size_t v = 0; v < q.log_p.size(); ++v) {
      const double soft_log_ratio = soft_q.log(v) - soft_p.log(v);
      gradient.push_back(
          up[kStudentAtLabel] * ((v == label) - q(v)) -
          up[kStudentH] * q(v) * (q.log(v) + stats[kStudentH]) + up[kForward] * (q(v) - p(v)) +
          up[kReverse] * q(v) * (q.log(v) - p.log(v) - stats[kReverse]) +
          inv_temperature * up[kSoftForward] * (soft_q(v) - soft_p(v)) +
          inv_temperature * up[kSoftReverse] * soft_q(v) * (soft_log_ratio - stats[kSoftReverse]));
    }
    return gradient;
  }

  // The divergence; `gradient`: its own. Formulas: csrc/core/fdiv.h.
  double divergence(FDivergence kind, double lambda, Logits* gradient = nullptr) const {
    double sum = 0, mean_slope = 0;
    Logits slopes;
    for (size_t v = 0; v < q.log_p.size(); ++v) {
      const bool is_forward = kind == FDivergence::kSkewForward;
      const double m =
          is_forward ? lambda * p(v) + (1 - lambda) * q(v) : (1 - lambda) * p(v) + lambda * q(v);
      const double q_ratio = q.log(v) - std::log(m), p_ratio = p.log(v) - std::log(m);
      double value = 0, slope = 0;
      if (kind == FDivergence::kJensenShannon) {
        value = lambda * q(v) * q_ratio + (1 - lambda) * p(v) * p_ratio;
        slope = lambda * q_ratio;
      } else if (is_forward) {
        value = p(v) * p_ratio;
        slope = -(1 - lambda) * p(v) / m;
      } else if (kind == FDivergence::kSkewReverse) {
        value = q(v) * q_ratio;
        slope = q_ratio - lambda * q(v) / m;
      } else {
        value = std::fabs(p(v) - q(v)) / 2;
        slope = q(v) > p(v) ? 0.5 : q(v) < p(v) ? -0.5 : 0;
      }
      sum += value;
      mean_slope += q(v) * slope;
      slopes.push_back(slope);
    }
    if (gradient != nullptr) {
      gradient->clear();
      for (size_t v = 0; v < slopes.size(); ++v) {
        gradient->push_back(q(v) * (slopes[v] - mean_slope));
      }
    }
    return sum;
  }

  // packed: the statistics of `features`.
  std::string stats_difference(const std::vector<float>& packed, uint32_t features) const {
    std::string found;
    for (int stat = 0, row = 0; stat < kNumStats && found.empty(); ++stat) {
      if (has_stat(features, stat))
        found = difference(kStatNames[stat], packed.at(row++), stats[stat]);
    }
    return found;
  }

  // weight: sum of |upstream|. A probability inherits an error of 2^-24 times its exponent, which
  // is at most 2^6 here, and is multiplied by a difference of logits at most.
  std::string gradient_difference(const Logits& got, const Logits& exact, double weight,
                                  DType dtype) const {
    const double rounding = dtype == DType::kFloat32    ? 0x1p-22
                            : dtype == DType::kBFloat16 ? 0x1p-8
                                                        : 0x1p-11;
    std::string found;
    for (size_t v = 0; v < exact.size() && found.empty(); ++v) {
      const double mass = q(v) + p(v) + soft_q(v) + soft_p(v);
      // The slope of the total variation jumps where the models agree.
      const double jump = std::fabs(q(v) - p(v)) < 1e-4 * q(v) ? weight * q(v) : 0;
      const double subnormal = dtype == DType::kFloat16 ? 0x1p-25 : 0;
      found = difference(
          "the gradient at column " + std::to_string(v), got.at(v), exact[v],
          rounding * std::fabs(exact[v]) + subnormal + jump + 0x1p-18 * weight * spread * mass);
    }
    return found;
  }
};

}  // namespace bgkd::bench
