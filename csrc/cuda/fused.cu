#include "fused.cuh"
#include "launch.h"

namespace bgkd {
namespace {

constexpr uint32_t kTeacherSet =
    kLabel | kTeacher | kForwardKl | kReverseKl | kStudentEntropy | kTeacherEntropy;
// Temperature and Tsallis entropy cost further exponentials; a request takes the first that holds
// it.
constexpr uint32_t kInstances[] = {kTeacherSet, kTeacherSet | kPowerSum, kAllFeatures};

template <class T, uint32_t kFeatures>
cudaError_t launch(const FusedArgs& args, const FusedPlan& plan, cudaStream_t stream) {
  const auto kernel = fused_kernel<T, kFeatures>;
  if (const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes));
      error != cudaSuccess) {
    return error;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {1, static_cast<unsigned>(plan.cluster), 1};
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(args.num_tokens), static_cast<unsigned>(plan.cluster));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = plan.cluster > 1 ? 1 : 0;  // older devices know no clusters
  return cudaLaunchKernelEx(&config, kernel, args, plan.columns_per_part);
}

template <class T>
cudaError_t launch_of_dtype(const FusedArgs& args, const FusedPlan& plan, cudaStream_t stream) {
  const uint32_t features = args.params.features;
  if ((features & ~kInstances[0]) == 0) return launch<T, kInstances[0]>(args, plan, stream);
  if ((features & ~kInstances[1]) == 0) return launch<T, kInstances[1]>(args, plan, stream);
  return launch<T, kInstances[2]>(args, plan, stream);
}

}  // namespace

cudaError_t launch_fused_loss(const FusedArgs& args, const FusedPlan& plan, cudaStream_t stream) {
  if (plan.cluster == 0) return cudaErrorInvalidConfiguration;
  if (args.num_tokens == 0) return cudaSuccess;
  return with_dtype<__nv_bfloat16, __half>(
      args.logits.dtype, [&]<class T>(T) { return launch_of_dtype<T>(args, plan, stream); });
}

}  // namespace bgkd
