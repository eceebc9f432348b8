// The contract of the second sweep (core/fdiv.h), in the manner of vocab_stats.h.
#pragma once

#include "core/fdiv.h"
#include "vocab_stats.h"

namespace bgkd {

struct FdivArgs {
  LogitsShard logits;
  TokenLabels labels;
  FDivergence kind;
  FdivParams params;
  uint32_t features;  // of `global`
  int64_t num_tokens;
  const float* global;  // [rows, num_tokens]: global statistics
  float* sums;  // out: [kNumFdivSums, num_tokens], of this shard; all shards' are to be added
};

// The gradient of the divergence and of the statistics together: after it the logits may be gone.
struct FdivGradientArgs {
  GradientArgs stats;
  FDivergence kind;
  FdivParams params;
  const float* sums;      // [kNumFdivSums, num_tokens], of all shards together
  const float* upstream;  // [num_tokens]: d loss / d divergence
};

// body(T{}, FdivKind<...>{}), as with_dtype and with_divergence. For the host.
template <class BFloat16, class Half, class Body>
inline __attribute__((always_inline)) void with_dtype_and_divergence(DType dtype,
                                                                     FDivergence divergence,
                                                                     const FdivParams& params,
                                                                     const Body& body) {
  with_dtype<BFloat16, Half>(dtype, [&](auto element) {
    with_divergence(divergence, params, [&](auto kind) { body(element, kind); });
  });
}

#define BGKD_DECLARE(capability)                                                        \
  namespace capability {                                                                \
  void compute_fdiv(const FdivArgs& args, int64_t begin, int64_t end);                  \
  void compute_fdiv_gradient(const FdivGradientArgs& args, int64_t begin, int64_t end); \
  }
BGKD_FOR_EACH_CAPABILITY(BGKD_DECLARE)
#undef BGKD_DECLARE

}  // namespace bgkd
