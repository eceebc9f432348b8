// How the sweeps compute on each architecture: on how many columns at once, and how many of their
// exponentials are polynomials.
//
// In a clock, an SM makes 16 exponentials and issues 128 instructions (counted by threads). A
// polynomial takes 9 slots of the FMA pipe, which has 128 a clock, and 64 on sm_80. The shares
// below are those at which the tightest of these pipes is loosest, from counts of what nvcc 13.0
// makes of bfloat16 rows (docs/kernels.md).
#pragma once

#include "../core/fdiv.h"
#include "../core/gradient.h"
#include "../core/statistics.h"
#include "../launch_plan.h"
#include "lane_pair.cuh"

namespace bgkd {

// An addition or multiplication of two columns is one instruction from sm_100 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <bool kChecked>
using ColumnPack = LanePair<kChecked>;
#else
template <bool kChecked>
using ColumnPack = Lane<kChecked>;
#endif

// Of every kShareUnit exponentials of the statistics.
BGKD_INLINE constexpr int statistics_share(uint32_t features) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  // The more terms a set multiplies and adds, the less of the FMA pipe is left.
  if (features & kSoftened) return features & kPowerSum ? 8 : 7;
  if (features & kPowerSum) return 6;
  if ((features & kTeacher) == 0) return features & kStudentEntropy ? 4 : 8;
  int expectations = 0;
  for (uint32_t feature : {kForwardKl, kReverseKl, kStudentEntropy, kTeacherEntropy}) {
    expectations += (features & feature) != 0;
  }
  return expectations == 0 ? 8 : expectations == 1 ? 6 : 4;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  // Two exponentials a pair leave memory the bound by far; three and more do not.
  return features & (kPowerSum | kSoftened) ? 4 : 0;
#else
  return 0;  // the FMA pipe has as much to do as the special-function unit, or more
#endif
}

// The same of a gradient.
BGKD_INLINE constexpr int gradient_share(GradientKind kind) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return kind == GradientKind::kSoftened ? 9 : 10;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return kind == GradientKind::kSoftened ? 4 : 0;
#else
  return 0;
#endif
}

// The same of the gradient that the fused kernel writes: on the SM that makes the exponentials of
// the statistics, too.
BGKD_INLINE constexpr int fused_gradient_share(GradientKind kind) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000
  return 4;
#else
  return gradient_share(kind);
#endif
}

// The same of a divergence's second sweep, which takes logarithms and quotients from the
// special-function unit, too: two results of it a pair for total variation, three for
// Jensen-Shannon, four for the skewed divergences, three for alpha-beta and less for its limits.
BGKD_INLINE constexpr int fdiv_share(FDivergence kind) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  switch (kind) {
    case FDivergence::kJensenShannon:
      return 3;
    case FDivergence::kSkewForward:
    case FDivergence::kSkewReverse:
      return 11;
    case FDivergence::kAlphaBeta:
      return 6;
    default:
      return 0;
  }
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return kind == FDivergence::kSkewForward || kind == FDivergence::kSkewReverse ? 4 : 0;
#else
  return 0;
#endif
}

// The same of its gradient, which is that of the statistics as well.
BGKD_INLINE constexpr int fdiv_gradient_share() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return 10;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return 4;
#else
  return 0;
#endif
}

// Blocks of the statistics kernel for which an SM must have registers. The softened sets have so
// many sums of pairs that three blocks' would spill; they are bound by arithmetic in any case.
BGKD_INLINE constexpr int statistics_blocks_per_sm(uint32_t features) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if (features & kSoftened) return 2;
#endif
  return kCudaBlocksPerSm;
}

}  // namespace bgkd
