// GPUs on paper. No CUDA here.
#pragma once

#include "../../csrc/launch_plan.h"

namespace bgkd::bench {

// Sizes: CUDA programming guide, technical specifications for each compute capability.
constexpr SharedMemory kSm80Memory = {163 << 10, 164 << 10, 1};
constexpr SharedMemory kSm90Memory = {227 << 10, 228 << 10, 8};  // and sm_100's

struct PaperGpu {
  const char* name;
  double gb_per_second;
  int num_sms;
  SharedMemory memory;
  const char* source;  // of the bandwidth: NVIDIA's data sheets
};

// benchmarks/loss_bench/roofline.py reads these lines, too.
constexpr PaperGpu kPaperGpus[] = {
    {"A100", 2039, 108, kSm80Memory, "A100 80GB SXM"},
    {"H100", 3350, 132, kSm90Memory, "H100 SXM"},
    {"H200", 4800, 132, kSm90Memory, "H200 SXM"},
    {"B200", 8000, 148, kSm90Memory, "DGX B200, 64 TB/s for eight"},
};

}  // namespace bgkd::bench
