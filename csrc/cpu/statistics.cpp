// CPU executor of the statistics. Compiled once per instruction set, with CPU_CAPABILITY set by the
// build.

#include <algorithm>

#include "../core/online.h"
#include "../vocab_stats.h"
#include "vector_pack.h"

namespace bgkd {
// Internal linkage: the builds of this file share every name but the one at its end.
namespace {

constexpr int kBlockVectors = 16;
constexpr int64_t kBlock = kBlockVectors * kLanes;

using VecBlock = Block<Vec, kBlockVectors>;

template <class T>
BGKD_INLINE void load_block(const T* logits, VecBlock& block) {
  for (int k = 0; k < kBlockVectors; k += 2) {
    load_two(logits + k * kLanes, block.column[k], block.column[k + 1]);
  }
}

// The tail of a row: absent columns behind the last one.
template <class T>
BGKD_INLINE void load_tail(const T* logits, int64_t count, VecBlock& block) {
  T padded[kBlock];
  copy_tail(logits, count, padded);
  load_block(padded, block);
}

// First column whose logit is the row's maximum. `blocks` tells for each lane in which block its
// maximum stood, so that at most one block per lane is read again. Column 0 when no logit is above
// the lowest float.
template <class T>
int64_t locate_maximum(const T* logits, int64_t num_columns, float maximum,
                       const float (&maxima)[kLanes], const float (&blocks)[kLanes]) {
  int64_t first = num_columns;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (maxima[lane] != maximum) continue;
    const int64_t start = static_cast<int64_t>(blocks[lane]) * kBlock + lane;
    const int64_t stop = std::min(first, num_columns);
    for (int k = 0; k < kBlockVectors; ++k) {
      const int64_t column = start + k * kLanes;
      if (column >= stop) break;
      if (static_cast<float>(logits[column]) == maximum) {
        first = column;
        break;
      }
    }
  }
  return first < num_columns ? first : 0;
}

float maximum_of_lanes(Vec x) {
  float lane[kLanes];
  x.store(lane);
  return *std::max_element(lane, lane + kLanes);
}

template <uint32_t kFeatures>
TokenStats merge_lanes(LaneStats<Vec, kFeatures>& lanes, const StatsParams& params) {
  TokenStats s = neutral_stats();
  s[kStudentMax] = maximum_of_lanes(lanes.student_max);
  s[kTeacherMax] = maximum_of_lanes(lanes.teacher_max);
  settle(lanes, Vec(s[kStudentMax]), Vec(s[kTeacherMax]), params.inv_temperature,
         params.power_exponent);
  s[kStudentSum] = sum_of_lanes(lanes.student_sum);
  s[kStudentH] = sum_of_lanes(lanes.student_h);
  if constexpr ((kFeatures & kTeacher) == 0) return s;
  s[kTeacherSum] = sum_of_lanes(lanes.teacher_sum);
  s[kTeacherH] = sum_of_lanes(lanes.teacher_h);
  s[kForward] = sum_of_lanes(lanes.forward);
  s[kReverse] = sum_of_lanes(lanes.reverse);
  s[kPower] = sum_of_lanes(lanes.power);
  s[kSoftStudentSum] = sum_of_lanes(lanes.soft_student_sum);
  s[kSoftTeacherSum] = sum_of_lanes(lanes.soft_teacher_sum);
  s[kSoftForward] = sum_of_lanes(lanes.soft_forward);
  s[kSoftReverse] = sum_of_lanes(lanes.soft_reverse);
  return s;
}

template <class T, uint32_t kFeatures>
TokenStats token_stats(const T* z, const T* t, int64_t num_columns, const StatsParams& params) {
  constexpr bool kHasTeacher = (kFeatures & kTeacher) != 0;
  LaneStats<Vec, kFeatures> lanes;
  VecBlock z_block, t_block;
  int64_t column = 0;
  float block = 0.f;
  for (; column + kBlock <= num_columns; column += kBlock, block += 1.f) {
    load_block(z + column, z_block);
    if constexpr (kHasTeacher) load_block(t + column, t_block);
    update(lanes, z_block, t_block, block, params.inv_temperature, params.power_exponent);
  }
  if (column < num_columns) {
    load_tail(z + column, num_columns - column, z_block);
    if constexpr (kHasTeacher) load_tail(t + column, num_columns - column, t_block);
    update(lanes, z_block, t_block, block, params.inv_temperature, params.power_exponent);
  }

  TokenStats s = merge_lanes(lanes, params);
  float maxima[kLanes], blocks[kLanes];
  lanes.student_max.store(maxima);
  lanes.student_max_block.store(blocks);
  s[kStudentArgmax] =
      static_cast<float>(locate_maximum(z, num_columns, s[kStudentMax], maxima, blocks));
  if constexpr (kHasTeacher) {
    lanes.teacher_max.store(maxima);
    lanes.teacher_max_block.store(blocks);
    const int64_t argmax = locate_maximum(t, num_columns, s[kTeacherMax], maxima, blocks);
    s[kTeacherArgmax] = static_cast<float>(argmax);
    s[kStudentAtArgmax] = static_cast<float>(z[argmax]);
  }
  return s;
}

template <class T, uint32_t kFeatures>
void stats_of_tokens(const StatsArgs& args, int64_t begin, int64_t end) {
  const LogitsShard& logits = args.logits;
  for (int64_t i = begin; i < end; ++i) {
    const T* z = static_cast<const T*>(logits.student) + i * logits.student_stride;
    const T* t = (kFeatures & kTeacher)
                     ? static_cast<const T*>(logits.teacher) + i * logits.teacher_stride
                     : nullptr;
    TokenStats s = neutral_stats();
    if (logits.num_columns > 0 && !args.labels.skipped(i)) {
      s = token_stats<T, kFeatures>(z, t, logits.num_columns, args.params);
      s[kStudentArgmax] += static_cast<float>(logits.vocab_start);
      s[kTeacherArgmax] += static_cast<float>(logits.vocab_start);
      if (args.labels.ids != nullptr) {
        const int64_t column = args.labels.ids[i] - logits.vocab_start;
        if (column >= 0 && column < logits.num_columns) {
          s[kStudentAtLabel] = static_cast<float>(z[column]);
          if (t != nullptr) s[kTeacherAtLabel] = static_cast<float>(t[column]);
        }
      }
    }
    store_stats(s, args.partial, args.num_tokens, i, args.params.features);
  }
}

// Everything that costs no further exponential is always computed; the rest are separate instances.
constexpr uint32_t kStudentSet = kStudentEntropy;
constexpr uint32_t kTeacherSet = kStudentSet | kTeacher | kForwardKl | kReverseKl | kTeacherEntropy;

template <class T>
void stats_of_dtype(const StatsArgs& args, int64_t begin, int64_t end) {
  switch (args.params.features & (kTeacher | kPowerSum | kSoftened)) {
    case 0:
      return stats_of_tokens<T, kStudentSet>(args, begin, end);
    case kTeacher:
      return stats_of_tokens<T, kTeacherSet>(args, begin, end);
    case kTeacher | kPowerSum:
      return stats_of_tokens<T, kTeacherSet | kPowerSum>(args, begin, end);
    case kTeacher | kSoftened:
      return stats_of_tokens<T, kTeacherSet | kSoftened>(args, begin, end);
    default:
      return stats_of_tokens<T, kTeacherSet | kPowerSum | kSoftened>(args, begin, end);
  }
}

}  // namespace

namespace CPU_CAPABILITY {

void compute_stats(const StatsArgs& args, int64_t begin, int64_t end) {
  with_dtype<c10::BFloat16, c10::Half>(args.logits.dtype,
                                       [&]<class T>(T) { stats_of_dtype<T>(args, begin, end); });
}

}  // namespace CPU_CAPABILITY
}  // namespace bgkd
