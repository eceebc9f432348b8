// A test runner of one page: named checks, a report of each failure, an exit code for ctest.
#pragma once

#include <cmath>
#include <cstdio>

inline int failures = 0;

inline void check_close(const char* what, double got, double expected, double tolerance) {
  const bool same_infinity = std::isinf(expected) && got == expected;
  const double error = std::fabs(got - expected) / (1.0 + std::fabs(expected));
  if (same_infinity || error <= tolerance) return;
  ++failures;
  std::printf("FAILED %s: got %.9g, expected %.9g, relative error %.2g above %.2g\n", what, got,
              expected, error, tolerance);
}

inline void check(const char* what, bool holds) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s\n", what);
}

inline int report(const char* name) {
  std::printf("%s: %s\n", name, failures == 0 ? "all checks passed" : "FAILED");
  return failures == 0 ? 0 : 1;
}
