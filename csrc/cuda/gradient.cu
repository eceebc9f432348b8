#include "gradient.cuh"
#include "launch.h"

namespace bgkd {

cudaError_t launch_vocab_gradient(const GradientArgs& args, const CudaPlan& plan,
                                  cudaStream_t stream) {
  if (args.num_tokens == 0 || args.grad_columns == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(args.num_tokens), static_cast<unsigned>(plan.parts));
  with_dtype<__nv_bfloat16, __half>(args.logits.dtype, [&]<class T>(T) {
    vocab_gradient_kernel<T><<<grid, plan.threads, 0, stream>>>(args, plan.columns_per_part);
  });
  return cudaGetLastError();
}

}  // namespace bgkd
