// Which feature sets the statistics kernel is compiled for.
#pragma once

#include "../core/statistics.h"

namespace bgkd {

// In rising order of cost; a request takes the first one that holds it. Labels, argmax and maxima
// cost nothing in the loop and are in every set.
constexpr uint32_t kStatsInstances[] = {
    kLabel,
    kLabel | kStudentEntropy,
    kLabel | kTeacher,
    kLabel | kTeacher | kForwardKl,
    kLabel | kTeacher | kReverseKl,
    kLabel | kTeacher | kForwardKl | kStudentEntropy | kTeacherEntropy,
    kLabel | kTeacher | kForwardKl | kReverseKl | kStudentEntropy | kTeacherEntropy,
    kAllFeatures & ~kSoftened,
    kAllFeatures & ~kPowerSum,
    kAllFeatures,
};
constexpr int kNumStatsInstances = sizeof(kStatsInstances) / sizeof(kStatsInstances[0]);

constexpr uint32_t stats_instance(uint32_t features) {
  for (uint32_t instance : kStatsInstances) {
    if ((features & ~instance) == 0 && (features & kTeacher) == (instance & kTeacher)) {
      return instance;
    }
  }
  return kAllFeatures;
}

}  // namespace bgkd
