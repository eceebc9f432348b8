#include "../fused_loss.h"

namespace bgkd {

void fused_tokens(const FusedArgs& args, const FusedCpuKernels& kernels, float* partial,
                  float* upstream, int64_t begin, int64_t end) {
  const StatsArgs stats{args.logits, args.labels, args.params, args.num_tokens, partial};
  const MergeArgs merge{partial, 1, args.labels, args.params, args.num_tokens, args.global};
  const GradientArgs gradient{args.logits,     args.labels,      args.params,
                              args.num_tokens, args.global,      upstream,
                              args.grad,       args.grad_stride, args.grad_columns};
  // Token by token: the gradient finds the row in the processor's cache.
  for (int64_t i = begin; i < end; ++i) {
    kernels.stats(stats, i, i + 1);
    merge_tokens(merge, i, i + 1);
    TokenStats global{}, derivative{};
    TokenLoss loss{};
    if (!args.labels.skipped(i)) {
      load_stats(global, args.global, args.num_tokens, i, args.params.features);
      loss = evaluate(args.objective, global, derivative);
    }
    store_loss(loss, args.losses, args.num_tokens, i);
    store_stats(derivative, upstream, args.num_tokens, i, args.params.features);
    kernels.gradient(gradient, i, i + 1);
  }
}

}  // namespace bgkd
