// Inside csrc/cuda: the second half of vocab_stats when a row was read in parts.
#pragma once

#include <cuda_runtime_api.h>

#include "../vocab_stats.h"

namespace bgkd {

// partial: [num_parts, rows, num_tokens]; merged: [rows, num_tokens], still partial.
cudaError_t launch_merge_parts(const float* partial, int64_t num_parts, const StatsParams& params,
                               int64_t num_tokens, float* merged, cudaStream_t stream);

}  // namespace bgkd
