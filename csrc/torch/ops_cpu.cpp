// The operators on CPU tensors: token ranges on PyTorch's threads.

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <string>

#include "../launch_plan.h"
#include "operators.h"

namespace bgkd {
namespace {

struct CpuKernels {
  const char* name;
  decltype(&DEFAULT::compute_stats) stats;
  decltype(&DEFAULT::compute_gradient) gradient;
  decltype(&DEFAULT::scale_rows) scale_rows;
  decltype(&DEFAULT::compute_fdiv) fdiv;
  decltype(&DEFAULT::compute_fdiv_gradient) fdiv_gradient;
};

#define BGKD_KERNELS(capability)                                                                  \
  CpuKernels {                                                                                    \
    #capability, capability::compute_stats, capability::compute_gradient, capability::scale_rows, \
        capability::compute_fdiv, capability::compute_fdiv_gradient                               \
  }

// PyTorch's own choice of instruction set, so that ATEN_CPU_CAPABILITY governs both.
const CpuKernels& cpu_kernels() {
  static const CpuKernels kernels = []() -> CpuKernels {
#if defined(BGKD_X86_KERNELS)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return BGKD_KERNELS(AVX512);
    if (capability == "AVX2") return BGKD_KERNELS(AVX2);
#endif
    return BGKD_KERNELS(DEFAULT);
  }();
  return kernels;
}
#undef BGKD_KERNELS

template <class Body>
void for_each_token_range(int64_t num_tokens, int64_t num_columns, uint32_t features,
                          const Body& body) {
  const int64_t grain =
      plan_cpu_launch(num_tokens, num_columns, /*element_size=*/1, features).tokens_per_task;
  at::parallel_for(0, num_tokens, grain, body);
}

// Only here: the host cannot read labels in a GPU's memory without waiting for it.
void check_label_range(const char* op, const TokenLabels& labels, int64_t num_tokens,
                       int64_t vocab_size) {
  if (labels.ids == nullptr) return;
  for (int64_t i = 0; i < num_tokens; ++i) {
    const int64_t id = labels.ids[i];
    TORCH_CHECK_VALUE(labels.skipped(i) || (id >= 0 && id < vocab_size), op, ": labels[", i,
                      "] = ", id, " is outside the vocabulary of ", vocab_size,
                      " token ids and is not ignore_index (", labels.ignore_index, ")");
  }
}

class CpuExecutor {
 public:
  CpuExecutor(const char* op, c10::Device, int64_t, int64_t) : op_(op) {}

  void run(const StatsArgs& args) const {
    check_label_range(op_, args.labels, args.num_tokens, args.logits.vocab_size);
    for_each_token_range(
        args.num_tokens, args.logits.num_columns, args.params.features,
        [&](int64_t begin, int64_t end) { cpu_kernels().stats(args, begin, end); });
  }
  void run(const MergeArgs& args) const {
    for_each_token_range(args.num_tokens, num_rows(args.params.features) * args.num_shards,
                         args.params.features,
                         [&](int64_t begin, int64_t end) { merge_tokens(args, begin, end); });
  }
  void run(const GradientArgs& args) const {
    for_each_token_range(
        args.num_tokens, args.grad_columns, args.params.features,
        [&](int64_t begin, int64_t end) { cpu_kernels().gradient(args, begin, end); });
  }
  void run(const FdivArgs& args) const {
    check_label_range(op_, args.labels, args.num_tokens, args.logits.vocab_size);
    for_each_token_range(args.num_tokens, args.logits.num_columns, args.features,
                         [&](int64_t begin, int64_t end) { cpu_kernels().fdiv(args, begin, end); });
  }
  void run(const FdivGradientArgs& args) const {
    for_each_token_range(
        args.stats.num_tokens, args.stats.grad_columns, args.stats.params.features,
        [&](int64_t begin, int64_t end) { cpu_kernels().fdiv_gradient(args, begin, end); });
  }
  void run(const FusedArgs& args) const {
    check_label_range(op_, args.labels, args.num_tokens, args.logits.vocab_size);
    const int64_t rows = num_rows(args.params.features);
    const Tensor scratch = at::empty({2, rows, args.num_tokens}, at::kFloat);
    float* partial = scratch.mutable_data_ptr<float>();
    const FusedCpuKernels kernels{cpu_kernels().stats, cpu_kernels().gradient};
    for_each_token_range(
        args.num_tokens, args.grad_columns, args.params.features, [&](int64_t begin, int64_t end) {
          fused_tokens(args, kernels, partial, partial + rows * args.num_tokens, begin, end);
        });
  }
  void run(const LossArgs& args) const {
    const uint32_t features = args.merge.params.features;
    for_each_token_range(args.merge.num_tokens, num_rows(features) * args.merge.num_shards,
                         features,
                         [&](int64_t begin, int64_t end) { evaluate_tokens(args, begin, end); });
  }
  void run(const ScaleArgs& args) const {
    for_each_token_range(
        args.num_tokens, args.num_columns, /*features=*/0,
        [&](int64_t begin, int64_t end) { cpu_kernels().scale_rows(args, begin, end); });
  }

 private:
  const char* op_;
};

}  // namespace

const char* cpu_kernel_name() { return cpu_kernels().name; }

}  // namespace bgkd

TORCH_LIBRARY_IMPL(bgkd, CPU, m) { bgkd::Operators<bgkd::CpuExecutor>::register_in(m); }
