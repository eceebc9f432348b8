// The operators on CUDA tensors: kernels on the current stream of the logits' device, memory from
// PyTorch's caching allocator. The host never waits for the device, so that a CUDA graph can be
// captured; therefore it does not look at labels either: the statistics at a label outside the
// vocabulary are NaN.

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <atomic>
#include <limits>

#include "../cuda/launch.h"
#include "operators.h"

namespace bgkd {
namespace {

// A token is a block of the grid's first dimension.
constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();
// Kernels count the columns of a part of a row in int32, up to one block behind its end.
constexpr int64_t kMaxColumns = int64_t{1} << 30;

constexpr int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

class CudaExecutor {
 public:
  CudaExecutor(const char* op, c10::Device device, int64_t num_tokens, int64_t num_columns)
      : op_(op), device_(device) {
    TORCH_CHECK_VALUE(num_tokens <= kMaxTokens && num_columns <= kMaxColumns, op,
                      ": the CUDA kernels take at most ", kMaxTokens, " tokens of ", kMaxColumns,
                      " columns, got ", num_tokens, " of ", num_columns, "; take fewer at a time");
    guard_.set_device(device);
  }

  void run(const StatsArgs& args) const {
    const CudaPlan plan = plan_for(args.logits, args.num_tokens, args.logits.num_columns);
    const int64_t floats = stats_workspace_floats(plan, args.num_tokens, args.params.features);
    const c10::DataPtr workspace = allocate(floats);
    check(launch_vocab_stats(args, plan, static_cast<float*>(workspace.get()), stream()));
  }
  void run(const MergeArgs& args) const { check(launch_merge_stats(args, stream())); }
  void run(const GradientArgs& args) const {
    const CudaPlan plan = plan_for(args.logits, args.num_tokens, args.grad_columns);
    check(launch_vocab_gradient(args, plan, stream()));
  }
  void run(const FdivArgs& args) const {
    const CudaPlan plan = plan_for(args.logits, args.num_tokens, args.logits.num_columns);
    const int64_t floats = plan.parts == 1 ? 0 : plan.parts * kNumFdivSums * args.num_tokens;
    const c10::DataPtr workspace = allocate(floats);
    check(launch_vocab_fdiv(args, plan, static_cast<float*>(workspace.get()), stream()));
  }
  void run(const FdivGradientArgs& args) const {
    const GradientArgs& stats = args.stats;
    const CudaPlan plan = plan_for(stats.logits, stats.num_tokens, stats.grad_columns);
    check(launch_vocab_fdiv_gradient(args, plan, stream()));
  }
  void run(const FusedArgs& args) const {
    const FusedPlan plan =
        plan_fused_launch(args.grad_columns, element_size(args.logits.dtype), shared_memory());
    const bool has_teacher = (args.params.features & kTeacher) != 0;
    if (plan.cluster == 0 || !has_teacher) return run_in_phases(args);
    check(launch_fused_loss(args, plan, stream()));
  }
  void run(const LossArgs& args) const { check(launch_loss(args, stream())); }
  void run(const ScaleArgs& args) const { check(launch_scale_rows(args, stream())); }

 private:
  // A row that no cluster can hold, or no teacher: two reads instead of one.
  void run_in_phases(const FusedArgs& args) const {
    const int64_t floats = num_rows(args.params.features) * args.num_tokens;
    const c10::DataPtr partial = allocate(floats), upstream = allocate(floats);
    auto* partial_stats = static_cast<float*>(partial.get());
    auto* derivatives = static_cast<float*>(upstream.get());
    run(StatsArgs{args.logits, args.labels, args.params, args.num_tokens, partial_stats});
    run(LossArgs{{partial_stats, 1, args.labels, args.params, args.num_tokens, args.global},
                 args.objective,
                 args.losses,
                 derivatives});
    run(GradientArgs{args.logits, args.labels, args.params, args.num_tokens, args.global,
                     derivatives, args.grad, args.grad_stride, args.grad_columns});
  }

  // Freed when the launch returns, but reused only by later work on the same stream.
  static c10::DataPtr allocate(int64_t floats) {
    return c10::cuda::CUDACachingAllocator::get()->allocate(floats * sizeof(float));
  }

  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(device_.index()); }

  CudaPlan plan_for(const LogitsShard& logits, int64_t num_tokens, int64_t num_columns) const {
    return plan_cuda_launch(num_tokens, num_columns, element_size(logits.dtype), num_sms());
  }

  SharedMemory shared_memory() const {
    SharedMemory memory{attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                        attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor), 1};
    if (attribute(cudaDevAttrClusterLaunch) != 0) memory.max_cluster = 8;
    return memory;
  }

  int attribute(cudaDeviceAttr name) const {
    int answer = 0;
    check(cudaDeviceGetAttribute(&answer, name, device_.index()));
    return answer;
  }

  int num_sms() const {
    static std::array<std::atomic<int>, C10_COMPILE_TIME_MAX_GPUS> known{};  // 0: not asked yet
    std::atomic<int>& number = known[device_.index()];
    if (number == 0) {
      number = attribute(cudaDevAttrMultiProcessorCount);
    }
    return number;
  }

  void check(cudaError_t error) const {
    const bool is_built_for_others =
        error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion;
    TORCH_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorName(error), " on ", device_, ": ",
                cudaGetErrorString(error),
                is_built_for_others
                    ? "; this build has kernels for the architectures " BGKD_CUDA_ARCHITECTURES
                      ": build with TORCH_CUDA_ARCH_LIST set to this device's"
                    : "; the launch was refused, or earlier work on the device has failed");
  }

  const char* op_;
  c10::Device device_;
  c10::cuda::OptionalCUDAGuard guard_;
};

}  // namespace
}  // namespace bgkd

TORCH_LIBRARY_IMPL(bgkd, CUDA, m) { bgkd::Operators<bgkd::CudaExecutor>::register_in(m); }
