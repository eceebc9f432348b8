// Checks and times the CUDA kernels without torch: kernel_benchmark --help. Has run in the executor
// of tests/gpu, not on a GPU yet.

#include <fstream>
#include <set>

#include "problem.cuh"
#include "report.h"
#include "roofline.h"

using namespace bgkd;
using namespace bgkd::bench;

namespace {

constexpr int kRight = 0, kFailed = 1, kBadOption = 2;
constexpr int64_t kWarmUps = 3;  // at most as many as are measured

std::string version(int cuda) { return format("%d.%d", cuda / 1000, cuda % 1000 / 10); }

DeviceFacts open_device(int index) {
  check(cudaSetDevice(index), "opening device " + std::to_string(index));
  cudaDeviceProp properties{};
  int driver = 0, runtime = 0;
  check(cudaGetDeviceProperties(&properties, index), "asking for the device's name");
  check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version");
  const double kilohertz = attribute(cudaDevAttrMemoryClockRate);
  return {format("%s (sm_%d%d), CUDA driver %s, runtime %s, built with %s", properties.name,
                 attribute(cudaDevAttrComputeCapabilityMajor),
                 attribute(cudaDevAttrComputeCapabilityMinor), version(driver).c_str(),
                 version(runtime).c_str(), version(CUDART_VERSION).c_str()),
          attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrClockRate) / 1000,
          static_cast<int>(kilohertz / 1000),
          // Two transfers a clock on every pin.
          2 * kilohertz * attribute(cudaDevAttrGlobalMemoryBusWidth) / 8 * 1e-6};
}

template <class T>
std::string find_difference(const Problem<T>& problem, int64_t num_tokens, const Kernel& kernel) {
  problem.restore();
  kernel.prepare();
  kernel.launch();
  check(cudaDeviceSynchronize(), "running " + kernel.name);
  for (const int64_t token : std::set<int64_t>{0, num_tokens / 2, num_tokens - 1}) {
    const std::string difference = kernel.difference(token, problem.exact(token));
    if (!difference.empty()) return "WRONG: token " + std::to_string(token) + ": " + difference;
  }
  return {};
}

// Calls add(Measurement) for each kernel.
template <class T, class Add>
void measure(const Shape& shape, const Options& options, const Add& add) {
  size_t available = 0, total = 0;
  check(cudaMemGetInfo(&available, &total), "asking for the free memory");
  const int64_t most = Problem<T>::most_bytes(shape, options.shards);
  if (const int64_t needed = Problem<T>::needed_bytes(shape) + most;
      needed > static_cast<int64_t>(available)) {
    return add({shape,
                "all",
                0,
                format("skipped: needs %ld MiB, %ld are free", long{needed >> 20},
                       static_cast<long>(available >> 20)),
                {},
                {}});
  }
  const ColdTimer timer(most);
  const Problem<T> problem(shape, options.shards);
  for (const Kernel& kernel : problem.kernels()) {
    if (!options.wants(kernel.name)) continue;
    Measurement m{shape,        kernel.name,
                  kernel.bytes, find_difference(problem, shape.num_tokens, kernel),
                  {},           {}};
    std::vector<double> times, copy;
    for (int64_t i = -std::min(kWarmUps, options.repetitions);
         i < options.repetitions && m.problem.empty(); ++i) {
      problem.restore();
      const double time = timer.time(kernel.launch), copy_time = timer.time_of_copy(kernel.bytes);
      if (i < 0) continue;
      times.push_back(time);
      copy.push_back(copy_time);
    }
    if (m.problem.empty()) m.times = Times(times), m.copy = Times(copy);
    add(m);
  }
}

// Text to the terminal, and the same as JSON to a file if there is one.
class Output {
 public:
  explicit Output(const std::string& json) {
    if (!json.empty()) json_.open(json);
    if (!json_) throw UsageError("cannot write --json " + json);
  }
  void print(const std::string& text, const std::string& line = "") {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
    json_ << line << std::flush;
  }

 private:
  std::ofstream json_;
};

// Why this machine has no GPU, or "". A GPU that cannot be used is an error.
std::string missing_gpu() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    return cudaGetErrorString(error);
  }
  check(error, "counting the GPUs");
  return count == 0 ? "none is visible" : "";
}

int print_rooflines(const Options& options, const std::string& reason, Output& output) {
  output.print("no GPU here (" + reason + "): nothing is measured\n" + roofline_head(),
               roofline_json_head(reason));
  for (const Shape& shape : options.shapes()) {
    for (const PaperKernel& k : rooflines(shape, options))
      output.print(table_line(k), json_line(k));
  }
  output.print(roofline_notes());
  return kRight;
}

int run(const Options& options) {
  Output output(options.json);
  if (const std::string reason = missing_gpu(); !reason.empty()) {
    return print_rooflines(options, reason, output);
  }
  const DeviceFacts device = open_device(static_cast<int>(options.device));
  output.print(table_head(device), json_line(device));
  bool all_right = true;
  for (const Shape& shape : options.shapes()) {
    with_dtype<__nv_bfloat16, __half>(shape.dtype, [&]<class T>(T) {
      measure<T>(shape, options, [&](const Measurement& m) {
        all_right = all_right && m.problem.empty();
        output.print(table_line(m, device), json_line(m, device));
      });
    });
  }
  output.print(notes(options.repetitions));
  return all_right ? kRight : kFailed;
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse_options({argv + 1, argv + argc});
  if (!options.help) return run(options);
  std::fputs(kUsage, stdout);
  return kRight;
} catch (const UsageError& error) {
  std::fprintf(stderr, "kernel_benchmark: %s\n", error.what());
  return kBadOption;
} catch (const std::exception& error) {
  std::fprintf(stderr, "kernel_benchmark: %s\n", error.what());
  return kFailed;
}
