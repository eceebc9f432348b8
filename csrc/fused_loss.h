// The contract of losses whose gradient is computed with them, in the manner of vocab_stats.h: for
// a vocabulary that is not sharded from one read of both rows, for a shard in three phases.
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

// Between the statistics and the gradient of a shard: the merge and the objective on it.
struct LossArgs {
  MergeArgs merge;
  ObjectiveParams objective;
  float* losses;    // out: [kNumTokenLosses, num_tokens]
  float* upstream;  // out: [rows, num_tokens], d loss / d global, for GradientArgs
};

BGKD_INLINE void evaluate_token(const LossArgs& args, int64_t i) {
  const MergeArgs& merge = args.merge;
  TokenStats global{}, upstream{};
  TokenLoss loss{};
  if (!merge.labels.skipped(i)) {
    global =
        finalize(merge_parts(merge.partial, merge.num_shards, merge.num_tokens, i, merge.params),
                 merge.params);
    loss = evaluate(args.objective, global, upstream);
  }
  store_stats(global, merge.global, merge.num_tokens, i, merge.params.features);
  store_stats(upstream, args.upstream, merge.num_tokens, i, merge.params.features);
  store_loss(loss, args.losses, merge.num_tokens, i);
}

// Multiplies row i by scale[i], in place. Rows of scale 1 are not touched; scale 0 gives 0.
struct ScaleArgs {
  DType dtype;
  void* rows;  // [num_tokens, num_columns]
  int64_t stride;
  int64_t num_tokens;
  int64_t num_columns;
  const float* scale;
};

// ---- CPU

struct FusedCpuKernels {
  void (*stats)(const StatsArgs& args, int64_t begin, int64_t end);
  void (*gradient)(const GradientArgs& args, int64_t begin, int64_t end);
};

// partial, upstream: scratch memory, [rows, num_tokens] each.
void fused_tokens(const FusedArgs& args, const FusedCpuKernels& kernels, float* partial,
                  float* upstream, int64_t begin, int64_t end);

void evaluate_tokens(const LossArgs& args, int64_t begin, int64_t end);

#define BGKD_DECLARE(capability)                                      \
  namespace capability {                                              \
  void scale_rows(const ScaleArgs& args, int64_t begin, int64_t end); \
  }
BGKD_FOR_EACH_CAPABILITY(BGKD_DECLARE)
#undef BGKD_DECLARE

}  // namespace bgkd
