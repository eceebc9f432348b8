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

}  // namespace bgkd
