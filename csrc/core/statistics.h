// The list of per-token statistics: their meaning before and after the merge over vocabulary
// shards, and their place in memory.
//
// A tensor of statistics is [rows, N] float32 with one row per statistic that the requested
// features need, in the order of Stat. Notation: z, t = student and teacher logits of the columns
// seen, q = softmax(z), p = softmax(t); z' = (z - max z) log2 e and t' alike are the logits
// relative to their maximum, in base 2.
#pragma once

#include <cstdint>

#include "portable.h"

namespace bgkd {

enum Feature : uint32_t {
  kTeacher = 1,
  kLabel = 2,
  kForwardKl = 4,
  kReverseKl = 8,
  kStudentEntropy = 16,
  kTeacherEntropy = 32,
  kPowerSum = 64,
  kSoftened = 128,
};
constexpr uint32_t kAllFeatures = 255;

// Everything that reads the teacher's logits.
constexpr uint32_t kTeacherFeatures =
    kTeacher | kForwardKl | kReverseKl | kTeacherEntropy | kPowerSum | kSoftened;

//                   partial (one shard)                   global (whole vocabulary)
enum Stat : int {    //
  kStudentMax,       // max z                                 same
  kStudentSum,       // S 2^z'                                ln of it; L_S = max + ln sum
  kStudentArgmax,    // token id, lowest on ties              same
  kStudentH,         // S 2^z' z'                             entropy H(q), nats
  kStudentAtLabel,   // z_y, 0 where another shard owns y     log q_y
  kTeacherMax,       // max t                                 same
  kTeacherSum,       // S 2^t'                                ln of it
  kTeacherArgmax,    // token id, lowest on ties              same
  kStudentAtArgmax,  // z at the teacher's argmax             log q there
  kTeacherH,         // S 2^t' t'                             entropy H(p)
  kTeacherAtLabel,   // t_y, 0 where another shard owns y     log p_y
  kForward,          // S 2^t' (t' - z')                      KL(p || q)
  kReverse,          // S 2^z' (z' - t')                      KL(q || p)
  kPower,            // S 2^(g t')                            S p^g
  kSoftStudentSum,   // S 2^(z'/T)                            ln of it
  kSoftTeacherSum,   // S 2^(t'/T)                            ln of it
  kSoftForward,      // S 2^(t'/T) (t' - z')                  KL(p^T || q^T)
  kSoftReverse,      // S 2^(z'/T) (z' - t')                  KL(q^T || p^T)
  kNumStats
};

constexpr const char* kStatNames[kNumStats] = {
    "student_max",      "student_sum",       "student_argmax",
    "student_entropy",  "student_at_label",  "teacher_max",
    "teacher_sum",      "teacher_argmax",    "student_at_teacher_argmax",
    "teacher_entropy",  "teacher_at_label",  "forward_kl",
    "reverse_kl",       "teacher_power_sum", "soft_student_sum",
    "soft_teacher_sum", "soft_forward_kl",   "soft_reverse_kl",
};

// A statistic is there when all of these features are requested.
BGKD_INLINE constexpr uint32_t required_features(int stat) {
  // A table inside the function: device code cannot read one in the host's namespace.
  constexpr uint32_t kRequired[kNumStats] = {
      0,                           // student_max
      0,                           // student_sum
      0,                           // student_argmax
      kStudentEntropy,             // student_entropy
      kLabel,                      // student_at_label
      kTeacher,                    // teacher_max
      kTeacher,                    // teacher_sum
      kTeacher,                    // teacher_argmax
      kTeacher,                    // student_at_teacher_argmax
      kTeacher | kTeacherEntropy,  // teacher_entropy
      kTeacher | kLabel,           // teacher_at_label
      kTeacher | kForwardKl,       // forward_kl
      kTeacher | kReverseKl,       // reverse_kl
      kTeacher | kPowerSum,        // teacher_power_sum
      kTeacher | kSoftened,        // soft_student_sum
      kTeacher | kSoftened,        // soft_teacher_sum
      kTeacher | kSoftened,        // soft_forward_kl
      kTeacher | kSoftened,        // soft_reverse_kl
  };
  return kRequired[stat];
}

BGKD_INLINE constexpr bool has_stat(uint32_t features, int stat) {
  return (required_features(stat) & ~features) == 0;
}

BGKD_INLINE constexpr int num_rows(uint32_t features) {
  int rows = 0;
  for (int stat = 0; stat < kNumStats; ++stat) rows += has_stat(features, stat);
  return rows;
}

// A feature that needs the teacher is meaningless without it.
constexpr bool features_are_consistent(uint32_t features) {
  return (features & ~kAllFeatures) == 0 &&
         ((features & kTeacher) != 0 || (features & kTeacherFeatures) == 0);
}

// Token ids travel as float32, exact up to here.
constexpr int64_t kMaxVocabSize = int64_t{1} << 24;

// All statistics of one token, partial or global. Those that were not requested are never stored.
struct TokenStats {
  float at[kNumStats];

  BGKD_INLINE float& operator[](int stat) { return at[stat]; }
  BGKD_INLINE float operator[](int stat) const { return at[stat]; }
};

// Token `i` of a packed [rows, N] tensor; statistics that are not stored are left alone.
BGKD_INLINE void load_stats(TokenStats& s, const float* packed, int64_t num_tokens, int64_t i,
                            uint32_t features) {
  int64_t row = 0;
  for (int stat = 0; stat < kNumStats; ++stat) {
    if (has_stat(features, stat)) s[stat] = packed[row++ * num_tokens + i];
  }
}

BGKD_INLINE void store_stats(const TokenStats& s, float* packed, int64_t num_tokens, int64_t i,
                             uint32_t features) {
  int64_t row = 0;
  for (int stat = 0; stat < kNumStats; ++stat) {
    if (has_stat(features, stat)) packed[row++ * num_tokens + i] = s[stat];
  }
}

// A running sum of w (log2 p - log2 q), relative to the maxima, after these moved: every term gains
// log2 `gap_shift`, then all weights shrink by `scale`. No weight so far, or none left, means 0,
// whatever the shift or the sum.
template <class F>
BGKD_INLINE F rescaled_cross(F cross, F weight_sum, F scale, F gap_shift) {
  return weighted(scale, cross + weighted(weight_sum, gap_shift));
}

}  // namespace bgkd
