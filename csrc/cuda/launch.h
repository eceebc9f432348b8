// What the CUDA side offers: launchers on raw pointers of the device. None of them allocates,
// synchronizes or reads device memory on the host, so that all can be captured into a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include "../fused_loss.h"
#include "../launch_plan.h"
#include "../vocab_fdiv.h"
#include "../vocab_stats.h"

namespace bgkd {

// Partial statistics of this shard. workspace: stats_workspace_floats(plan, ...) floats, or null
// when that is 0.
cudaError_t launch_vocab_stats(const StatsArgs& args, const CudaPlan& plan, float* workspace,
                               cudaStream_t stream);

// Partial statistics of all shards, in rank order, to global ones.
cudaError_t launch_merge_stats(const MergeArgs& args, cudaStream_t stream);

// The same, and the objective on them.
cudaError_t launch_loss(const LossArgs& args, cudaStream_t stream);

// d loss / d student logits.
cudaError_t launch_vocab_gradient(const GradientArgs& args, const CudaPlan& plan,
                                  cudaStream_t stream);

// Sums of a divergence over this shard. workspace: plan.parts * kNumFdivSums * num_tokens floats,
// or null when there is one part.
cudaError_t launch_vocab_fdiv(const FdivArgs& args, const CudaPlan& plan, float* workspace,
                              cudaStream_t stream);

// Its gradient and that of the statistics.
cudaError_t launch_vocab_fdiv_gradient(const FdivGradientArgs& args, const CudaPlan& plan,
                                       cudaStream_t stream);

// Losses and gradient from one read. Fails with cudaErrorInvalidConfiguration when no cluster can
// hold a row (plan.cluster = 0).
cudaError_t launch_fused_loss(const FusedArgs& args, const FusedPlan& plan, cudaStream_t stream);

cudaError_t launch_scale_rows(const ScaleArgs& args, cudaStream_t stream);

}  // namespace bgkd
