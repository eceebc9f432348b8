#include "vocab_stats_launch.cuh"

namespace bgkd {

cudaError_t launch_vocab_stats(const StatsArgs& args, const CudaPlan& plan, float* workspace,
                               cudaStream_t stream) {
  if (args.num_tokens == 0) return cudaSuccess;
  return with_dtype<__nv_bfloat16, __half>(args.logits.dtype, [&]<class T>(T) {
    return launch_vocab_stats_of<T>(args, plan, workspace, stream);
  });
}

}  // namespace bgkd
