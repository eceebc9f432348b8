#include "../fused_loss.h"

namespace bgkd {

void evaluate_tokens(const LossArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) evaluate_token(args, i);
}

void fused_tokens(const FusedArgs& args, const FusedCpuKernels& kernels, float* partial,
                  float* upstream, int64_t begin, int64_t end) {
  const StatsArgs stats{args.logits, args.labels, args.params, args.num_tokens, partial};
  const LossArgs loss{{partial, 1, args.labels, args.params, args.num_tokens, args.global},
                      args.objective,
                      args.losses,
                      upstream};
  const GradientArgs gradient{args.logits,     args.labels,      args.params,
                              args.num_tokens, args.global,      upstream,
                              args.grad,       args.grad_stride, args.grad_columns};
  // Token by token: the gradient finds the row in the processor's cache.
  for (int64_t i = begin; i < end; ++i) {
    kernels.stats(stats, i, i + 1);
    evaluate_token(loss, i);
    kernels.gradient(gradient, i, i + 1);
  }
}

}  // namespace bgkd
