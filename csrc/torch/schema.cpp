// The operators' signatures, for every device.

#include <torch/library.h>

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
  // kind, lam, alpha, beta: a divergence (core/fdiv.h). Returns sums [2, N] of this shard: those of
  // all shards are to be added; the first one is then the divergence.
  m.def(
      "vocab_fdiv(Tensor student_logits, Tensor teacher_logits, Tensor? labels, "
      "Tensor global_stats, int vocab_size, int vocab_start, int features, int kind, float lam, "
      "float alpha, float beta, int ignore_index) -> Tensor");
  // The gradient of the statistics and of the divergence together.
  m.def(
      "vocab_fdiv_backward(Tensor global_stats, Tensor upstream, Tensor sums, "
      "Tensor upstream_divergence, Tensor student_logits, Tensor teacher_logits, Tensor? labels, "
      "int vocab_size, int vocab_start, int features, float temperature, int kind, float lam, "
      "float alpha, float beta, int ignore_index) -> Tensor");
  m.def(
      "vocab_fdiv_backward_(Tensor(a!) student_logits, Tensor global_stats, Tensor upstream, "
      "Tensor sums, Tensor upstream_divergence, Tensor teacher_logits, Tensor? labels, "
      "int vocab_size, int vocab_start, int features, float temperature, int kind, float lam, "
      "float alpha, float beta, int ignore_index) -> ()");
  // The gradient of losses[0].sum() overwrites student_logits. Returns global_stats and losses
  // [5, N]: loss, hard, soft, soft weight, hard weight. The objective: core/objective.h; each
  // weight is offset + slope u.
  m.def(
      "fused_loss_(Tensor(a!) student_logits, Tensor? teacher_logits, Tensor? labels, "
      "int vocab_size, int features, float temperature, float power_exponent, int ignore_index, "
      "int soft_term, bool softened, float adaptive_mu, bool adaptive_detach, int weighting, "
      "float entropy_maximum, float soft_offset, float soft_slope, float hard_offset, "
      "float hard_slope, int hard_label, float entropy_regularizer) -> (Tensor, Tensor)");
  // merge_stats and the objective: global_stats, losses, and the derivatives of losses[0].sum() for
  // vocab_stats_backward.
  m.def(
      "merge_loss(Tensor partial, Tensor? labels, int features, float temperature, "
      "float power_exponent, int ignore_index, int soft_term, bool softened, float adaptive_mu, "
      "bool adaptive_detach, int weighting, float entropy_maximum, float soft_offset, "
      "float soft_slope, float hard_offset, float hard_slope, int hard_label, "
      "float entropy_regularizer) -> (Tensor, Tensor, Tensor)");
  m.def("scale_rows_(Tensor(a!) rows, Tensor scale) -> ()");
}
