// The parts of benchmarks/kernels that need no GPU: command line, bytes, float64 formulas, report.

#include <functional>

#include "../../benchmarks/kernels/exact.h"
#include "../../benchmarks/kernels/roofline.h"
#include "check.h"

using namespace bgkd;
using namespace bgkd::bench;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// ---- command line

std::string mistake(const std::vector<std::string>& arguments) {
  try {
    parse_options(arguments);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

void test_options() {
  const Options o = parse_options({"--tokens", "1,2", "--columns", "10,20,30", "--dtype",
                                   "fp32,fp16", "--kernels", "fdiv,fused/h", "--shards", "4"});
  const std::vector<Shape> shapes = o.shapes();
  check("every combination", shapes.size() == 2 * 3 * 2);
  check("the last one", shapes.back().num_tokens == 2 && shapes.back().num_columns == 30 &&
                            shapes.back().dtype == DType::kFloat16);
  check("kernels by the beginning of their names",
        o.wants("fdiv/skew_forward") && o.wants("fused/hybrid") && !o.wants("fused/softened"));
  check("all kernels by default", parse_options({}).wants("merge") && o.shards == 4);
  check("help", parse_options({"--help"}).help);
  check("unknown option", contains(mistake({"--token", "3"}), "unknown option '--token'"));
  check("no number", contains(mistake({"--tokens", "3x"}), "from 1 to 2147483647, got '3x'"));
  check("zero", contains(mistake({"--columns", "0"}), "got '0'"));
  check("an empty entry", contains(mistake({"--tokens", "3,"}), "got ''"));
  check("no value", contains(mistake({"--json"}), "--json needs a value"));
  check("unknown dtype", contains(mistake({"--dtype", "fp8"}), "got 'fp8'"));
}

// ---- bytes

void test_bytes() {
  const Shape s{1024, 32768, "bf16"};
  const int64_t tensor = 1024 * 32768 * 2;
  const CudaPlan whole_rows{256, 1, 32768}, five_parts{256, 5, 8192};
  const CpuLaunchPlan cpu = plan_cpu_launch(1024, 32768, 2, kAllFeatures);
  const int64_t labels = 8 * 1024;
  check("statistics as on the CPU, and labels",
        stats_bytes(s, kAllFeatures, whole_rows) == cpu.forward_bytes + labels);
  check("gradient as on the CPU, and labels",
        gradient_bytes(s, kAllFeatures, true) == cpu.backward_bytes + labels);
  check("no teacher", stats_bytes(s, kLabel, whole_rows) == tensor + labels + 4 * 4 * 1024);
  check("parts are written and read",
        stats_bytes(s, kAllFeatures, five_parts) - stats_bytes(s, kAllFeatures, whole_rows) ==
            2 * 5 * 18 * 4 * 1024);
  check("merge", merge_bytes(s, kAllFeatures, 8) == 9 * 18 * 4 * 1024 + labels);
  check("divergence", fdiv_bytes(s, whole_rows) == 2 * tensor + labels + 6 * 4 * 1024);
  check("its gradient", fdiv_gradient_bytes(s, kAllFeatures) ==
                            gradient_bytes(s, kAllFeatures, true) + 2 * 4 * 1024);
  check("merge and losses",
        loss_bytes(s, kAllFeatures, 8) == merge_bytes(s, kAllFeatures, 8) + (18 + 5) * 4 * 1024);
  check("scaled rows", scale_rows_bytes(s) == 2 * tensor + 4 * 1024);
  check("fused", fused_bytes(s, kLabel) == 3 * tensor + labels + 9 * 4 * 1024);
}

// ---- roofline

void test_roofline() {
  const Options o =
      parse_options({"--tokens", "1024", "--columns", "32768", "--kernels", "stats/all"});
  const Shape shape = o.shapes().front();
  const std::vector<PaperKernel> kernels = rooflines(shape, o);
  check("kernels that are asked for", kernels.size() == 1 && kernels[0].kernel == "stats/all");
  const PaperTime time = kernels[0].times.at("H100");
  check("the bytes of the model", time.bytes == stats_bytes(shape, kAllFeatures, {256, 1, 32768}));
  check_close("over the bandwidth", time.us, static_cast<double>(time.bytes) / 3.35e12 * 1e6, 1e-9);
  check("the table", contains(table_line(kernels[0]), format(" %9.2f", time.us)) &&
                         contains(roofline_head(), "static, not measured"));
  // 128,256 columns in one block of the A100, and in a cluster of the others
  const Options long_rows = parse_options({"--kernels", "fused/hybrid"});
  const PaperKernel fused = rooflines(long_rows.shapes().front(), long_rows).front();
  check("a row that does not fit on the chip has no time",
        fused.times.size() == 3 && fused.times.count("A100") == 0 &&
            contains(table_line(fused), "   3006.3         - "));
  const Options one_row = parse_options({"--tokens", "1", "--kernels", "stats/all"});
  const PaperKernel parts = rooflines(one_row.shapes().front(), one_row).front();
  check("parts by the number of SMs", parts.times.at("A100").bytes <= parts.times.at("B200").bytes);
  check("JSON", contains(json_line(kernels[0]),
                         format("\"H100\": {\"bytes\": %ld, \"us\": ", long{time.bytes})) &&
                    contains(roofline_json_head("no driver"),
                             "\"measured\": false, \"reason\": \"no driver\""));
}

// ---- float64

const StatsParams kParams{kAllFeatures, 0.5f, 0.25f};
const Logits kStudent = {1.0, 3.0, 2.0, -1.5}, kTeacher_ = {2.0, 0.5, 1.75, 0.25};

ExactToken token_at(const Logits& student) { return {student, kTeacher_, 2, kParams}; }

// The gradient is the derivative of the value, by central differences.
void check_derivative(const char* name, const Logits& gradient,
                      const std::function<double(const ExactToken&)>& value) {
  constexpr double kStep = 1e-5;
  for (size_t v = 0; v < kStudent.size(); ++v) {
    Logits above = kStudent, below = kStudent;
    above[v] += kStep, below[v] -= kStep;
    const double slope = (value(token_at(above)) - value(token_at(below))) / (2 * kStep);
    check_close(name, gradient[v], slope, 1e-8);
  }
}

void test_exact() {
  const ExactToken exact = token_at(kStudent);
  // of two tokens, by hand
  const ExactToken two({0., std::log(3.)}, {0., 0.}, 0, kParams);
  check_close("log q", two.stats[kStudentAtLabel], std::log(0.25), 1e-15);
  check_close("forward KL", two.stats[kForward], std::log(2) - 0.5 * std::log(3), 1e-15);
  check_close("reverse KL", two.stats[kReverse], 0.75 * std::log(3) - std::log(2), 1e-15);
  check_close("power sum", two.stats[kPower], 2 * std::pow(0.5, 0.25), 1e-15);
  check_close("total variation", two.divergence(FDivergence::kTotalVariation, 0.3), 0.25, 1e-15);
  const double m0 = 0.7 * 0.5 + 0.3 * 0.25, m1 = 0.7 * 0.5 + 0.3 * 0.75;
  check_close("skew reverse KL", two.divergence(FDivergence::kSkewReverse, 0.3),
              0.25 * std::log(0.25 / m0) + 0.75 * std::log(0.75 / m1), 1e-15);
  for (int stat : {kStudentAtLabel, kStudentH, kForward, kReverse, kSoftForward, kSoftReverse}) {
    PerStat up{};
    up[stat] = 1;
    check_derivative(kStatNames[stat], exact.gradient(up),
                     [&](const ExactToken& t) { return t.stats[stat]; });
  }
  for (FDivergence kind : {FDivergence::kJensenShannon, FDivergence::kSkewForward,
                           FDivergence::kSkewReverse, FDivergence::kTotalVariation}) {
    Logits gradient;
    exact.divergence(kind, 0.3, &gradient);
    check_derivative("divergence", gradient,
                     [&](const ExactToken& t) { return t.divergence(kind, 0.3); });
  }

  std::vector<float> packed(exact.stats.begin(), exact.stats.end());
  check("right statistics", exact.stats_difference(packed, kAllFeatures).empty());
  packed[kForward] += 1e-3f;
  check("a wrong one", contains(exact.stats_difference(packed, kAllFeatures), "forward_kl is "));
  packed[kStudentSum] = NAN;
  check("NaN", contains(exact.stats_difference(packed, kAllFeatures), "student_sum is nan"));
  Logits gradient = exact.gradient(PerStat{});
  check("a right gradient",
        exact.gradient_difference(gradient, gradient, 1, DType::kFloat32).empty());
  gradient[3] = 1e-3;
  check("a wrong one", contains(exact.gradient_difference(gradient, exact.gradient(PerStat{}), 1,
                                                          DType::kBFloat16),
                                "the gradient at column 3 is 0.001"));
}

// ---- report

void test_report() {
  const Times times({4, 1, 2, 3, 100});
  check("median and quartiles",
        times.median == 3 && times.first_quartile == 2 && times.third_quartile == 4);
  const DeviceFacts device{"GPU \"X\"", 132, 1980, 2619, 4000};
  Measurement m{{1024, 32768, "bf16"}, "merge", 2000000, "", Times({1}), Times({0.75})};
  check("2 MB in 1 us: 2000 GB/s, half the peak, 75 % of a copy",
        contains(table_line(m, device), "   2000    50.0    75.0\n"));
  check("the same in JSON", contains(json_line(m, device),
                                     "\"gb_per_second\": 2000, \"peak_share\": 0.5, "
                                     "\"copy_share\": 0.75}"));
  m.problem = "WRONG: token 0";
  check("a wrong result has no times", contains(table_line(m, device), "WRONG: token 0\n") &&
                                           !contains(json_line(m, device), "gb_per_second"));
  check("names are quoted", contains(json_line(device), "\"device\": \"GPU \\\"X\\\"\""));
}

}  // namespace

int main() {
  test_options();
  test_bytes();
  test_roofline();
  test_exact();
  test_report();
  return report("kernel benchmark");
}
