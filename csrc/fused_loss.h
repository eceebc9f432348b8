// The contract of the fused loss: statistics, objective and gradient from one read of both rows.
// For a vocabulary that is not sharded, in the manner of vocab_stats.h.
#pragma once

#include "core/objective.h"
#include "vocab_stats.h"

namespace bgkd {

struct FusedArgs {
  LogitsShard logits;  // vocab_start 0, num_columns = vocab_size
  TokenLabels labels;
  StatsParams params;
  ObjectiveParams objective;
  int64_t num_tokens;
  float* global;  // out: [rows, num_tokens]
  float* losses;  // out: [kNumTokenLosses, num_tokens], in the order of TokenLoss
  void* grad;     // out: d loss / d student logits; may be the student logits themselves
  int64_t grad_stride;
  int64_t grad_columns;
};

}  // namespace bgkd
