// The operators' argument checks, the same on every device: torch tensors in, arguments of the
// kernels out. All tensors are found to be on one device. Values that lie in device memory (labels)
// are not looked at. `op` is the name in the message.
#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "../fused_loss.h"
#include "../vocab_fdiv.h"
#include "../vocab_stats.h"

namespace bgkd {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Each leaves the output null.
StatsArgs check_stats_args(const char* op, const Tensor& student, const OptionalTensor& teacher,
                           const OptionalTensor& labels, int64_t vocab_size, int64_t vocab_start,
                           int64_t features, double temperature, double power_exponent,
                           int64_t ignore_index);

MergeArgs check_merge_args(const char* op, const Tensor& partial, const OptionalTensor& labels,
                           int64_t features, double temperature, double power_exponent,
                           int64_t ignore_index);

GradientArgs check_gradient_args(const char* op, const Tensor& global, const Tensor& upstream,
                                 const Tensor& student, const OptionalTensor& teacher,
                                 const OptionalTensor& labels, int64_t vocab_size,
                                 int64_t vocab_start, int64_t features, double temperature,
                                 int64_t ignore_index);

// A divergence of the second sweep, as the operators take it (core/fdiv.h).
struct DivergenceArguments {
  int64_t kind;
  double lambda, alpha, beta;
};

FdivArgs check_fdiv_args(const char* op, const Tensor& student, const Tensor& teacher,
                         const OptionalTensor& labels, const Tensor& global, int64_t vocab_size,
                         int64_t vocab_start, int64_t features,
                         const DivergenceArguments& divergence, int64_t ignore_index);

FdivGradientArgs check_fdiv_gradient_args(const char* op, const Tensor& global,
                                          const Tensor& upstream, const Tensor& sums,
                                          const Tensor& upstream_divergence, const Tensor& student,
                                          const Tensor& teacher, const OptionalTensor& labels,
                                          int64_t vocab_size, int64_t vocab_start, int64_t features,
                                          double temperature, const DivergenceArguments& divergence,
                                          int64_t ignore_index);

// A named objective, as the operators take it. The enumerations are those of core/objective.h.
struct ObjectiveArguments {
  int64_t soft_term;
  bool softened;
  double adaptive_mu;
  bool adaptive_detach;
  int64_t weighting;
  double entropy_maximum;
  double soft_offset, soft_slope, hard_offset, hard_slope;
  int64_t hard_label;
  double entropy_regularizer;
};

FusedArgs check_fused_args(const char* op, const Tensor& student, const OptionalTensor& teacher,
                           const OptionalTensor& labels, int64_t vocab_size, int64_t features,
                           double temperature, double power_exponent, int64_t ignore_index,
                           const ObjectiveArguments& objective);

LossArgs check_loss_args(const char* op, const Tensor& partial, const OptionalTensor& labels,
                         int64_t features, double temperature, double power_exponent,
                         int64_t ignore_index, const ObjectiveArguments& objective);

ScaleArgs check_scale_args(const char* op, const Tensor& rows, const Tensor& scale);

}  // namespace bgkd
