// How a launch is cut into tasks and what it moves. Plain arithmetic: tests and benchmarks print
// it, and the operators take tokens_per_task from it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/statistics.h"

namespace bgkd {

struct CpuLaunchPlan {
  int64_t tokens_per_task;  // smallest piece worth handing to a thread
  int64_t num_tasks;
  int64_t forward_bytes;   // logits read and statistics written by vocab_stats
  int64_t backward_bytes;  // logits read and gradient written by vocab_stats_backward
};

inline CpuLaunchPlan plan_cpu_launch(int64_t num_tokens, int64_t num_columns, int64_t element_size,
                                     uint32_t features) {
  // A task of 32,768 logit pairs takes about 20 us, an order of magnitude above what waking a
  // thread costs.
  constexpr int64_t kPairsPerTask = 1 << 15;
  const int64_t pairs = num_tokens * num_columns;
  const int64_t tensors_read = (features & kTeacher) ? 2 : 1;
  const int64_t stats_bytes = num_rows(features) * num_tokens * static_cast<int64_t>(sizeof(float));
  CpuLaunchPlan plan;
  plan.tokens_per_task = std::max<int64_t>(1, kPairsPerTask / std::max<int64_t>(1, num_columns));
  plan.num_tasks = (num_tokens + plan.tokens_per_task - 1) / plan.tokens_per_task;
  plan.forward_bytes = pairs * tensors_read * element_size + stats_bytes;
  plan.backward_bytes = pairs * (tensors_read + 1) * element_size + 2 * stats_bytes;
  return plan;
}

// ---- CUDA

// Of the kernels; here because the plans need them.
constexpr int kCudaThreads = 256;        // per block at most; always whole warps
constexpr int kCudaBytesPerThread = 32;  // of each tensor between two looks at the running maxima
constexpr int kCudaBlocksPerSm = 3;  // of the statistics kernel, which has registers for so many

// How the rows are cut: a block of `threads` takes `columns_per_part` columns of one row.
struct CudaPlan {
  int threads;
  int parts;  // of a row; more than one only when the rows alone do not fill the device
  int64_t columns_per_part;
};

inline CudaPlan plan_cuda_launch(int64_t num_tokens, int64_t num_columns, int64_t element_size,
                                 int num_sms) {
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t per_thread = kCudaBytesPerThread / element_size;
  const int64_t warps = divide_up(divide_up(num_columns, per_thread), 32);
  CudaPlan plan;
  plan.threads = static_cast<int>(32 * std::clamp<int64_t>(warps, 1, kCudaThreads / 32));
  // A part is at least two rounds of its block, so that reducing does not outweigh reading.
  const int64_t round = plan.threads * per_thread;
  const int64_t blocks = int64_t{num_sms} * kCudaBlocksPerSm * kCudaThreads / plan.threads;
  const int64_t wanted = divide_up(blocks, std::max<int64_t>(1, num_tokens));
  const int64_t possible = divide_up(num_columns, 2 * round);
  const int64_t parts = std::clamp<int64_t>(std::min(wanted, possible), 1, 65535);
  // Whole rounds: a part begins where a vector may begin.
  plan.columns_per_part =
      std::max<int64_t>(1, divide_up(divide_up(num_columns, parts), round)) * round;
  plan.parts =
      static_cast<int>(std::max<int64_t>(1, divide_up(num_columns, plan.columns_per_part)));
  return plan;
}

// Tokens whose rows stay in a cache from their statistics to their gradient, although the
// statistics of as many more tokens come between. A quarter of the cache is left to what else
// passes through.
inline int64_t plan_token_chunk(int64_t num_columns, int64_t element_size, int64_t cache_bytes) {
  const int64_t bytes_per_token = 2 * std::max<int64_t>(1, num_columns) * element_size;
  return std::max<int64_t>(1, cache_bytes / 4 * 3 / 2 / bytes_per_token);
}

// Floats of scratch memory that vocab_stats needs when it cuts rows into parts.
inline int64_t stats_workspace_floats(const CudaPlan& plan, int64_t num_tokens, uint32_t features) {
  return plan.parts == 1 ? 0 : plan.parts * num_rows(features) * num_tokens;
}

// How a row is kept on the chip: `cluster` thread blocks take `columns_per_part` columns each, of
// both tensors. cluster = 0: it does not fit.
struct FusedPlan {
  int cluster;
  int threads;
  int64_t columns_per_part;
  int64_t shared_bytes;  // of each block, dynamic
};

// What a device offers (cudaDeviceProp).
struct SharedMemory {
  int64_t per_block;  // sharedMemPerBlockOptin
  int64_t per_sm;     // sharedMemPerMultiprocessor
  int max_cluster;    // 8 from sm_90 on (what every such device can do), 1 before
};

inline FusedPlan plan_fused_launch(int64_t num_columns, int64_t element_size,
                                   const SharedMemory& memory) {
  // The kernel's own variables, and 1 KB that the system reserves for each block.
  constexpr int64_t kReserved = 2048;
  const int64_t round = kCudaThreads * kCudaBytesPerThread / element_size;
  // Two blocks on an SM, so that one reads while the other one reduces; else one.
  for (const int64_t limit : {memory.per_sm / 2, memory.per_block}) {
    for (int cluster = 1; cluster <= memory.max_cluster; cluster *= 2) {
      const int64_t columns = (num_columns + cluster - 1) / cluster;
      const int64_t rounds = std::max<int64_t>(1, (columns + round - 1) / round);
      const int64_t bytes = 2 * rounds * kCudaThreads * kCudaBytesPerThread;
      if (bytes + kReserved <= std::min(limit, memory.per_block)) {
        return {cluster, kCudaThreads, rounds * round, bytes};
      }
    }
  }
  return {0, kCudaThreads, 0, 0};
}

}  // namespace bgkd
