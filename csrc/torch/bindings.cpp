// Python module bgkd_megatron._C: plain facts, no tensors. Importing it also registers the
// operators (ops_cpu.cpp, ops_cuda.cpp).

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(BGKD_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../core/statistics.h"
#include "../launch_plan.h"

namespace py = pybind11;

namespace bgkd {

const char* cpu_kernel_name();

namespace {

py::dict build_info() {
  py::dict info;
#if defined(__VERSION__)
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["cplusplus"] = static_cast<long>(__cplusplus);
  info["cpu_kernels"] = cpu_kernel_name();
#if defined(BGKD_WITH_CUDA)
  info["devices"] = std::vector<std::string>{"cpu", "cuda"};
  info["cuda"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_architectures"] = BGKD_CUDA_ARCHITECTURES;
#else
  info["devices"] = std::vector<std::string>{"cpu"};
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

uint32_t checked_features(int64_t features) {
  if (features < 0 || features > kAllFeatures ||
      !features_are_consistent(static_cast<uint32_t>(features))) {
    throw py::value_error("features " + std::to_string(features) +
                          " asks for statistics of a teacher without TEACHER, or for unknown ones");
  }
  return static_cast<uint32_t>(features);
}

std::vector<std::pair<std::string, uint32_t>> statistics() {
  std::vector<std::pair<std::string, uint32_t>> rows;
  for (int stat = 0; stat < kNumStats; ++stat) {
    rows.emplace_back(kStatNames[stat], required_features(stat));
  }
  return rows;
}

// count: num_tokens or cache_bytes.
void check_sizes(const char* function, int64_t count, int64_t num_columns, int64_t element_size) {
  if (count < 0 || num_columns < 0 || (element_size != 2 && element_size != 4)) {
    throw py::value_error(std::string(function) +
                          ": sizes must be at least 0 and element_size 2 or 4 bytes");
  }
}

std::map<std::string, int64_t> launch_plan(int64_t num_tokens, int64_t num_columns,
                                           int64_t element_size, int64_t features) {
  check_sizes("launch_plan", num_tokens, num_columns, element_size);
  const CpuLaunchPlan plan =
      plan_cpu_launch(num_tokens, num_columns, element_size, checked_features(features));
  return {{"tokens_per_task", plan.tokens_per_task},
          {"num_tasks", plan.num_tasks},
          {"forward_bytes", plan.forward_bytes},
          {"backward_bytes", plan.backward_bytes}};
}

std::map<std::string, int64_t> cuda_launch_plan(int64_t num_tokens, int64_t num_columns,
                                                int64_t element_size, int64_t features,
                                                int num_sms) {
  check_sizes("cuda_launch_plan", num_tokens, num_columns, element_size);
  if (num_sms < 1) throw py::value_error("cuda_launch_plan: num_sms must be at least 1");
  const CudaPlan plan = plan_cuda_launch(num_tokens, num_columns, element_size, num_sms);
  const int64_t floats = stats_workspace_floats(plan, num_tokens, checked_features(features));
  return {{"threads", plan.threads},
          {"parts", plan.parts},
          {"columns_per_part", plan.columns_per_part},
          {"workspace_bytes", floats * static_cast<int64_t>(sizeof(float))}};
}

int64_t tokens_in_cache(int64_t num_columns, int64_t element_size, int64_t cache_bytes) {
  check_sizes("tokens_in_cache", cache_bytes, num_columns, element_size);
  return plan_token_chunk(num_columns, element_size, cache_bytes);
}

}  // namespace
}  // namespace bgkd

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the compiled kernels; the operators are in torch.ops.bgkd.";
  m.def("build_info", &bgkd::build_info,
        "Compiler, instruction set in use, devices with kernels, CUDA.");
  m.def("statistics", &bgkd::statistics,
        "Name and required features of every statistic, in the order of a tensor of statistics.");
  m.def("launch_plan", &bgkd::launch_plan, py::arg("num_tokens"), py::arg("num_columns"),
        py::arg("element_size"), py::arg("features"),
        "How a CPU launch is cut into tasks, and the bytes that it moves.");
  m.def("cuda_launch_plan", &bgkd::cuda_launch_plan, py::arg("num_tokens"), py::arg("num_columns"),
        py::arg("element_size"), py::arg("features"), py::arg("num_sms"),
        "How a CUDA launch cuts rows into parts, and the scratch memory of vocab_stats.");
  m.def("tokens_in_cache", &bgkd::tokens_in_cache, py::arg("num_columns"), py::arg("element_size"),
        py::arg("cache_bytes"), "Tokens whose rows stay in a cache between the two sweeps.");
}
