// Bytes that a kernel has to move between the chip and its memory: every number once. No CUDA here.
#pragma once

#include "../../csrc/fused_loss.h"
#include "../../csrc/launch_plan.h"
#include "../../csrc/vocab_fdiv.h"
#include "options.h"

namespace bgkd::bench {

// `tensors` of logits read or written, and for each token its label and some float32 numbers.
inline int64_t row_bytes(const Shape& s, int tensors, int64_t numbers) {
  return tensors * s.tensor_bytes() + s.num_tokens * (8 + 4 * numbers);
}

// `numbers` results for each token; parts of a row are written, and read again to be merged.
inline int64_t sum_bytes(const Shape& s, int tensors, int64_t inputs, int64_t numbers, int parts) {
  return row_bytes(s, tensors, inputs + numbers * (parts > 1 ? 2 * parts + 1 : 1));
}

inline int64_t stats_bytes(const Shape& s, uint32_t features, const CudaPlan& plan) {
  return sum_bytes(s, (features & kTeacher) ? 2 : 1, 0, num_rows(features), plan.parts);
}

inline int64_t merge_bytes(const Shape& s, uint32_t features, int64_t num_shards) {
  return row_bytes(s, 0, (num_shards + 1) * num_rows(features));
}

// The merge, the losses, and the statistics' upstream gradients.
inline int64_t loss_bytes(const Shape& s, uint32_t features, int64_t num_shards) {
  return row_bytes(s, 0, (num_shards + 2) * num_rows(features) + kNumTokenLosses);
}

// Statistics and their upstream gradients are read, too.
inline int64_t gradient_bytes(const Shape& s, uint32_t features, bool reads_teacher) {
  return row_bytes(s, reads_teacher ? 3 : 2, 2 * num_rows(features));
}

// Maximum and log-sum of both models are read.
inline int64_t fdiv_bytes(const Shape& s, const CudaPlan& plan) {
  return sum_bytes(s, 2, 4, kNumFdivSums, plan.parts);
}
// What the statistics' gradient reads, the slope and its upstream gradient.
inline int64_t fdiv_gradient_bytes(const Shape& s, uint32_t features) {
  return row_bytes(s, 3, 2 * num_rows(features) + 2);
}

// No labels.
inline int64_t scale_rows_bytes(const Shape& s) { return 2 * s.tensor_bytes() + 4 * s.num_tokens; }

inline int64_t fused_bytes(const Shape& s, uint32_t features) {
  return row_bytes(s, 3, num_rows(features) + kNumTokenLosses);
}

}  // namespace bgkd::bench
