#include "expressions.h"

#define STORE(expression) \
  *out = (expression);    \
  out += n;

#define KERNEL(name, Result, EXPRESSIONS)                                                          \
  __global__ void name(const float* A, const float* B, const float* C, const int* X, const int* Y, \
                       const int* Z, Result* out, int n) {                                         \
    const int i = blockIdx.x * blockDim.x + threadIdx.x;                                           \
    if (i >= n) return;                                                                            \
    [[maybe_unused]] const float a = A[i], b = B[i], c = C[i];                                     \
    [[maybe_unused]] const int x = X[i], y = Y[i], z = Z[i];                                       \
    out += i;                                                                                      \
    EXPRESSIONS(STORE)                                                                             \
  }

KERNEL(exact_float, float, EXACT_FLOAT)
KERNEL(exact_integer, int, EXACT_INTEGER)
KERNEL(close, float, CLOSE)
