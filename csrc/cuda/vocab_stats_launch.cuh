// The launcher of the statistics kernel for one dtype; one .cu file instantiates it for each.
#pragma once

#include <utility>

#include "launch.h"
#include "merge_parts.h"
#include "stats_instances.h"
#include "vocab_stats.cuh"

namespace bgkd {

template <class T>
cudaError_t launch_vocab_stats_of(const StatsArgs& args, const CudaPlan& plan, float* workspace,
                                  cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.num_tokens), static_cast<unsigned>(plan.parts));
  float* partial = plan.parts == 1 ? args.partial : workspace;
  const uint32_t instance = stats_instance(args.params.features);
  const auto launch_if = [&]<int kIndex>(std::integral_constant<int, kIndex>) {
    if (instance != kStatsInstances[kIndex]) return;
    vocab_stats_kernel<T, kStatsInstances[kIndex]>
        <<<grid, plan.threads, 0, stream>>>(args, partial, plan.columns_per_part);
  };
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) {
    (launch_if(std::integral_constant<int, kIndices>{}), ...);
  }(std::make_integer_sequence<int, kNumStatsInstances>{});
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess || plan.parts == 1) {
    return error;
  }
  return launch_merge_parts(workspace, plan.parts, args.params, args.num_tokens, args.partial,
                            stream);
}

extern template cudaError_t launch_vocab_stats_of<float>(const StatsArgs&, const CudaPlan&, float*,
                                                         cudaStream_t);
extern template cudaError_t launch_vocab_stats_of<__half>(const StatsArgs&, const CudaPlan&, float*,
                                                          cudaStream_t);
extern template cudaError_t launch_vocab_stats_of<__nv_bfloat16>(const StatsArgs&, const CudaPlan&,
                                                                 float*, cudaStream_t);

}  // namespace bgkd
