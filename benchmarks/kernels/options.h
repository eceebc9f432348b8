// The command line. No CUDA here.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/vocab_stats.h"

namespace bgkd::bench {

const std::map<std::string, DType> kDTypes = {
    {"fp32", DType::kFloat32}, {"bf16", DType::kBFloat16}, {"fp16", DType::kFloat16}};

struct Shape {
  int64_t num_tokens, num_columns;  // N, V_local
  std::string dtype_name;
  DType dtype = kDTypes.at(dtype_name);

  int64_t element_size() const { return dtype == DType::kFloat32 ? 4 : 2; }
  int64_t tensor_bytes() const { return num_tokens * num_columns * element_size(); }
};

// A mistake of the user's, in one line.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text + ',');
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

struct Options {
  std::vector<std::string> tokens = {"4096"}, columns = {"128256"}, dtypes = {"bf16"};
  std::vector<std::string> kernels = {""};  // beginnings of names
  int64_t shards = 8, repetitions = 30, device = 0;
  std::string json;
  bool help = false;

  bool wants(const std::string& kernel) const {
    for (const std::string& beginning : kernels) {
      if (kernel.rfind(beginning, 0) == 0) return true;
    }
    return false;
  }
  // Every combination.
  std::vector<Shape> shapes() const {
    std::vector<Shape> shapes;
    for (const std::string& n : tokens) {
      for (const std::string& v : columns) {
        for (const std::string& dtype : dtypes) {
          if (!kDTypes.count(dtype)) {
            throw UsageError("--dtype takes fp32, bf16 and fp16, got '" + dtype + "'");
          }
          shapes.push_back({number("--tokens", n, 1, INT32_MAX),
                            number("--columns", v, 1, kMaxVocabSize), dtype});
        }
      }
    }
    return shapes;
  }

  static int64_t number(const std::string& option, const std::string& text, int64_t minimum,
                        int64_t maximum) {
    std::istringstream stream(text);
    int64_t value = 0;
    if (stream >> value && stream.eof() && value >= minimum && value <= maximum) return value;
    throw UsageError(option + " takes numbers from " + std::to_string(minimum) + " to " +
                     std::to_string(maximum) + ", got '" + text + "'");
  }
};

inline const char* const kUsage =
    "usage: kernel_benchmark [options]\n"
    "Checks each CUDA kernel against float64, then times it beside a copy of as many bytes.\n"
    "Without a GPU: the times that the bandwidths of some GPUs allow, from the same bytes.\n"
    "  --tokens N,...     --columns V_local,...     every combination (default 4096, 128256)\n"
    "  --dtype LIST       of fp32, bf16, fp16 (default bf16)\n"
    "  --kernels LIST     beginnings of names: stats, merge, loss, gradient, fdiv,\n"
    "                     scale_rows, fused (default all)\n"
    "  --shards S         whose statistics the merge takes (default 8)\n"
    "  --repetitions R    of which median and quartiles are printed (default 30)\n"
    "  --device I         (default 0)\n"
    "  --json FILE        a line for the device, then one for each kernel\n"
    "Exit status: 0 all right, 1 a kernel is wrong or fails, 2 bad option.\n";

inline Options parse_options(const std::vector<std::string>& arguments) {
  Options o;
  const auto list = [](std::vector<std::string>& target) {
    return [&](const std::string&, const std::string& value) { target = split(value); };
  };
  const auto number = [](int64_t& target, int64_t minimum, int64_t maximum) {
    return [=, &target](const std::string& option, const std::string& value) {
      target = Options::number(option, value, minimum, maximum);
    };
  };
  const std::map<std::string, std::function<void(const std::string&, const std::string&)>> known = {
      {"--tokens", list(o.tokens)},
      {"--columns", list(o.columns)},
      {"--dtype", list(o.dtypes)},
      {"--kernels", list(o.kernels)},
      {"--shards", number(o.shards, 1, 1024)},
      {"--repetitions", number(o.repetitions, 1, 100000)},
      {"--device", number(o.device, 0, 1023)},
      {"--json", [&](const std::string&, const std::string& value) { o.json = value; }},
  };
  for (size_t i = 0; i < arguments.size() && !o.help; i += 2) {
    const std::string& option = arguments[i];
    const auto found = known.find(option);
    o.help = option == "--help" || option == "-h";
    if (o.help) continue;
    if (found == known.end()) throw UsageError("unknown option '" + option + "', see --help");
    if (i + 1 == arguments.size()) throw UsageError(option + " needs a value");
    found->second(option, arguments[i + 1]);
  }
  if (!o.help) o.shapes();  // refused before anything is measured
  return o;
}

}  // namespace bgkd::bench
