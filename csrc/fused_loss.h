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

// The CPU's kernels of one instruction set.
struct FusedCpuKernels {
  void (*stats)(const StatsArgs& args, int64_t begin, int64_t end);
  void (*gradient)(const GradientArgs& args, int64_t begin, int64_t end);
};

// partial, upstream: scratch memory, [rows, num_tokens] each.
void fused_tokens(const FusedArgs& args, const FusedCpuKernels& kernels, float* partial,
                  float* upstream, int64_t begin, int64_t end);

}  // namespace bgkd
