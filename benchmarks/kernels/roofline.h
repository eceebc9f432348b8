// Without a GPU: the time that the bandwidth of a GPU's memory allows, from the bytes alone. As
// lines of a table and of JSON. No CUDA here.
#pragma once

#include <map>

#include "gpus.h"
#include "kernel_list.h"
#include "report.h"

namespace bgkd::bench {

struct PaperTime {
  int64_t bytes;
  double us;
};

struct PaperKernel {
  Shape shape;
  std::string kernel;
  std::map<std::string, PaperTime> times;  // by GPU; not where the row does not fit on its chip
};

inline std::vector<PaperKernel> rooflines(const Shape& shape, const Options& options) {
  std::vector<PaperKernel> kernels;
  std::map<std::string, size_t> places;
  for (const PaperGpu& gpu : kPaperGpus) {
    const Plans plans(shape, gpu.num_sms, gpu.memory);
    const int64_t shards = std::min(options.shards, shape.num_columns);
    for (const auto& [name, bytes] : traffic(shape, shards, plans)) {
      if (!options.wants(name)) continue;
      const auto [place, is_new] = places.emplace(name, kernels.size());
      if (is_new) kernels.push_back({shape, name, {}});
      kernels[place->second].times[gpu.name] = {
          bytes, static_cast<double>(bytes) / gpu.gb_per_second * 1e-3};
    }
  }
  return kernels;
}

inline std::string roofline_head() {
  std::string line = format(
      "static, not measured: microseconds = bytes / bandwidth of the memory\n"
      "%7s %8s %5s  %-38s %9s",
      "N", "V_local", "dtype", "kernel", "MiB");
  for (const PaperGpu& gpu : kPaperGpus) line += format(" %9s", gpu.name);
  return line + '\n';
}

inline std::string table_line(const PaperKernel& k) {
  int64_t most = 0;
  for (const auto& [gpu, time] : k.times) most = std::max(most, time.bytes);
  std::string line =
      format("%7ld %8ld %5s  %-38s %9.1f", long{k.shape.num_tokens}, long{k.shape.num_columns},
             k.shape.dtype_name.c_str(), k.kernel.c_str(), static_cast<double>(most) / (1 << 20));
  for (const PaperGpu& gpu : kPaperGpus) {
    const auto found = k.times.find(gpu.name);
    line += found == k.times.end() ? format(" %9s", "-") : format(" %9.2f", found->second.us);
  }
  return line + '\n';
}

inline std::string roofline_notes() {
  std::string gpus;
  for (const PaperGpu& gpu : kPaperGpus) {
    gpus += format("%s%s %.0f GB/s (%s)", gpus.empty() ? "" : ", ", gpu.name, gpu.gb_per_second,
                   gpu.source);
  }
  return "* MiB: what the kernel must move, every number once; the most on any of the GPUs, which "
         "cut few rows into parts by their number of SMs. -: the row does not fit on the chip.\n"
         "* Bandwidths of NVIDIA's data sheets, which no kernel reaches: " +
         gpus + ".\n* Where arithmetic is the bound instead, docs/kernels.md says.\n";
}

inline std::string roofline_json_head(const std::string& reason) {
  std::string gpus;
  for (const PaperGpu& gpu : kPaperGpus) {
    gpus += format("%s{\"name\": %s, \"num_sms\": %d, \"gb_per_second\": %.6g, \"source\": %s}",
                   gpus.empty() ? "" : ", ", quoted(gpu.name).c_str(), gpu.num_sms,
                   gpu.gb_per_second, quoted(gpu.source).c_str());
  }
  return format("{\"device\": null, \"measured\": false, \"reason\": %s, \"gpus\": [%s]}\n",
                quoted(reason).c_str(), gpus.c_str());
}

inline std::string json_line(const PaperKernel& k) {
  std::string times;
  for (const auto& [gpu, time] : k.times) {
    times += format("%s%s: {\"bytes\": %ld, \"us\": %.6g}", times.empty() ? "" : ", ",
                    quoted(gpu).c_str(), long{time.bytes}, time.us);
  }
  return format(
      "{\"num_tokens\": %ld, \"num_columns\": %ld, \"dtype\": %s, \"kernel\": %s, \"roofline\": "
      "{%s}}\n",
      long{k.shape.num_tokens}, long{k.shape.num_columns}, quoted(k.shape.dtype_name).c_str(),
      quoted(k.kernel).c_str(), times.c_str());
}

}  // namespace bgkd::bench
