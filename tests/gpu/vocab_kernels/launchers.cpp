// The launchers of csrc/cuda/launch.h, and the plans, as C functions that Python can call.

#include <cstring>

#include "../../../csrc/cuda/launch.h"
#include "../../../csrc/cuda/stats_instances.h"

using namespace bgkd;

extern "C" {

// ---- the contract, so that what Python knows of it is checked

// 0 for a struct that no launcher takes.
int64_t struct_size(const char* name) {
#define BGKD_SIZE(type) \
  if (std::strcmp(name, #type) == 0) return sizeof(type);
  BGKD_SIZE(StatsArgs)
  BGKD_SIZE(MergeArgs)
  BGKD_SIZE(GradientArgs)
  BGKD_SIZE(FdivArgs)
  BGKD_SIZE(FdivGradientArgs)
  BGKD_SIZE(FusedArgs)
  BGKD_SIZE(LossArgs)
  BGKD_SIZE(ScaleArgs)
  BGKD_SIZE(CudaPlan)
  BGKD_SIZE(SharedMemory)
  BGKD_SIZE(FusedPlan)
#undef BGKD_SIZE
  return 0;
}

const char* stat_name(int stat) { return kStatNames[stat]; }
uint32_t stat_features(int stat) { return required_features(stat); }
uint32_t instance_of(uint32_t features) { return stats_instance(features); }

// ---- plans

void plan(int64_t num_tokens, int64_t num_columns, int64_t element_size, int num_sms,
          CudaPlan* out) {
  *out = plan_cuda_launch(num_tokens, num_columns, element_size, num_sms);
}
int64_t workspace_floats(const CudaPlan* plan, int64_t num_tokens, uint32_t features) {
  return stats_workspace_floats(*plan, num_tokens, features);
}
void fused_plan(int64_t num_columns, int64_t element_size, const SharedMemory* memory,
                FusedPlan* out) {
  *out = plan_fused_launch(num_columns, element_size, *memory);
}

// ---- launchers

int vocab_stats(const StatsArgs* args, const CudaPlan* plan, float* workspace, void* stream) {
  return launch_vocab_stats(*args, *plan, workspace, static_cast<cudaStream_t>(stream));
}
int merge_stats(const MergeArgs* args, void* stream) {
  return launch_merge_stats(*args, static_cast<cudaStream_t>(stream));
}
int loss(const LossArgs* args, void* stream) {
  return launch_loss(*args, static_cast<cudaStream_t>(stream));
}
int vocab_gradient(const GradientArgs* args, const CudaPlan* plan, void* stream) {
  return launch_vocab_gradient(*args, *plan, static_cast<cudaStream_t>(stream));
}
int vocab_fdiv(const FdivArgs* args, const CudaPlan* plan, float* workspace, void* stream) {
  return launch_vocab_fdiv(*args, *plan, workspace, static_cast<cudaStream_t>(stream));
}
int vocab_fdiv_gradient(const FdivGradientArgs* args, const CudaPlan* plan, void* stream) {
  return launch_vocab_fdiv_gradient(*args, *plan, static_cast<cudaStream_t>(stream));
}
int fused_loss(const FusedArgs* args, const FusedPlan* plan, void* stream) {
  return launch_fused_loss(*args, *plan, static_cast<cudaStream_t>(stream));
}
int scale_rows(const ScaleArgs* args, void* stream) {
  return launch_scale_rows(*args, static_cast<cudaStream_t>(stream));
}
}
