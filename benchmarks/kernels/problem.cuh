// The kernels of csrc/cuda/launch.h on one shape: how each is launched and checked.
#pragma once

#include <functional>
#include <utility>

#include "../../csrc/cuda/launch.h"
#include "device.cuh"
#include "exact.h"
#include "traffic.h"

namespace bgkd::bench {

struct Kernel {
  std::string name;
  int64_t bytes;
  std::function<void()> prepare;  // its inputs, besides the logits
  std::function<void()> launch;
  // How its result differs from float64 at a token, or "".
  std::function<std::string(int64_t token, const ExactToken& exact)> difference;
};

constexpr uint32_t kBothKl = kForwardKl | kReverseKl,
                   kBothEntropies = kStudentEntropy | kTeacherEntropy;
const std::pair<const char*, uint32_t> kFeatureSets[] = {
    {"stats/label", kLabel},
    {"stats/forward_kl", kLabel | kTeacher | kForwardKl},
    {"stats/reverse_kl", kLabel | kTeacher | kReverseKl},
    {"stats/hybrid",
     kLabel | kTeacher | kBothKl | kBothEntropies},  // a run's default, with metrics
    {"stats/all", kAllFeatures},
};
using Trained = std::vector<std::pair<int, float>>;  // statistics and d loss / d statistic
const std::pair<const char*, Trained> kGradients[] = {
    {"gradient/student", {{kStudentAtLabel, -1.f}}},
    {"gradient/linear", {{kForward, 0.75f}, {kStudentAtLabel, -0.25f}}},
    {"gradient/general", {{kReverse, 0.75f}, {kStudentH, 0.5f}, {kStudentAtLabel, -0.25f}}},
    {"gradient/softened", {{kSoftForward, 0.75f}, {kSoftReverse, 0.5f}}},
};
const std::pair<const char*, FDivergence> kDivergences[] = {
    {"jensen_shannon", FDivergence::kJensenShannon},
    {"skew_forward", FDivergence::kSkewForward},
    {"skew_reverse", FDivergence::kSkewReverse},
    {"total_variation", FDivergence::kTotalVariation},
};
// Cross-entropy and forward KL by the teacher's entropy; softened: the KL at a temperature.
const std::pair<const char*, bool> kObjectives[] = {{"fused/hybrid", false},
                                                    {"fused/softened", true}};

template <class T>
class Problem {
 public:
  Problem(const Shape& s, int64_t shards)
      : shape(s),
        n(s.num_tokens),
        v(s.num_columns),
        num_shards(std::min(shards, v)),
        plan(plan_cuda_launch(n, v, sizeof(T), attribute(cudaDevAttrMultiProcessorCount))),
        fused_plan(plan_fused_launch(v, sizeof(T),
                                     {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                                      attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                                      attribute(cudaDevAttrClusterLaunch) != 0 ? 8 : 1})) {
    fill_logits(original, 1);
    fill_logits(teacher, 2);
    std::vector<int64_t> ids;
    for (int64_t token = 0; token < n; ++token) ids.push_back(label_of(token));
    labels.write(ids);
    restore();
    stats(kAllFeatures);
    merge(kAllFeatures, 1, all_global);
  }

  // Of the tensors of logits; and what the hungriest kernel moves.
  static int64_t needed_bytes(const Shape& s) { return 3 * s.tensor_bytes(); }
  static int64_t most_bytes(const Shape& s, int64_t shards) {
    return gradient_bytes(s, kAllFeatures, true) + merge_bytes(s, kAllFeatures, shards);
  }

  // The student's logits, which gradients overwrite.
  void restore() const { student.copy_from(original); }

  ExactToken exact(int64_t token) const {
    return {row(original, token), row(teacher, token), label_of(token), params(kAllFeatures)};
  }

  std::vector<Kernel> kernels() const {
    const auto nothing = [] {};
    std::vector<Kernel> list;
    for (const auto& [name, features] : kFeatureSets) {
      list.push_back({name, stats_bytes(shape, features, plan), nothing,
                      [this, f = features] { stats(f); },
                      [this, f = features](int64_t token, const ExactToken& exact) {
                        merge(f, 1, global);
                        return stats_difference(token, exact, f);
                      }});
    }
    list.push_back({"merge", merge_bytes(shape, kAllFeatures, num_shards),
                    [this] { stats_of_shards(); },
                    [this] { merge(kAllFeatures, num_shards, global); },
                    [this](int64_t token, const ExactToken& exact) {
                      return stats_difference(token, exact, kAllFeatures);
                    }});
    for (const auto& [name, trained] : kGradients) {
      const bool reads_teacher = trained.front().first != kStudentAtLabel;
      list.push_back({name, gradient_bytes(shape, kAllFeatures, reads_teacher),
                      [this, &t = trained] { write_upstream(t); }, [this] { gradient(); },
                      [this, &t = trained](int64_t token, const ExactToken& exact) {
                        PerStat up{};
                        double weight = 0;
                        for (const auto& [stat, value] : t) {
                          up[stat] = value;
                          weight += std::fabs(value);
                        }
                        return gradient_difference(token, exact, exact.gradient(up), weight);
                      }});
    }
    for (const auto& [name, kind] : kDivergences) {
      list.push_back({std::string("fdiv/") + name, fdiv_bytes(shape, plan), nothing,
                      [this, k = kind] { fdiv(k); },
                      [this, k = kind](int64_t token, const ExactToken& exact) {
                        return difference("the divergence", sums.read(token, 1)[0],
                                          exact.divergence(k, kLambda));
                      }});
      list.push_back({std::string("fdiv_gradient/") + name,
                      fdiv_gradient_bytes(shape, kAllFeatures),
                      [this, k = kind] {
                        fdiv(k);
                        write_upstream({{kStudentAtLabel, -kHardWeight}});
                        upstream_divergence.write(std::vector<float>(static_cast<size_t>(n), 1.f));
                      },
                      [this, k = kind] { fdiv_gradient(k); },
                      [this, k = kind](int64_t token, const ExactToken& exact) {
                        Logits expected;
                        exact.divergence(k, kLambda, &expected);
                        PerStat up{};
                        up[kStudentAtLabel] = -kHardWeight;
                        const Logits hard = exact.gradient(up);
                        for (size_t i = 0; i < hard.size(); ++i) expected[i] += hard[i];
                        return gradient_difference(token, exact, expected, 1 + kHardWeight);
                      }});
    }
    if (fused_plan.cluster == 0) return list;  // the rows do not fit on the chip
    for (const auto& [name, softened] : kObjectives) {
      list.push_back({name, fused_bytes(shape, fused_features(softened)), nothing,
                      [this, s = softened] { fused(s); },
                      [this, s = softened](int64_t token, const ExactToken& exact) {
                        return fused_difference(token, exact, s);
                      }});
    }
    return list;
  }

 private:
  static constexpr float kInvTemperature = 0.5f, kPowerExponent = 0.3f, kLambda = 0.3f;
  static constexpr float kHardWeight = 0.25f;  // beside a divergence

  static StatsParams params(uint32_t features) {
    return {features, kInvTemperature, kPowerExponent};
  }
  int64_t label_of(int64_t token) const { return token * 7919 % v; }
  TokenLabels token_labels() const { return {labels.data(), -100}; }
  LogitsShard logits(uint32_t features, int64_t first, int64_t count) const {
    const T* t = (features & kTeacher) ? teacher.data() + first : nullptr;
    return {shape.dtype, student.data() + first, v, t, v, count, first, v};
  }
  LogitsShard logits(uint32_t features) const { return logits(features, 0, v); }

  void stats(uint32_t features) const {
    const StatsArgs args{logits(features), token_labels(), params(features), n, partial.data()};
    check(launch_vocab_stats(args, plan, workspace.data(), nullptr), "vocab_stats");
  }
  void stats_of_shards() const {
    const int64_t columns = (v + num_shards - 1) / num_shards;
    for (int64_t shard = 0; shard < num_shards; ++shard) {
      const int64_t first = std::min(v, shard * columns), count = std::min(columns, v - first);
      const StatsArgs args{logits(kAllFeatures, first, count), token_labels(), params(kAllFeatures),
                           n, partial.data() + shard * kNumStats * n};
      const CudaPlan whole_rows{plan.threads, 1, v};
      check(launch_vocab_stats(args, whole_rows, nullptr, nullptr), "vocab_stats of a shard");
    }
  }
  void merge(uint32_t features, int64_t shards, const DeviceArray<float>& result) const {
    const MergeArgs args{partial.data(),   shards, token_labels(),
                         params(features), n,      result.data()};
    check(launch_merge_stats(args, nullptr), "merge");
  }
  GradientArgs gradient_args() const {
    return {logits(kAllFeatures),
            token_labels(),
            params(kAllFeatures),
            n,
            all_global.data(),
            upstream.data(),
            student.data(),
            v,
            v};
  }
  void gradient() const {
    check(launch_vocab_gradient(gradient_args(), plan, nullptr), "gradient");
  }
  void fdiv(FDivergence kind) const {
    const FdivArgs args{logits(kAllFeatures), token_labels(), kind, kLambda, kAllFeatures, n,
                        all_global.data(),    sums.data()};
    check(launch_vocab_fdiv(args, plan, workspace.data(), nullptr), "fdiv");
  }
  void fdiv_gradient(FDivergence kind) const {
    const FdivGradientArgs args{gradient_args(), kind, kLambda, sums.data(),
                                upstream_divergence.data()};
    check(launch_vocab_fdiv_gradient(args, plan, nullptr), "fdiv_gradient");
  }
  ObjectiveParams objective(bool softened) const {
    ObjectiveParams o{};
    o.soft = SoftTerm::kForwardKl;
    o.softened = softened;
    o.soft_scale = softened ? 1 / (kInvTemperature * kInvTemperature) : 1.f;
    o.weight = SoftWeight::kShannon;
    o.entropy_scale = static_cast<float>(1 / log_vocab());
    o.hard = HardLabel::kData;
    return o;
  }
  double log_vocab() const { return std::log(static_cast<double>(std::max<int64_t>(v, 2))); }
  uint32_t fused_features(bool softened) const { return objective_features(objective(softened)); }
  void fused(bool softened) const {
    const uint32_t features = fused_features(softened);
    const FusedArgs args{logits(features),
                         token_labels(),
                         params(features),
                         objective(softened),
                         n,
                         global.data(),
                         losses.data(),
                         student.data(),
                         v,
                         v};
    check(launch_fused_loss(args, fused_plan, nullptr), "fused_loss");
  }

  void write_upstream(const Trained& trained) const {
    std::vector<float> values(static_cast<size_t>(kNumStats * n), 0.f);
    for (const auto& [stat, value] : trained) std::fill_n(values.begin() + stat * n, n, value);
    upstream.write(values);
  }
  Logits row(const DeviceArray<T>& tensor, int64_t token) const {
    Logits values;
    for (T x : tensor.read(token * v, v)) values.push_back(static_cast<float>(x));
    return values;
  }
  std::string stats_difference(int64_t token, const ExactToken& exact, uint32_t features) const {
    std::vector<float> packed;
    for (int stat = 0; stat < num_rows(features); ++stat) {
      packed.push_back(global.read(stat * n + token, 1)[0]);
    }
    return exact.stats_difference(packed, features);
  }
  std::string gradient_difference(int64_t token, const ExactToken& exact, const Logits& expected,
                                  double weight) const {
    return exact.gradient_difference(row(student, token), expected, weight, shape.dtype);
  }
  std::string fused_difference(int64_t token, const ExactToken& exact, bool softened) const {
    const double weight = exact.stats[kTeacherH] / log_vocab();
    const Stat soft = softened ? kSoftForward : kForward;
    PerStat up{};
    up[soft] = weight * objective(softened).soft_scale;
    up[kStudentAtLabel] = weight - 1;
    const double loss =
        up[soft] * exact.stats[soft] + up[kStudentAtLabel] * exact.stats[kStudentAtLabel];
    const std::string found = difference("the loss", losses.read(token, 1)[0], loss);
    if (!found.empty()) return found;
    return gradient_difference(token, exact, exact.gradient(up), 1 + up[soft]);
  }

  const Shape shape;
  const int64_t n, v, num_shards;
  const CudaPlan plan;
  const FusedPlan fused_plan;
  const DeviceArray<T> student{n * v}, original{n * v}, teacher{n * v};
  const DeviceArray<int64_t> labels{n};
  const DeviceArray<float> partial{num_shards * kNumStats * n}, global{kNumStats * n};
  const DeviceArray<float> workspace{plan.parts * kNumStats * n}, upstream{kNumStats * n};
  // Of all features, for the kernels that need global statistics.
  const DeviceArray<float> all_global{kNumStats * n};
  const DeviceArray<float> sums{kNumFdivSums * n}, upstream_divergence{n};
  const DeviceArray<float> losses{kNumTokenLosses * n};
};

}  // namespace bgkd::bench
