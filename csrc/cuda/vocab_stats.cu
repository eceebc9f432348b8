#include "vocab_stats_launch.cuh"

namespace bgkd {

cudaError_t launch_vocab_stats(const StatsArgs& args, const CudaPlan& plan, float* workspace,
                               cudaStream_t stream) {
  if (args.num_tokens == 0) return cudaSuccess;
  switch (args.logits.dtype) {
    case DType::kFloat32:
      return launch_vocab_stats_of<float>(args, plan, workspace, stream);
    case DType::kBFloat16:
      return launch_vocab_stats_of<__nv_bfloat16>(args, plan, workspace, stream);
    case DType::kFloat16:
      return launch_vocab_stats_of<__half>(args, plan, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace bgkd
