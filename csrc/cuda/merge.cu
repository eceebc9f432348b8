// Merges partial statistics: those of the parts of a row to one partial statistic of the shard, and
// those of all shards to global ones, with the objective on them if wanted.

#include "launch.h"
#include "merge_parts.h"

namespace bgkd {
namespace {

constexpr int kThreads = 128;

int blocks_for(int64_t num_tokens) {
  return static_cast<int>((num_tokens + kThreads - 1) / kThreads);
}

// One thread a token; partial: [num_parts, rows, num_tokens].
template <bool kFinal>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const float* partial, int64_t num_parts, const TokenLabels labels,
                 const StatsParams params, int64_t num_tokens, float* merged) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= num_tokens) return;
  TokenStats result{};
  if (!kFinal || !labels.skipped(token)) {
    result = merge_parts(partial, num_parts, num_tokens, token, params);
    if (kFinal) result = finalize(result, params);
  }
  store_stats(result, merged, num_tokens, token, params.features);
}

// One thread a token.
__global__ void __launch_bounds__(kThreads) loss_kernel(const LossArgs args) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (token < args.merge.num_tokens) evaluate_token(args, token);
}

}  // namespace

cudaError_t launch_merge_parts(const float* partial, int64_t num_parts, const StatsParams& params,
                               int64_t num_tokens, float* merged, cudaStream_t stream) {
  if (num_tokens == 0) return cudaSuccess;
  merge_kernel<false><<<blocks_for(num_tokens), kThreads, 0, stream>>>(
      partial, num_parts, TokenLabels{}, params, num_tokens, merged);
  return cudaGetLastError();
}

cudaError_t launch_merge_stats(const MergeArgs& args, cudaStream_t stream) {
  if (args.num_tokens == 0) return cudaSuccess;
  merge_kernel<true><<<blocks_for(args.num_tokens), kThreads, 0, stream>>>(
      args.partial, args.num_shards, args.labels, args.params, args.num_tokens, args.global);
  return cudaGetLastError();
}

cudaError_t launch_loss(const LossArgs& args, cudaStream_t stream) {
  if (args.merge.num_tokens == 0) return cudaSuccess;
  loss_kernel<<<blocks_for(args.merge.num_tokens), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace bgkd
