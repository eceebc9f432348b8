// The kernels of csrc/cuda/launch.h on one shape: how each is launched and checked.
#pragma once

#include <functional>
#include <map>

#include "../../csrc/cuda/launch.h"
#include "device.cuh"
#include "exact.h"
#include "kernel_list.h"

namespace bgkd::bench {

struct Kernel {
  std::string name;
  int64_t bytes;
  std::function<void()> prepare;  // its inputs, besides the logits
  std::function<void()> launch;
  // How its result differs from float64 at a token, or "".
  std::function<std::string(int64_t token, const ExactToken& exact)> difference;
};

template <class T>
class Problem {
 public:
  Problem(const Shape& s, int64_t shards)
      : shape(s),
        n(s.num_tokens),
        v(s.num_columns),
        num_shards(std::min(shards, v)),
        plans(s, attribute(cudaDevAttrMultiProcessorCount),
              {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
               attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
               attribute(cudaDevAttrClusterLaunch) != 0 ? 8 : 1}) {
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
    std::map<std::string, int64_t> bytes;
    for (const auto& [name, moved] : traffic(shape, num_shards, plans)) bytes[name] = moved;
    std::vector<Kernel> list;
    const auto add = [&](const std::string& name, auto prepare, auto launch, auto difference) {
      list.push_back({name, bytes.at(name), prepare, launch, difference});
    };
    const auto nothing = [] {};
    for (const auto& [name, features] : kFeatureSets) {
      add(
          name, nothing, [this, f = features] { stats(f); },
          [this, f = features](int64_t token, const ExactToken& exact) {
            merge(f, 1, global);
            return stats_difference(token, exact, f);
          });
    }
    add(
        "merge", [this] { stats_of_shards(); }, [this] { merge(kAllFeatures, num_shards, global); },
        [this](int64_t token, const ExactToken& exact) {
          return stats_difference(token, exact, kAllFeatures);
        });
    add(
        "loss", [this] { stats_of_shards(); }, [this] { loss(); },
        [this](int64_t token, const ExactToken& exact) {
          return loss_difference(token, exact, false);
        });
    for (const auto& [name, trained] : kGradients) {
      add(
          name, [this, &t = trained] { write_upstream(t); }, [this] { gradient(); },
          [this, &t = trained](int64_t token, const ExactToken& exact) {
            const auto [up, weight] = derivatives(t);
            return gradient_difference(token, exact, exact.gradient(up), weight);
          });
    }
    for (const auto& [kind, divergence] : kDivergences) {
      add(
          "fdiv/" + kind, nothing, [this, d = divergence] { fdiv(d); },
          [this, d = divergence](int64_t token, const ExactToken& exact) {
            return difference("the divergence", sums.read(token, 1)[0],
                              exact.divergence(d, kLambda));
          });
      for (const auto& [name, trained] : kFdivGradients) {
        add(
            name + kind,
            [this, d = divergence, &t = trained] {
              fdiv(d);
              write_upstream(t);
              upstream_divergence.write(std::vector<float>(static_cast<size_t>(n), 1.f));
            },
            [this, d = divergence] { fdiv_gradient(d); },
            [this, d = divergence, &t = trained](int64_t token, const ExactToken& exact) {
              Logits expected;
              exact.divergence(d, kLambda, &expected);
              const auto [up, weight] = derivatives(t);
              const Logits beside = exact.gradient(up);
              for (size_t i = 0; i < beside.size(); ++i) expected[i] += beside[i];
              return gradient_difference(token, exact, expected, 1 + weight);
            });
      }
    }
    add(
        "scale_rows", [this] { scale.write(std::vector<float>(static_cast<size_t>(n), kScale)); },
        [this] { scale_rows(); },
        [this](int64_t token, const ExactToken& exact) {
          Logits expected = row(original, token);
          for (double& x : expected) x *= kScale;
          return gradient_difference(token, exact, expected, 0);
        });
    if (plans.fused.cluster == 0) return list;  // the rows do not fit on the chip
    for (const auto& [name, softened] : kObjectives) {
      add(
          name, nothing, [this, s = softened] { fused(s); },
          [this, s = softened](int64_t token, const ExactToken& exact) {
            return fused_difference(token, exact, s);
          });
    }
    return list;
  }

 private:
  static constexpr float kPowerExponent = 0.3f, kLambda = 0.3f, kScale = 0.75f;
  static constexpr FdivParams kParams{kLambda, 0.f, 0.f};

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
  void loss() const {
    const LossArgs args{
        {partial.data(), num_shards, token_labels(), params(kAllFeatures), n, global.data()},
        objective(false, log_vocab()),
        losses.data(),
        upstream.data()};
    check(launch_loss(args, nullptr), "loss");
  }
  void scale_rows() const {
    const ScaleArgs args{shape.dtype, student.data(), v, n, v, scale.data()};
    check(launch_scale_rows(args, nullptr), "scale_rows");
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
    const FdivArgs args{logits(kAllFeatures), token_labels(), kind, kParams, kAllFeatures, n,
                        all_global.data(),    sums.data()};
    check(launch_vocab_fdiv(args, plan, workspace.data(), nullptr), "fdiv");
  }
  void fdiv_gradient(FDivergence kind) const {
    const FdivGradientArgs args{gradient_args(), kind, kParams, sums.data(),
                                upstream_divergence.data()};
    check(launch_vocab_fdiv_gradient(args, plan, nullptr), "fdiv_gradient");
  }
  double log_vocab() const { return std::log(static_cast<double>(std::max<int64_t>(v, 2))); }
  void fused(bool softened) const {
    const uint32_t features = fused_features(softened);
    const FusedArgs args{logits(features),
                         token_labels(),
                         params(features),
                         objective(softened, log_vocab()),
                         n,
                         global.data(),
                         losses.data(),
                         student.data(),
                         v,
                         v};
    check(launch_fused_loss(args, plans.fused, nullptr), "fused_loss");
  }

  // d loss / d statistic, and the sum of the sizes.
  static std::pair<PerStat, double> derivatives(const Trained& trained) {
    PerStat up{};
    double weight = 0;
    for (const auto& [stat, value] : trained) {
      up[stat] = value;
      weight += std::fabs(value);
    }
    return {up, weight};
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
  // d loss / d statistic of an objective.
  PerStat upstream_of(const ExactToken& exact, bool softened) const {
    const double weight = exact.stats[kTeacherH] / log_vocab();
    PerStat up{};
    up[softened ? kSoftForward : kForward] =
        weight * objective(softened, log_vocab()).squared_temperature;
    up[kStudentAtLabel] = weight - 1;
    return up;
  }
  std::string loss_difference(int64_t token, const ExactToken& exact, bool softened) const {
    const PerStat up = upstream_of(exact, softened);
    double loss = 0;
    for (int stat : {kForward, kSoftForward, kStudentAtLabel}) loss += up[stat] * exact.stats[stat];
    return difference("the loss", losses.read(token, 1)[0], loss);
  }
  std::string fused_difference(int64_t token, const ExactToken& exact, bool softened) const {
    const std::string found = loss_difference(token, exact, softened);
    if (!found.empty()) return found;
    const PerStat up = upstream_of(exact, softened);
    return gradient_difference(token, exact, exact.gradient(up),
                               1 + up[kForward] + up[kSoftForward]);
  }

  const Shape shape;
  const int64_t n, v, num_shards;
  const Plans plans;
  const CudaPlan& plan = plans.rows;
  const DeviceArray<T> student{n * v}, original{n * v}, teacher{n * v};
  const DeviceArray<int64_t> labels{n};
  const DeviceArray<float> partial{num_shards * kNumStats * n}, global{kNumStats * n};
  const DeviceArray<float> workspace{plan.parts * kNumStats * n}, upstream{kNumStats * n};
  // Of all features, for the kernels that need global statistics.
  const DeviceArray<float> all_global{kNumStats * n};
  const DeviceArray<float> sums{kNumFdivSums * n}, upstream_divergence{n};
  const DeviceArray<float> losses{kNumTokenLosses * n}, scale{n};
};

}  // namespace bgkd::bench
