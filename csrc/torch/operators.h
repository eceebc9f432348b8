// The operators, whatever the device: check the arguments, allocate the result, let the device's
// executor compute it.
//
// An Executor lives for one call. Executor(op, device, num_tokens, num_columns) refuses sizes that
// it cannot count and makes the device current, for the allocations too; run(args) computes, or
// puts into the device's queue, with one overload for each kind of arguments.
#pragma once

#include <ATen/MemoryOverlap.h>
#include <torch/library.h>

#include "checks.h"

namespace bgkd {

template <class Executor>
struct Operators {
  static Tensor vocab_stats(const Tensor& student, const OptionalTensor& teacher,
                            const OptionalTensor& labels, int64_t vocab_size, int64_t vocab_start,
                            int64_t features, double temperature, double power_exponent,
                            int64_t ignore_index) {
    constexpr const char* kOp = "vocab_stats";
    StatsArgs args = check_stats_args(kOp, student, teacher, labels, vocab_size, vocab_start,
                                      features, temperature, power_exponent, ignore_index);
    const Executor executor(kOp, student.device(), args.num_tokens, student.size(1));
    Tensor partial = at::empty({num_rows(args.params.features), args.num_tokens},
                               student.options().dtype(at::kFloat));
    args.partial = partial.mutable_data_ptr<float>();
    executor.run(args);
    return partial;
  }

  static Tensor merge_stats(const Tensor& partial, const OptionalTensor& labels, int64_t features,
                            double temperature, double power_exponent, int64_t ignore_index) {
    constexpr const char* kOp = "merge_stats";
    MergeArgs args =
        check_merge_args(kOp, partial, labels, features, temperature, power_exponent, ignore_index);
    const Executor executor(kOp, partial.device(), args.num_tokens, /*num_columns=*/0);
    Tensor global = at::empty({partial.size(1), args.num_tokens}, partial.options());
    args.global = global.mutable_data_ptr<float>();
    executor.run(args);
    return global;
  }

  static Tensor vocab_stats_backward(const Tensor& global, const Tensor& upstream,
                                     const Tensor& student, const OptionalTensor& teacher,
                                     const OptionalTensor& labels, int64_t vocab_size,
                                     int64_t vocab_start, int64_t features, double temperature,
                                     int64_t ignore_index) {
    constexpr const char* kOp = "vocab_stats_backward";
    GradientArgs args =
        check_gradient_args(kOp, global, upstream, student, teacher, labels, vocab_size,
                            vocab_start, features, temperature, ignore_index);
    const Executor executor(kOp, student.device(), args.num_tokens, student.size(1));
    Tensor grad = at::empty(student.sizes(), student.options());
    write_gradient(executor, args, args, grad);
    return grad;
  }

  static void vocab_stats_backward_inplace(Tensor& student, const Tensor& global,
                                           const Tensor& upstream, const OptionalTensor& teacher,
                                           const OptionalTensor& labels, int64_t vocab_size,
                                           int64_t vocab_start, int64_t features,
                                           double temperature, int64_t ignore_index) {
    constexpr const char* kOp = "vocab_stats_backward_";
    at::assert_no_internal_overlap(student);
    if (teacher) at::assert_no_partial_overlap(student, *teacher);
    GradientArgs args =
        check_gradient_args(kOp, global, upstream, student, teacher, labels, vocab_size,
                            vocab_start, features, temperature, ignore_index);
    const Executor executor(kOp, student.device(), args.num_tokens, student.size(1));
    write_gradient(executor, args, args, student);
  }

  static Tensor vocab_fdiv(const Tensor& student, const Tensor& teacher,
                           const OptionalTensor& labels, const Tensor& global, int64_t vocab_size,
                           int64_t vocab_start, int64_t features, int64_t kind, double lambda,
                           double alpha, double beta, int64_t ignore_index) {
    constexpr const char* kOp = "vocab_fdiv";
    FdivArgs args = check_fdiv_args(kOp, student, teacher, labels, global, vocab_size, vocab_start,
                                    features, {kind, lambda, alpha, beta}, ignore_index);
    const Executor executor(kOp, student.device(), args.num_tokens, student.size(1));
    Tensor sums = at::empty({kNumFdivSums, args.num_tokens}, student.options().dtype(at::kFloat));
    args.sums = sums.mutable_data_ptr<float>();
    executor.run(args);
    return sums;
  }

  static Tensor vocab_fdiv_backward(const Tensor& global, const Tensor& upstream,
                                    const Tensor& sums, const Tensor& upstream_divergence,
                                    const Tensor& student, const Tensor& teacher,
                                    const OptionalTensor& labels, int64_t vocab_size,
                                    int64_t vocab_start, int64_t features, double temperature,
                                    int64_t kind, double lambda, double alpha, double beta,
                                    int64_t ignore_index) {
    constexpr const char* kOp = "vocab_fdiv_backward";
    FdivGradientArgs args = check_fdiv_gradient_args(
        kOp, global, upstream, sums, upstream_divergence, student, teacher, labels, vocab_size,
        vocab_start, features, temperature, {kind, lambda, alpha, beta}, ignore_index);
    const Executor executor(kOp, student.device(), args.stats.num_tokens, student.size(1));
    Tensor grad = at::empty(student.sizes(), student.options());
    write_gradient(executor, args, args.stats, grad);
    return grad;
  }

  static void vocab_fdiv_backward_inplace(Tensor& student, const Tensor& global,
                                          const Tensor& upstream, const Tensor& sums,
                                          const Tensor& upstream_divergence, const Tensor& teacher,
                                          const OptionalTensor& labels, int64_t vocab_size,
                                          int64_t vocab_start, int64_t features, double temperature,
                                          int64_t kind, double lambda, double alpha, double beta,
                                          int64_t ignore_index) {
    constexpr const char* kOp = "vocab_fdiv_backward_";
    at::assert_no_internal_overlap(student);
    at::assert_no_partial_overlap(student, teacher);
    FdivGradientArgs args = check_fdiv_gradient_args(
        kOp, global, upstream, sums, upstream_divergence, student, teacher, labels, vocab_size,
        vocab_start, features, temperature, {kind, lambda, alpha, beta}, ignore_index);
    const Executor executor(kOp, student.device(), args.stats.num_tokens, student.size(1));
    write_gradient(executor, args, args.stats, student);
  }

  static std::tuple<Tensor, Tensor> fused_loss_inplace(
      Tensor& student, const OptionalTensor& teacher, const OptionalTensor& labels,
      int64_t vocab_size, int64_t features, double temperature, double power_exponent,
      int64_t ignore_index, int64_t soft_term, bool softened, double adaptive_mu,
      bool adaptive_detach, int64_t weighting, double entropy_maximum, double soft_offset,
      double soft_slope, double hard_offset, double hard_slope, int64_t hard_label,
      double entropy_regularizer) {
    constexpr const char* kOp = "fused_loss_";
    at::assert_no_internal_overlap(student);
    if (teacher) at::assert_no_partial_overlap(student, *teacher);
    FusedArgs args = check_fused_args(
        kOp, student, teacher, labels, vocab_size, features, temperature, power_exponent,
        ignore_index,
        {soft_term, softened, adaptive_mu, adaptive_detach, weighting, entropy_maximum, soft_offset,
         soft_slope, hard_offset, hard_slope, hard_label, entropy_regularizer});
    const Executor executor(kOp, student.device(), args.num_tokens, student.size(1));
    const auto options = student.options().dtype(at::kFloat);
    Tensor global = at::empty({num_rows(args.params.features), args.num_tokens}, options);
    Tensor losses = at::empty({kNumTokenLosses, args.num_tokens}, options);
    args.global = global.mutable_data_ptr<float>();
    args.losses = losses.mutable_data_ptr<float>();
    args.grad = student.mutable_data_ptr();
    args.grad_stride = student.stride(0);
    args.grad_columns = student.size(1);
    executor.run(args);
    return {global, losses};
  }

  static std::tuple<Tensor, Tensor, Tensor> merge_loss(
      const Tensor& partial, const OptionalTensor& labels, int64_t features, double temperature,
      double power_exponent, int64_t ignore_index, int64_t soft_term, bool softened,
      double adaptive_mu, bool adaptive_detach, int64_t weighting, double entropy_maximum,
      double soft_offset, double soft_slope, double hard_offset, double hard_slope,
      int64_t hard_label, double entropy_regularizer) {
    constexpr const char* kOp = "merge_loss";
    LossArgs args = check_loss_args(
        kOp, partial, labels, features, temperature, power_exponent, ignore_index,
        {soft_term, softened, adaptive_mu, adaptive_detach, weighting, entropy_maximum, soft_offset,
         soft_slope, hard_offset, hard_slope, hard_label, entropy_regularizer});
    const int64_t num_tokens = args.merge.num_tokens;
    const Executor executor(kOp, partial.device(), num_tokens, /*num_columns=*/0);
    Tensor global = at::empty({partial.size(1), num_tokens}, partial.options());
    Tensor upstream = at::empty_like(global);
    Tensor losses = at::empty({kNumTokenLosses, num_tokens}, partial.options());
    args.merge.global = global.mutable_data_ptr<float>();
    args.losses = losses.mutable_data_ptr<float>();
    args.upstream = upstream.mutable_data_ptr<float>();
    executor.run(args);
    return {global, losses, upstream};
  }

  static void scale_rows_inplace(Tensor& rows, const Tensor& scale) {
    constexpr const char* kOp = "scale_rows_";
    at::assert_no_internal_overlap(rows);
    ScaleArgs args = check_scale_args(kOp, rows, scale);
    const Executor executor(kOp, rows.device(), args.num_tokens, args.num_columns);
    args.rows = rows.mutable_data_ptr();
    executor.run(args);
  }

  static void register_in(torch::Library& m) {
    m.impl("vocab_stats", &vocab_stats);
    m.impl("merge_stats", &merge_stats);
    m.impl("vocab_stats_backward", &vocab_stats_backward);
    m.impl("vocab_stats_backward_", &vocab_stats_backward_inplace);
    m.impl("vocab_fdiv", &vocab_fdiv);
    m.impl("vocab_fdiv_backward", &vocab_fdiv_backward);
    m.impl("vocab_fdiv_backward_", &vocab_fdiv_backward_inplace);
    m.impl("fused_loss_", &fused_loss_inplace);
    m.impl("merge_loss", &merge_loss);
    m.impl("scale_rows_", &scale_rows_inplace);
  }

 private:
  // `output`: the part of `args` that says where the gradient goes.
  template <class Args>
  static void write_gradient(const Executor& executor, const Args& args, GradientArgs& output,
                             const Tensor& grad) {
    output.grad = grad.mutable_data_ptr();
    output.grad_stride = grad.stride(0);
    output.grad_columns = grad.size(1);
    executor.run(args);
  }
};

}  // namespace bgkd
