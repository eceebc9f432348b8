// What is measured: the kernels of csrc/cuda/launch.h with what makes them take each of their
// paths, and the bytes that each moves. No CUDA here.
#pragma once

#include <utility>

#include "traffic.h"

namespace bgkd::bench {

constexpr uint32_t kBothKl = kForwardKl | kReverseKl,
                   kBothEntropies = kStudentEntropy | kTeacherEntropy;
const std::pair<std::string, uint32_t> kFeatureSets[] = {
    {"stats/label", kLabel},
    {"stats/forward_kl", kLabel | kTeacher | kForwardKl},
    {"stats/reverse_kl", kLabel | kTeacher | kReverseKl},
    {"stats/hybrid",
     kLabel | kTeacher | kBothKl | kBothEntropies},  // a run's default, with metrics
    {"stats/all", kAllFeatures},
};
using Trained = std::vector<std::pair<int, float>>;  // statistics and d loss / d statistic
const std::pair<std::string, Trained> kGradients[] = {
    {"gradient/student", {{kStudentAtLabel, -1.f}}},
    {"gradient/linear", {{kForward, 0.75f}, {kStudentAtLabel, -0.25f}}},
    {"gradient/general", {{kReverse, 0.75f}, {kStudentH, 0.5f}, {kStudentAtLabel, -0.25f}}},
    {"gradient/softened", {{kSoftForward, 0.75f}, {kSoftReverse, 0.5f}}},
};
const std::pair<std::string, FDivergence> kDivergences[] = {
    {"jensen_shannon", FDivergence::kJensenShannon},
    {"skew_forward", FDivergence::kSkewForward},
    {"skew_reverse", FDivergence::kSkewReverse},
    {"total_variation", FDivergence::kTotalVariation},
};
// Beside a divergence: a multiple of q, which the first launch of its gradient takes; the others
// are for the second one.
const std::pair<std::string, Trained> kFdivGradients[] = {
    {"fdiv_gradient/", {{kStudentAtLabel, -0.25f}}},
    {"fdiv_gradient_general/", {{kReverse, 0.75f}, {kStudentH, 0.5f}, {kStudentAtLabel, -0.25f}}},
    {"fdiv_gradient_softened/", {{kSoftForward, 0.75f}, {kStudentAtLabel, -0.25f}}},
};
// Cross-entropy and forward KL by the teacher's entropy; softened: the KL at a temperature.
const std::pair<std::string, bool> kObjectives[] = {{"fused/hybrid", false},
                                                    {"fused/softened", true}};

constexpr float kInvTemperature = 0.5f;

inline ObjectiveParams objective(bool softened, double log_vocab) {
  ObjectiveParams o{};
  o.soft = SoftTerm::kForwardKl;
  o.softened = softened;
  o.squared_temperature = softened ? 1 / (kInvTemperature * kInvTemperature) : 1.f;
  o.weighting = Weighting::kShannon;
  o.entropy_maximum = static_cast<float>(log_vocab);
  o.soft_weight = {0.f, 1.f};
  o.hard_weight = {1.f, -1.f};
  o.hard = HardLabel::kData;
  return o;
}
inline uint32_t fused_features(bool softened) { return objective_features(objective(softened, 1)); }

inline bool reads_teacher(const Trained& trained) {
  return trained.front().first != kStudentAtLabel;
}

// How a device cuts the work.
struct Plans {
  CudaPlan rows;
  FusedPlan fused;

  Plans(const Shape& s, int num_sms, const SharedMemory& memory)
      : rows(plan_cuda_launch(s.num_tokens, s.num_columns, s.element_size(), num_sms)),
        fused(plan_fused_launch(s.num_columns, s.element_size(), memory)) {}
};

// By the kernel's name, in the order in which they are measured.
using Traffic = std::vector<std::pair<std::string, int64_t>>;

inline Traffic traffic(const Shape& s, int64_t num_shards, const Plans& plans) {
  Traffic bytes;
  for (const auto& [name, features] : kFeatureSets) {
    bytes.emplace_back(name, stats_bytes(s, features, plans.rows));
  }
  bytes.emplace_back("merge", merge_bytes(s, kAllFeatures, num_shards));
  bytes.emplace_back("loss", loss_bytes(s, kAllFeatures, num_shards));
  for (const auto& [name, trained] : kGradients) {
    bytes.emplace_back(name, gradient_bytes(s, kAllFeatures, reads_teacher(trained)));
  }
  for (const auto& divergence : kDivergences) {
    bytes.emplace_back("fdiv/" + divergence.first, fdiv_bytes(s, plans.rows));
    for (const auto& gradient : kFdivGradients) {
      bytes.emplace_back(gradient.first + divergence.first, fdiv_gradient_bytes(s, kAllFeatures));
    }
  }
  bytes.emplace_back("scale_rows", scale_rows_bytes(s));
  if (plans.fused.cluster == 0) return bytes;  // the rows do not fit on the chip
  for (const auto& [name, softened] : kObjectives) {
    bytes.emplace_back(name, fused_bytes(s, fused_features(softened)));
  }
  return bytes;
}

}  // namespace bgkd::bench
