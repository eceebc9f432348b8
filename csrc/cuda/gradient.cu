#include "gradient.cuh"
#include "launch.h"

namespace bgkd {

cudaError_t launch_vocab_gradient(const GradientArgs& args, const CudaPlan& plan,
                                  cudaStream_t stream) {
  if (args.num_tokens == 0 || args.grad_columns == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(args.num_tokens), static_cast<unsigned>(plan.parts));
  switch (args.logits.dtype) {
    case DType::kFloat32:
      vocab_gradient_kernel<float><<<grid, plan.threads, 0, stream>>>(args, plan.columns_per_part);
      break;
    case DType::kBFloat16:
      vocab_gradient_kernel<__nv_bfloat16>
          <<<grid, plan.threads, 0, stream>>>(args, plan.columns_per_part);
      break;
    case DType::kFloat16:
      vocab_gradient_kernel<__half><<<grid, plan.threads, 0, stream>>>(args, plan.columns_per_part);
      break;
  }
  return cudaGetLastError();
}

}  // namespace bgkd
