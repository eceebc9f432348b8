// What lets the same mathematics compile for a CUDA thread, for one scalar CPU lane and for a CPU
// vector register.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define BGKD_INLINE __host__ __device__ __forceinline__
#else
// always_inline is not about speed: files that include these headers are compiled for several
// instruction sets, and a function left out of line would have one name in all of them. The linker
// would keep any one, AVX-512 on a machine that lacks it.
#define BGKD_INLINE inline __attribute__((always_inline))
#endif

namespace bgkd {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Stands for "no finite logit seen". Not -inf: the difference of two such maxima must be 0 and not
// NaN.
constexpr float kLowest = -3.4028234663852886e+38f;

// Fills the tail of a row: a column with both logits -inf is absent from both distributions.
constexpr float kAbsent = -__builtin_inff();

// The operations of the mathematics on a pack of lanes. A pack of at::vec registers is specialized
// in cpu/vector_pack.h.
template <class F>
struct Pack;

template <>
struct Pack<float> {
  // The processor has a 2^x of its own, `exp2`, for all x.
  static constexpr bool kHasExp2 = false;
  // 0 * inf is 0 where a term without weight is added. Without it the sum becomes NaN, and whoever
  // runs the loop looks for that and runs it again with a checked pack.
  static constexpr bool kChecked = true;
  // `fma` rounds once.
  static constexpr bool kFusesMultiplyAdd = true;
  static BGKD_INLINE float broadcast(float x) { return x; }
  // NaN in `x` is ignored here: it reaches every statistic through the exponential.
  static BGKD_INLINE float maximum(float x, float running) { return x > running ? x : running; }
  // NaN stays.
  static BGKD_INLINE float at_least(float x, float bound) { return bound > x ? bound : x; }
  static BGKD_INLINE float fma(float a, float b, float c) { return std::fma(a, b, c); }
  // a > b ? x : y
  static BGKD_INLINE float where_greater(float a, float b, float x, float y) {
    return a > b ? x : y;
  }
  // 2^n * x for integral n in [-127, 127]; n = -127 gives 0.
  static BGKD_INLINE float scale_by_power_of_two(float x, float n) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return x * scale;
  }
  static BGKD_INLINE float round(float x) { return std::nearbyint(x); }
  static BGKD_INLINE float log2(float x) { return std::log2(x); }
  static BGKD_INLINE float divide(float a, float b) { return a / b; }
};

// w * x for w >= 0, with 0 * inf = 0: the convention of every expectation here. A NaN weight stays.
template <class F>
BGKD_INLINE F weighted(F w, F x) {
  if constexpr (!Pack<F>::kChecked) return w * x;
  const F zero = Pack<F>::broadcast(0.f);
  return Pack<F>::where_greater(w, zero, w * x, w);
}

// sum + weighted(w, x)
template <class F>
BGKD_INLINE F add_weighted(F sum, F w, F x) {
  if constexpr (!Pack<F>::kChecked) return Pack<F>::fma(w, x, sum);
  return sum + weighted(w, x);
}

// A pack F, or one of several columns for each of its lanes, W: the same number for all columns of
// a lane, and the sum of these columns.
template <class W, class F>
BGKD_INLINE W spread(F x) {
  if constexpr (std::is_same_v<W, F>) {
    return x;
  } else {
    return Pack<W>::spread(x);
  }
}
template <class F, class W>
BGKD_INLINE F sum_of_columns(W x) {
  if constexpr (std::is_same_v<W, F>) {
    return x;
  } else {
    return Pack<W>::sum_of_columns(x);
  }
}

}  // namespace bgkd
