// What was measured, as lines of a table and of JSON. No CUDA here.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "options.h"

namespace bgkd::bench {

template <class... Values>
std::string format(const char* pattern, Values... values) {
  std::string text(std::snprintf(nullptr, 0, pattern, values...), '\0');
  std::snprintf(text.data(), text.size() + 1, pattern, values...);
  return text;
}

struct DeviceFacts {
  std::string name;  // and the versions of CUDA, in words
  int num_sms, max_sm_megahertz, max_memory_megahertz;
  double peak_gb_per_second;  // of the memory
};

// Of repetitions, in microseconds.
struct Times {
  double median = 0, first_quartile = 0, third_quartile = 0;

  Times() = default;
  explicit Times(std::vector<double> us) {
    std::sort(us.begin(), us.end());
    const auto quantile = [&](double share) {  // linear between neighbours
      const double place = share * static_cast<double>(us.size() - 1);
      const size_t below = static_cast<size_t>(place), above = std::min(below + 1, us.size() - 1);
      return us[below] + (place - static_cast<double>(below)) * (us[above] - us[below]);
    };
    median = quantile(0.5), first_quartile = quantile(0.25), third_quartile = quantile(0.75);
  }
};

struct Measurement {
  Shape shape;
  std::string kernel;
  int64_t bytes;        // traffic.h
  std::string problem;  // why there are no times: a wrong result, or no room
  Times times, copy;    // of the kernel, and of a copy that moves as many bytes

  double gb_per_second() const { return static_cast<double>(bytes) / times.median * 1e-3; }
  double copy_share() const { return copy.median / times.median; }
};

inline std::string quoted(const std::string& text) {
  std::string out;
  for (char c : text) out += c == '"' || c == '\\' ? std::string{'\\', c} : std::string{c};
  return '"' + out + '"';
}

inline std::string table_head(const DeviceFacts& d) {
  return format("%s, %d SMs up to %d MHz, memory up to %d MHz, %.0f GB/s\n", d.name.c_str(),
                d.num_sms, d.max_sm_megahertz, d.max_memory_megahertz, d.peak_gb_per_second) +
         format("%7s %8s %5s  %-38s %9s %9s %7s %7s %7s %7s\n", "N", "V_local", "dtype", "kernel",
                "MiB", "us", "+-", "GB/s", "% peak", "% copy");
}

inline std::string table_line(const Measurement& m, const DeviceFacts& device) {
  const std::string head = format("%7ld %8ld %5s  %-38s %9.1f", long{m.shape.num_tokens},
                                  long{m.shape.num_columns}, m.shape.dtype_name.c_str(),
                                  m.kernel.c_str(), static_cast<double>(m.bytes) / (1 << 20));
  if (!m.problem.empty()) return head + "  " + m.problem + '\n';
  return head + format(" %9.1f %7.1f %7.0f %7.1f %7.1f\n", m.times.median,
                       (m.times.third_quartile - m.times.first_quartile) / 2, m.gb_per_second(),
                       100 * m.gb_per_second() / device.peak_gb_per_second, 100 * m.copy_share());
}

inline std::string notes(int64_t repetitions) {
  return format(
      "* MiB: what the kernel must move, every number once. Before it was timed, its results "
      "agreed "
      "with float64 in the first, middle and last row.\n"
      "* us: median of %d by the device's events, +- half the distance of the quartiles; before "
      "each, twice the L2 cache is read. Below some 10 us the launch itself shows.\n"
      "* %% peak: of what clock and width of the memory give. %% copy: time of a copy kernel that "
      "moves as many bytes, in turns with the kernel, over its time.\n",
      static_cast<int>(repetitions));
}

inline std::string json_line(const DeviceFacts& d) {
  return format(
      "{\"device\": %s, \"num_sms\": %d, \"max_sm_mhz\": %d, \"max_memory_mhz\": %d, "
      "\"peak_gb_per_second\": %.6g}\n",
      quoted(d.name).c_str(), d.num_sms, d.max_sm_megahertz, d.max_memory_megahertz,
      d.peak_gb_per_second);
}

inline std::string json_line(const Measurement& m, const DeviceFacts& device) {
  const std::string head = format(
      "{\"num_tokens\": %ld, \"num_columns\": %ld, \"dtype\": %s, \"kernel\": %s, \"bytes\": %ld, ",
      long{m.shape.num_tokens}, long{m.shape.num_columns}, quoted(m.shape.dtype_name).c_str(),
      quoted(m.kernel).c_str(), long{m.bytes});
  if (!m.problem.empty()) return head + "\"problem\": " + quoted(m.problem) + "}\n";
  const auto times = [](const Times& t) {
    return format("[%.6g, %.6g, %.6g]", t.first_quartile, t.median, t.third_quartile);
  };
  return head + format(
                    "\"us_quartiles\": %s, \"copy_us_quartiles\": %s, \"gb_per_second\": %.6g, "
                    "\"peak_share\": %.4g, \"copy_share\": %.4g}\n",
                    times(m.times).c_str(), times(m.copy).c_str(), m.gb_per_second(),
                    m.gb_per_second() / device.peak_gb_per_second, m.copy_share());
}

}  // namespace bgkd::bench
