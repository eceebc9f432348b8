// The same expressions for nvcc and for the host's compiler: what the PTX executor computes is
// compared with what the host computes. Floats a b c, doubles from them, ints x y z.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#ifdef __CUDACC__
#define FUNCTION __device__ __forceinline__
#else
#include "host_intrinsics.h"
#define FUNCTION inline
#endif

FUNCTION float low_bf16(__nv_bfloat162 v) { return __low2float(v); }
FUNCTION float high_bf16(__nv_bfloat162 v) { return __high2float(v); }
FUNCTION __nv_bfloat16 bf(float a) { return __float2bfloat16_rn(a); }
FUNCTION __half hf(float a) { return __float2half_rn(a); }
FUNCTION float clamp(float a, float bound) { return fminf(fmaxf(a, -bound), bound); }

// Pairs of singles: one instruction from sm_100 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
FUNCTION unsigned long long packed(float2 pair) {
  unsigned long long bits;
  asm("mov.b64 %0, {%1, %2};" : "=l"(bits) : "f"(pair.x), "f"(pair.y));
  return bits;
}
FUNCTION float2 unpacked(unsigned long long bits) {
  float2 pair;
  asm("mov.b64 {%0, %1}, %2;" : "=f"(pair.x), "=f"(pair.y) : "l"(bits));
  return pair;
}
#define PAIR_OPERATION(name)                                                          \
  FUNCTION float2 name##_pairs(float2 a, float2 b) {                                  \
    unsigned long long bits;                                                          \
    asm(#name ".rn.f32x2 %0, %1, %2;" : "=l"(bits) : "l"(packed(a)), "l"(packed(b))); \
    return unpacked(bits);                                                            \
  }
PAIR_OPERATION(add)
PAIR_OPERATION(sub)
PAIR_OPERATION(mul)
FUNCTION float2 fma_pairs(float2 a, float2 b, float2 c) {
  unsigned long long bits;
  asm("fma.rn.f32x2 %0, %1, %2, %3;" : "=l"(bits) : "l"(packed(a)), "l"(packed(b)), "l"(packed(c)));
  return unpacked(bits);
}
#else
FUNCTION float2 add_pairs(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
FUNCTION float2 sub_pairs(float2 a, float2 b) { return {a.x - b.x, a.y - b.y}; }
FUNCTION float2 mul_pairs(float2 a, float2 b) { return {a.x * b.x, a.y * b.y}; }
FUNCTION float2 fma_pairs(float2 a, float2 b, float2 c) {
  return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)};
}
#endif

// clang-format off: a list is easier to read than what becomes of a macro's argument
// ---- results must be the same bits (any NaN equals any NaN)
#define EXACT_FLOAT(X)                                                                            \
  X(a + b) X(a - b) X(a * b) X(fmaf(a, b, c)) X(fmaf(a, -b, -c)) X(fmaf(a, a, b)) X(a / b)         \
  X(1.0f / a) X(sqrtf(fabsf(a))) X(fminf(a, b)) X(fmaxf(a, b)) X(-a) X(fabsf(a))                  \
  X(copysignf(a, b)) X(floorf(a)) X(ceilf(a)) X(rintf(a)) X(truncf(a)) X(a < b ? a : c)           \
  X(a >= b ? c : b) X(a == b ? 1.f : 2.f) X(a != a ? 3.f : a) X(isinf(a) ? 1.f : 0.f)             \
  X((float)x) X((float)(unsigned)x) X((float)(long long)x * 3.f) X((float)((long long)x * y))     \
  X((float)((unsigned long long)x * 77u)) X((float)((double)a + (double)b))                       \
  X((float)((double)a * (double)b - (double)c)) X((float)((double)a / (double)b))                 \
  X((float)sqrt(fabs((double)a))) X((float)fma((double)a / 3.0, (double)b / 7.0, (double)c))      \
  X((float)fmin((double)a, (double)b)) X((float)((double)x / (double)(y | 1)))                    \
  X(__uint_as_float(__float_as_uint(a) & 0xffff0000u)) X(a * 2.0f + 0.5f)                         \
  X(__fadd_rz(a, b)) X(__fadd_rd(a, b)) X(__fadd_ru(a, b)) X(__fsub_rz(a, b)) X(__fmul_rz(a, b))  \
  X(__fmul_rd(a, b)) X(__fmul_ru(a, b)) X(__fmaf_rz(a, b, c)) X(__fmaf_rd(a, b, c))               \
  X(__fmaf_ru(a, b, c)) X(__saturatef(a))                                                         \
  X(__bfloat162float(bf(a))) X(__bfloat162float(__float2bfloat16_rz(a)))                          \
  X(low_bf16(__floats2bfloat162_rn(a, b))) X(high_bf16(__floats2bfloat162_rn(a, b)))              \
  X(__half2float(hf(a))) X(__half2float(__float2half_rz(a)))                                      \
  X(__bfloat162float(__hadd(bf(a), bf(b)))) X(__bfloat162float(__hsub(bf(a), bf(b))))             \
  X(__bfloat162float(__hmul(bf(a), bf(b)))) X(__half2float(__hadd(hf(a), hf(b))))                 \
  X(__half2float(__hmul(hf(a), hf(b)))) X(__bfloat162float(bf(a) < bf(b) ? bf(c) : bf(a))) \
  X(add_pairs({a, b}, {b, c}).x) X(add_pairs({a, b}, {b, c}).y)                                   \
  X(sub_pairs({a, b}, {b, c}).x) X(sub_pairs({a, b}, {b, c}).y)                                   \
  X(mul_pairs({a, b}, {b, c}).x) X(mul_pairs({a, b}, {b, c}).y)                                   \
  X(fma_pairs({a, b}, {b, c}, {c, a}).x) X(fma_pairs({a, b}, {b, c}, {c, a}).y)

// ---- integers: the same
#define EXACT_INTEGER(X)                                                                          \
  X(x + y) X(x - y) X(x * y) X(x & y) X(x | y) X(x ^ y) X(~x) X(x << (y & 31)) X(x >> (y & 31))     \
  X((int)((unsigned)x >> (y & 31))) X(x / (y | 1)) X(x % (y | 1))                                 \
  X((int)((unsigned)x / ((unsigned)y | 1))) X((int)((unsigned)x % ((unsigned)y | 1)))             \
  X(x < y ? x : y) X(x > y ? x : y) X((int)(((long long)x * y) >> 32))                            \
  X((int)(((unsigned long long)(unsigned)x * (unsigned)y) >> 32)) X(__umulhi(x, y))               \
  X((int)__mul64hi((long long)x * 123456789ll, (long long)y << 20))                               \
  X((int)__umul64hi((unsigned long long)x, (unsigned long long)y)) X(__popc(x)) X(__clz(x))       \
  X(__ffs(x)) X(__brev(x)) X(__clzll((long long)x * y)) X(__popcll((long long)x * y))             \
  X((int)__brevll((long long)x * y)) X(__funnelshift_l(x, y, z)) X(__funnelshift_r(x, y, z))      \
  X(__funnelshift_lc(x, y, z & 63)) X(__funnelshift_rc(x, y, z & 63))                             \
  X(__byte_perm(x, y, z & 0x7777)) X(x * 7 + y) X(x % 7) X(x / 10) X((int)((unsigned)x / 24u))    \
  X((int8_t)x) X((uint16_t)x) X((int16_t)(x * y)) X((int)(((unsigned)x >> 5) & 0x3ff))            \
  X((x << 10) >> 20) X((int)((long long)x * y + z)) X((int)(((long long)x << (y & 31)) >> 7))     \
  X((int)(((unsigned long long)x << (y & 63)) >> 9)) X(abs(x == INT32_MIN ? 0 : x))               \
  X((x > 0) + (y > 0) * 2) X((int)((x ^ y) & ~z) | (x & z))                                       \
  X(x >= 0 && y < z ? 1 : (x < z || y > 5 ? 2 : 3))                                               \
  X((int)((unsigned long long)((long long)x * y) / 1000003ull))                                   \
  X((int)(((long long)x * y) % 1000003ll)) X((int)(((long long)x * y) / ((long long)z | 1)))      \
  X((int)((long long)x * y < (long long)z * 3 ? x : y)) X(__float2int_rn(clamp(a, 1e9f)))         \
  X(__float2int_rd(clamp(a, 1e9f))) X(__float2int_ru(clamp(a, 1e9f)))                             \
  X((int)clamp(a, 1e9f)) X((int)(unsigned)fminf(fmaxf(a, 0.f), 1e9f))                             \
  X((int)(long long)clamp(a, 1e18f)) X((int)(long long)((double)clamp(a, 1e9f) * 1e9))            \
  X((int)__bfloat16_as_ushort(bf(a))) X((int)__half_as_ushort(hf(a)))

// ---- the library's functions: close
#define CLOSE(X)                                                                                  \
  X(exp2f(clamp(a, 120.f))) X(expf(clamp(a, 80.f))) X(__expf(clamp(a, 80.f))) X(log2f(fabsf(a)))  \
  X(logf(fabsf(a))) X(rsqrtf(fabsf(a) + 1e-30f)) X(tanhf(a)) X(log1pf(fabsf(a)))                  \
  X(expm1f(clamp(a, 80.f))) X(__fdividef(a, fminf(fmaxf(fabsf(b), 1e-30f), 1e30f)))
// clang-format on
