// The torch operators: argument checks, allocation, dispatch. The only file that sees ATen tensors.

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <string>

#include "../launch_plan.h"
#include "../vocab_stats.h"

namespace bgkd {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct CpuKernels {
  const char* name;
  decltype(&DEFAULT::compute_stats) stats;
  decltype(&DEFAULT::compute_gradient) gradient;
};

// PyTorch's own choice of instruction set, so that ATEN_CPU_CAPABILITY governs both.
const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = []() -> CpuKernels {
#if defined(BGKD_X86_KERNELS)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return {"AVX512", AVX512::compute_stats, AVX512::compute_gradient};
    if (capability == "AVX2") return {"AVX2", AVX2::compute_stats, AVX2::compute_gradient};
#endif
    return {"DEFAULT", DEFAULT::compute_stats, DEFAULT::compute_gradient};
  }();
  return kernels;
}

// ---- argument checks; `op` is the name in the message

void check_logits(const char* op, const char* name, const Tensor& logits) {
  TORCH_CHECK_TYPE(logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kBFloat16 ||
                       logits.scalar_type() == at::kHalf,
                   op, ": ", name, " must be float32, bfloat16 or float16, got ",
                   logits.scalar_type());
  TORCH_CHECK_VALUE(logits.dim() == 2, op, ": ", name, " must be [N, V_local], got shape ",
                    logits.sizes());
  TORCH_CHECK_VALUE(logits.size(1) <= 1 || logits.stride(1) == 1, op, ": ", name,
                    " must be contiguous along the vocabulary (stride 1), got strides ",
                    logits.strides(), "; call .contiguous() or transpose the other dimensions");
}

int64_t valid_columns(int64_t vocab_size, int64_t vocab_start, int64_t num_columns) {
  return std::clamp<int64_t>(vocab_size - vocab_start, 0, num_columns);
}

StatsParams check_params(const char* op, int64_t features, double temperature,
                         double power_exponent) {
  TORCH_CHECK_VALUE(features >= 0 && features <= kAllFeatures &&
                        features_are_consistent(static_cast<uint32_t>(features)),
                    op, ": features ", features,
                    " asks for statistics of a teacher without the TEACHER feature, or for unknown "
                    "ones");
  // Both are used as float32, so it is the float32 that must be a positive number.
  const auto inv_temperature = static_cast<float>(1.0 / temperature);
  const auto exponent = static_cast<float>(power_exponent);
  TORCH_CHECK_VALUE(std::isnormal(inv_temperature) && inv_temperature > 0, op,
                    ": temperature must be a finite number above 0 (in float32), got ",
                    temperature);
  TORCH_CHECK_VALUE(std::isnormal(exponent) && exponent > 0, op,
                    ": power_exponent must be a finite number above 0 (in float32), got ",
                    power_exponent);
  return {static_cast<uint32_t>(features), inv_temperature, exponent};
}

TokenLabels check_labels(const char* op, const OptionalTensor& labels, int64_t num_tokens,
                         uint32_t features, int64_t ignore_index) {
  if (!labels) {
    TORCH_CHECK_VALUE(!(features & kLabel), op, ": the LABEL feature needs labels, got None");
    return {nullptr, ignore_index};
  }
  TORCH_CHECK_TYPE(labels->scalar_type() == at::kLong, op, ": labels must be int64, got ",
                   labels->scalar_type());
  TORCH_CHECK_VALUE(labels->dim() == 1 && labels->size(0) == num_tokens && labels->is_contiguous(),
                    op, ": labels must be a contiguous [", num_tokens,
                    "], one global token id per row of the logits, got shape ", labels->sizes(),
                    " with strides ", labels->strides());
  TORCH_CHECK_VALUE(labels->device().is_cpu(), op, ": labels must be on cpu like the logits, got ",
                    labels->device());
  return {labels->const_data_ptr<int64_t>(), ignore_index};
}

void check_label_range(const char* op, const TokenLabels& labels, int64_t num_tokens,
                       int64_t vocab_size) {
  if (labels.ids == nullptr) return;
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int64_t id = labels.ids[i];
    TORCH_CHECK_VALUE(labels.skipped(i) || (id >= 0 && id < vocab_size), op, ": labels[", i,
                      "] = ", id, " is outside the vocabulary of ", vocab_size,
                      " token ids and is not ignore_index (", labels.ignore_index, ")");
  }
}

LogitsShard check_shard(const char* op, const Tensor& student, const OptionalTensor& teacher,
                        int64_t vocab_size, int64_t vocab_start, uint32_t features) {
  check_logits(op, "student_logits", student);
  TORCH_CHECK_VALUE(vocab_size > 0 && vocab_size <= kMaxVocabSize, op,
                    ": vocab_size must be in [1, ", kMaxVocabSize, "], got ", vocab_size);
  TORCH_CHECK_VALUE(vocab_start >= 0, op, ": vocab_start must be at least 0, got ", vocab_start);
  LogitsShard shard{};
  shard.dtype = student.scalar_type() == at::kFloat      ? DType::kFloat32
                : student.scalar_type() == at::kBFloat16 ? DType::kBFloat16
                                                         : DType::kFloat16;
  shard.student = student.const_data_ptr();
  shard.student_stride = student.stride(0);
  shard.num_columns = valid_columns(vocab_size, vocab_start, student.size(1));
  shard.vocab_start = vocab_start;
  shard.vocab_size = vocab_size;
  TORCH_CHECK_VALUE(
      teacher.has_value() == ((features & kTeacher) != 0), op,
      ": teacher_logits and the TEACHER feature go together, got ",
      teacher ? "teacher_logits without the feature" : "the feature without teacher_logits");
  if (!teacher) return shard;

  check_logits(op, "teacher_logits", *teacher);
  TORCH_CHECK_TYPE(teacher->scalar_type() == student.scalar_type(), op,
                   ": teacher_logits must have the student's dtype ", student.scalar_type(),
                   ", got ", teacher->scalar_type());
  TORCH_CHECK_VALUE(teacher->device() == student.device(), op,
                    ": teacher_logits must be on the student's device ", student.device(), ", got ",
                    teacher->device());
  TORCH_CHECK_VALUE(teacher->size(0) == student.size(0), op,
                    ": teacher_logits must have the student's ", student.size(0),
                    " rows, got shape ", teacher->sizes());
  const int64_t teacher_columns = valid_columns(vocab_size, vocab_start, teacher->size(1));
  TORCH_CHECK_VALUE(
      teacher_columns == shard.num_columns, op,
      ": teacher and student shards must hold the same token ids; from id ", vocab_start,
      " on the student's holds ", shard.num_columns, " of the ", vocab_size,
      " real ones and the teacher's ", teacher_columns,
      ". Cut both vocabularies at the same ids; only padding after the last id may differ");
  shard.teacher = teacher->const_data_ptr();
  shard.teacher_stride = teacher->stride(0);
  return shard;
}

void check_stats_tensor(const char* op, const char* name, const Tensor& stats,
                        at::IntArrayRef shape) {
  TORCH_CHECK_TYPE(stats.scalar_type() == at::kFloat, op, ": ", name, " must be float32, got ",
                   stats.scalar_type());
  TORCH_CHECK_VALUE(stats.sizes() == shape && stats.is_contiguous(), op, ": ", name,
                    " must be a contiguous ", shape, ", got shape ", stats.sizes());
}

template <class Body>
void for_each_token_range(int64_t num_tokens, int64_t num_columns, uint32_t features,
                          const Body& body) {
  const int64_t grain =
      plan_cpu_launch(num_tokens, num_columns, /*element_size=*/1, features).tokens_per_task;
  at::parallel_for(0, num_tokens, grain, body);
}

// ---- operators

Tensor vocab_stats_cpu(const Tensor& student, const OptionalTensor& teacher,
                       const OptionalTensor& labels, int64_t vocab_size, int64_t vocab_start,
                       int64_t features, double temperature, double power_exponent,
                       int64_t ignore_index) {
  constexpr const char* kOp = "vocab_stats";
  StatsArgs args;
  args.params = check_params(kOp, features, temperature, power_exponent);
  args.logits = check_shard(kOp, student, teacher, vocab_size, vocab_start, args.params.features);
  args.num_tokens = student.size(0);
  args.labels = check_labels(kOp, labels, args.num_tokens, args.params.features, ignore_index);
  check_label_range(kOp, args.labels, args.num_tokens, vocab_size);
  Tensor partial = at::empty({num_rows(args.params.features), args.num_tokens},
                             student.options().dtype(at::kFloat));
  args.partial = partial.mutable_data_ptr<float>();
  for_each_token_range(args.num_tokens, args.logits.num_columns, args.params.features,
                       [&](int64_t begin, int64_t end) { cpu_kernels().stats(args, begin, end); });
  return partial;
}

Tensor merge_stats_cpu(const Tensor& partial, const OptionalTensor& labels, int64_t features,
                       double temperature, double power_exponent, int64_t ignore_index) {
  constexpr const char* kOp = "merge_stats";
  MergeArgs args;
  args.params = check_params(kOp, features, temperature, power_exponent);
  TORCH_CHECK_VALUE(partial.dim() == 3, kOp, ": partial must be [num_shards, rows, N], got shape ",
                    partial.sizes());
  const int64_t rows = num_rows(args.params.features);
  args.num_shards = partial.size(0);
  args.num_tokens = partial.size(2);
  check_stats_tensor(kOp, "partial", partial, {args.num_shards, rows, args.num_tokens});
  args.labels = check_labels(kOp, labels, args.num_tokens, args.params.features, ignore_index);
  Tensor global = at::empty({rows, args.num_tokens}, partial.options());
  args.partial = partial.const_data_ptr<float>();
  args.global = global.mutable_data_ptr<float>();
  for_each_token_range(args.num_tokens, rows * args.num_shards, args.params.features,
                       [&](int64_t begin, int64_t end) { merge_tokens(args, begin, end); });
  return global;
}

void write_gradient(const char* op, const Tensor& grad, const Tensor& global,
                    const Tensor& upstream, const Tensor& student, const OptionalTensor& teacher,
                    const OptionalTensor& labels, int64_t vocab_size, int64_t vocab_start,
                    int64_t features, double temperature, int64_t ignore_index) {
  GradientArgs args;
  args.params = check_params(op, features, temperature, /*power_exponent=*/1.0);
  args.logits = check_shard(op, student, teacher, vocab_size, vocab_start, args.params.features);
  args.num_tokens = student.size(0);
  args.labels = check_labels(op, labels, args.num_tokens, args.params.features, ignore_index);
  const int64_t rows = num_rows(args.params.features);
  check_stats_tensor(op, "global_stats", global, {rows, args.num_tokens});
  check_stats_tensor(op, "upstream", upstream, {rows, args.num_tokens});
  args.global = global.const_data_ptr<float>();
  args.upstream = upstream.const_data_ptr<float>();
  args.grad = grad.mutable_data_ptr();
  args.grad_stride = grad.stride(0);
  args.grad_columns = grad.size(1);
  for_each_token_range(
      args.num_tokens, args.grad_columns, args.params.features,
      [&](int64_t begin, int64_t end) { cpu_kernels().gradient(args, begin, end); });
}

Tensor vocab_stats_backward_cpu(const Tensor& global, const Tensor& upstream, const Tensor& student,
                                const OptionalTensor& teacher, const OptionalTensor& labels,
                                int64_t vocab_size, int64_t vocab_start, int64_t features,
                                double temperature, int64_t ignore_index) {
  Tensor grad = at::empty(student.sizes(), student.options());
  write_gradient("vocab_stats_backward", grad, global, upstream, student, teacher, labels,
                 vocab_size, vocab_start, features, temperature, ignore_index);
  return grad;
}

void vocab_stats_backward_inplace_cpu(Tensor& student, const Tensor& global, const Tensor& upstream,
                                      const OptionalTensor& teacher, const OptionalTensor& labels,
                                      int64_t vocab_size, int64_t vocab_start, int64_t features,
                                      double temperature, int64_t ignore_index) {
  at::assert_no_internal_overlap(student);
  if (teacher) at::assert_no_partial_overlap(student, *teacher);
  write_gradient("vocab_stats_backward_", student, global, upstream, student, teacher, labels,
                 vocab_size, vocab_start, features, temperature, ignore_index);
}

}  // namespace

const char* cpu_kernel_name() { return cpu_kernels().name; }

}  // namespace bgkd

TORCH_LIBRARY(bgkd, m) {
  m.def(
      "vocab_stats(Tensor student_logits, Tensor? teacher_logits, Tensor? labels, int vocab_size, "
      "int vocab_start, int features, float temperature, float power_exponent, int ignore_index) "
      "-> Tensor");
  m.def(
      "merge_stats(Tensor partial, Tensor? labels, int features, float temperature, "
      "float power_exponent, int ignore_index) -> Tensor");
  m.def(
      "vocab_stats_backward(Tensor global_stats, Tensor upstream, Tensor student_logits, "
      "Tensor? teacher_logits, Tensor? labels, int vocab_size, int vocab_start, int features, "
      "float temperature, int ignore_index) -> Tensor");
  m.def(
      "vocab_stats_backward_(Tensor(a!) student_logits, Tensor global_stats, Tensor upstream, "
      "Tensor? teacher_logits, Tensor? labels, int vocab_size, int vocab_start, int features, "
      "float temperature, int ignore_index) -> ()");
}

TORCH_LIBRARY_IMPL(bgkd, CPU, m) {
  m.impl("vocab_stats", bgkd::vocab_stats_cpu);
  m.impl("merge_stats", bgkd::merge_stats_cpu);
  m.impl("vocab_stats_backward", bgkd::vocab_stats_backward_cpu);
  m.impl("vocab_stats_backward_", bgkd::vocab_stats_backward_inplace_cpu);
}
