#include "checks.h"

#include <cmath>

namespace bgkd {
namespace {

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

DType dtype_of(const Tensor& logits) {
  if (logits.scalar_type() == at::kFloat) return DType::kFloat32;
  return logits.scalar_type() == at::kBFloat16 ? DType::kBFloat16 : DType::kFloat16;
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

// `like`: the tensor whose device the labels must share.
TokenLabels check_labels(const char* op, const OptionalTensor& labels, const Tensor& like,
                         int64_t num_tokens, uint32_t features, int64_t ignore_index) {
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
  TORCH_CHECK_VALUE(labels->device() == like.device(), op, ": labels must be on ", like.device(),
                    " like the logits, got ", labels->device());
  return {labels->const_data_ptr<int64_t>(), ignore_index};
}

LogitsShard check_shard(const char* op, const Tensor& student, const OptionalTensor& teacher,
                        int64_t vocab_size, int64_t vocab_start, uint32_t features) {
  check_logits(op, "student_logits", student);
  TORCH_CHECK_VALUE(vocab_size > 0 && vocab_size <= kMaxVocabSize, op,
                    ": vocab_size must be in [1, ", kMaxVocabSize, "], got ", vocab_size);
  TORCH_CHECK_VALUE(vocab_start >= 0, op, ": vocab_start must be at least 0, got ", vocab_start);
  LogitsShard shard{};
  shard.dtype = dtype_of(student);
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
                        at::IntArrayRef shape, const Tensor& like) {
  TORCH_CHECK_TYPE(stats.scalar_type() == at::kFloat, op, ": ", name, " must be float32, got ",
                   stats.scalar_type());
  TORCH_CHECK_VALUE(stats.sizes() == shape && stats.is_contiguous(), op, ": ", name,
                    " must be a contiguous ", shape, ", got shape ", stats.sizes());
  TORCH_CHECK_VALUE(stats.device() == like.device(), op, ": ", name, " must be on ", like.device(),
                    " like the logits, got ", stats.device());
}

ObjectiveParams check_objective(const char* op, const ObjectiveArguments& objective,
                                double temperature, uint32_t features) {
  TORCH_CHECK_VALUE(objective.soft_term >= 0 && objective.soft_term <= 3 &&
                        objective.weighting >= 0 && objective.weighting <= 5 &&
                        objective.hard_label >= 0 && objective.hard_label <= 1,
                    op, ": unknown objective: soft_term ", objective.soft_term, ", weighting ",
                    objective.weighting, ", hard_label ", objective.hard_label);
  ObjectiveParams params{};
  params.soft = static_cast<SoftTerm>(objective.soft_term);
  params.softened = objective.softened;
  params.squared_temperature =
      objective.softened ? static_cast<float>(temperature * temperature) : 1.f;
  params.adaptive_mu = static_cast<float>(objective.adaptive_mu);
  params.adaptive_detach = objective.adaptive_detach;
  params.weighting = static_cast<Weighting>(objective.weighting);
  params.entropy_maximum = static_cast<float>(objective.entropy_maximum);
  params.soft_weight = {static_cast<float>(objective.soft_offset),
                        static_cast<float>(objective.soft_slope)};
  params.hard_weight = {static_cast<float>(objective.hard_offset),
                        static_cast<float>(objective.hard_slope)};
  params.hard = static_cast<HardLabel>(objective.hard_label);
  params.entropy_regularizer = static_cast<float>(objective.entropy_regularizer);
  const uint32_t needed = objective_features(params);
  TORCH_CHECK_VALUE((needed & ~features) == 0, op, ": the objective reads features ", needed,
                    ", only ", features, " are asked for");
  return params;
}

struct CheckedDivergence {
  FDivergence kind;
  FdivParams params;
};

// 0, up to rounding, or far enough from it to be divided by.
bool is_exponent(double x) {
  return std::abs(x) < kZeroExponent ||
         (std::abs(x) >= kSmallestExponentOfPower && std::abs(x) <= kLargestExponentOfPower);
}

CheckedDivergence check_divergence(const char* op, const DivergenceArguments& divergence) {
  const auto [kind, lambda, alpha, beta] = divergence;
  TORCH_CHECK_VALUE(kind >= 0 && kind < kNumFDivergences, op, ": kind must be in [0, ",
                    kNumFDivergences, "), one of core/fdiv.h, got ", kind);
  const CheckedDivergence checked{
      static_cast<FDivergence>(kind),
      {static_cast<float>(lambda), static_cast<float>(alpha), static_cast<float>(beta)}};
  TORCH_CHECK_VALUE(
      !is_mixture(checked.kind) || (lambda >= kSmallestLambda && lambda <= 1 - kSmallestLambda), op,
      ": lam must be between 0 and 1, by at least 2^-24, got ", lambda);
  TORCH_CHECK_VALUE(checked.kind != FDivergence::kAlphaBeta ||
                        (is_exponent(alpha) && is_exponent(beta) && is_exponent(alpha + beta)),
                    op, ": alpha, beta and their sum must each be 0 or of a size between ",
                    kSmallestExponentOfPower, " and ", kLargestExponentOfPower, ", got ", alpha,
                    " and ", beta);
  return checked;
}

}  // namespace

StatsArgs check_stats_args(const char* op, const Tensor& student, const OptionalTensor& teacher,
                           const OptionalTensor& labels, int64_t vocab_size, int64_t vocab_start,
                           int64_t features, double temperature, double power_exponent,
                           int64_t ignore_index) {
  StatsArgs args{};
  args.params = check_params(op, features, temperature, power_exponent);
  args.logits = check_shard(op, student, teacher, vocab_size, vocab_start, args.params.features);
  args.num_tokens = student.size(0);
  args.labels =
      check_labels(op, labels, student, args.num_tokens, args.params.features, ignore_index);
  return args;
}

MergeArgs check_merge_args(const char* op, const Tensor& partial, const OptionalTensor& labels,
                           int64_t features, double temperature, double power_exponent,
                           int64_t ignore_index) {
  MergeArgs args{};
  args.params = check_params(op, features, temperature, power_exponent);
  TORCH_CHECK_VALUE(partial.dim() == 3, op, ": partial must be [num_shards, rows, N], got shape ",
                    partial.sizes());
  args.num_shards = partial.size(0);
  args.num_tokens = partial.size(2);
  check_stats_tensor(op, "partial", partial,
                     {args.num_shards, num_rows(args.params.features), args.num_tokens}, partial);
  args.labels =
      check_labels(op, labels, partial, args.num_tokens, args.params.features, ignore_index);
  args.partial = partial.const_data_ptr<float>();
  return args;
}

GradientArgs check_gradient_args(const char* op, const Tensor& global, const Tensor& upstream,
                                 const Tensor& student, const OptionalTensor& teacher,
                                 const OptionalTensor& labels, int64_t vocab_size,
                                 int64_t vocab_start, int64_t features, double temperature,
                                 int64_t ignore_index) {
  GradientArgs args{};
  args.params = check_params(op, features, temperature, /*power_exponent=*/1.0);
  args.logits = check_shard(op, student, teacher, vocab_size, vocab_start, args.params.features);
  args.num_tokens = student.size(0);
  args.labels =
      check_labels(op, labels, student, args.num_tokens, args.params.features, ignore_index);
  const int64_t rows = num_rows(args.params.features);
  check_stats_tensor(op, "global_stats", global, {rows, args.num_tokens}, student);
  check_stats_tensor(op, "upstream", upstream, {rows, args.num_tokens}, student);
  args.global = global.const_data_ptr<float>();
  args.upstream = upstream.const_data_ptr<float>();
  return args;
}

FdivArgs check_fdiv_args(const char* op, const Tensor& student, const Tensor& teacher,
                         const OptionalTensor& labels, const Tensor& global, int64_t vocab_size,
                         int64_t vocab_start, int64_t features,
                         const DivergenceArguments& divergence, int64_t ignore_index) {
  const auto [kind, params] = check_divergence(op, divergence);
  const StatsArgs stats =
      check_stats_args(op, student, teacher, labels, vocab_size, vocab_start, features,
                       /*temperature=*/1.0, /*power_exponent=*/1.0, ignore_index);
  check_stats_tensor(op, "global_stats", global,
                     {num_rows(stats.params.features), stats.num_tokens}, student);
  FdivArgs args{};
  args.logits = stats.logits;
  args.labels = stats.labels;
  args.kind = kind;
  args.params = params;
  args.features = stats.params.features;
  args.num_tokens = stats.num_tokens;
  args.global = global.const_data_ptr<float>();
  return args;
}

FdivGradientArgs check_fdiv_gradient_args(const char* op, const Tensor& global,
                                          const Tensor& upstream, const Tensor& sums,
                                          const Tensor& upstream_divergence, const Tensor& student,
                                          const Tensor& teacher, const OptionalTensor& labels,
                                          int64_t vocab_size, int64_t vocab_start, int64_t features,
                                          double temperature, const DivergenceArguments& divergence,
                                          int64_t ignore_index) {
  const auto [kind, params] = check_divergence(op, divergence);
  FdivGradientArgs args{};
  args.stats = check_gradient_args(op, global, upstream, student, teacher, labels, vocab_size,
                                   vocab_start, features, temperature, ignore_index);
  const int64_t num_tokens = args.stats.num_tokens;
  check_stats_tensor(op, "sums", sums, {kNumFdivSums, num_tokens}, student);
  check_stats_tensor(op, "upstream_divergence", upstream_divergence, {num_tokens}, student);
  args.kind = kind;
  args.params = params;
  args.sums = sums.const_data_ptr<float>();
  args.upstream = upstream_divergence.const_data_ptr<float>();
  return args;
}

FusedArgs check_fused_args(const char* op, const Tensor& student, const OptionalTensor& teacher,
                           const OptionalTensor& labels, int64_t vocab_size, int64_t features,
                           double temperature, double power_exponent, int64_t ignore_index,
                           const ObjectiveArguments& objective) {
  const StatsArgs stats =
      check_stats_args(op, student, teacher, labels, vocab_size, /*vocab_start=*/0, features,
                       temperature, power_exponent, ignore_index);
  TORCH_CHECK_VALUE(stats.logits.num_columns == vocab_size, op,
                    ": the logits must hold the whole vocabulary of ", vocab_size,
                    " token ids, got ", stats.logits.num_columns,
                    "; a shard takes vocab_stats and vocab_stats_backward");
  FusedArgs args{};
  args.logits = stats.logits;
  args.labels = stats.labels;
  args.params = stats.params;
  args.num_tokens = stats.num_tokens;
  args.objective = check_objective(op, objective, temperature, args.params.features);
  return args;
}

LossArgs check_loss_args(const char* op, const Tensor& partial, const OptionalTensor& labels,
                         int64_t features, double temperature, double power_exponent,
                         int64_t ignore_index, const ObjectiveArguments& objective) {
  LossArgs args{};
  args.merge =
      check_merge_args(op, partial, labels, features, temperature, power_exponent, ignore_index);
  args.objective = check_objective(op, objective, temperature, args.merge.params.features);
  return args;
}

ScaleArgs check_scale_args(const char* op, const Tensor& rows, const Tensor& scale) {
  check_logits(op, "rows", rows);
  check_stats_tensor(op, "scale", scale, {rows.size(0)}, rows);
  ScaleArgs args{};
  args.dtype = dtype_of(rows);
  args.stride = rows.stride(0);
  args.num_tokens = rows.size(0);
  args.num_columns = rows.size(1);
  args.scale = scale.const_data_ptr<float>();
  return args;
}

}  // namespace bgkd
