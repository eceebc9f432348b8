#include "fdiv.cuh"
#include "launch.h"

namespace bgkd {
namespace {

constexpr int kThreads = 128;

// Adds the parts of the rows, in their order.
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const float* partial, int64_t num_parts, int64_t count, float* sums) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = partial[i];
  for (int64_t part = 1; part < num_parts; ++part) sum += partial[part * count + i];
  sums[i] = sum;
}

// Of these the gradient may be more than a multiple of q.
constexpr uint32_t kGeneralGradient = kForwardKl | kReverseKl | kStudentEntropy | kSoftened;

dim3 grid_of(int64_t num_tokens, const CudaPlan& plan) {
  return dim3(static_cast<unsigned>(num_tokens), static_cast<unsigned>(plan.parts));
}

}  // namespace

cudaError_t launch_vocab_fdiv(const FdivArgs& args, const CudaPlan& plan, float* workspace,
                              cudaStream_t stream) {
  if (args.num_tokens == 0) return cudaSuccess;
  float* partial = plan.parts == 1 ? args.sums : workspace;
  with_dtype_and_divergence<__nv_bfloat16, __half>(
      args.logits.dtype, args.kind, args.params,
      [&]<class T, FDivergence kKind>(T, FdivKind<kKind>) {
        fdiv_kernel<T, kKind><<<grid_of(args.num_tokens, plan), plan.threads, 0, stream>>>(
            args, partial, plan.columns_per_part);
      });
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess || plan.parts == 1) {
    return error;
  }
  const int64_t count = kNumFdivSums * args.num_tokens;
  add_parts_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                     stream>>>(workspace, plan.parts, count, args.sums);
  return cudaGetLastError();
}

cudaError_t launch_vocab_fdiv_gradient(const FdivGradientArgs& args, const CudaPlan& plan,
                                       cudaStream_t stream) {
  const GradientArgs& stats = args.stats;
  if (stats.num_tokens == 0 || stats.grad_columns == 0) return cudaSuccess;
  const dim3 grid = grid_of(stats.num_tokens, plan);
  with_dtype_and_divergence<__nv_bfloat16, __half>(
      stats.logits.dtype, args.kind, args.params,
      [&]<class T, FDivergence kKind>(T, FdivKind<kKind>) {
        fdiv_gradient_kernel<T, kKind, false>
            <<<grid, plan.threads, 0, stream>>>(args, plan.columns_per_part);
        if ((stats.params.features & kGeneralGradient) == 0) return;
        fdiv_gradient_kernel<T, kKind, true>
            <<<grid, plan.threads, 0, stream>>>(args, plan.columns_per_part);
      });
  return cudaGetLastError();
}

}  // namespace bgkd
