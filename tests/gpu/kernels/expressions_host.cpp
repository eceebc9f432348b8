#include "expressions.h"

#define STORE(expression) \
  *out = (expression);    \
  out += n;
#define NAME(expression) #expression "\n"

#define HOST(name, Result, EXPRESSIONS)                                                            \
  extern "C" void name(const float* A, const float* B, const float* C, const int* X, const int* Y, \
                       const int* Z, Result* results, int n) {                                     \
    for (int i = 0; i < n; ++i) {                                                                  \
      const float a = A[i], b = B[i], c = C[i];                                                    \
      const int x = X[i], y = Y[i], z = Z[i];                                                      \
      Result* out = results + i;                                                                   \
      EXPRESSIONS(STORE)                                                                           \
    }                                                                                              \
  }                                                                                                \
  extern "C" const char* name##_names() { return EXPRESSIONS(NAME); }

HOST(exact_float, float, EXACT_FLOAT)
HOST(exact_integer, int, EXACT_INTEGER)
HOST(close, float, CLOSE)
