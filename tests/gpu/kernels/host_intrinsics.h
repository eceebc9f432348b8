// CUDA's intrinsics for the host's compiler, written from their documentation.
#pragma once

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>

using std::isinf;

struct Rounding {
  int before = std::fegetround();
  explicit Rounding(int mode) { std::fesetround(mode); }
  ~Rounding() { std::fesetround(before); }
};

// volatile: neither operands nor result may be moved out of the rounding mode's reach
template <class F>
inline float directed(int mode, float a, float b, float c, F operation) {
  Rounding guard(mode);
  volatile float x = a, y = b, z = c;
  volatile float result = operation(x, y, z);
  return result;
}
#define DIRECTED(suffix, mode)                                                               \
  inline float __fadd_##suffix(float a, float b) {                                           \
    return directed(mode, a, b, 0.f, [](float x, float y, float) { return x + y; });         \
  }                                                                                          \
  inline float __fsub_##suffix(float a, float b) {                                           \
    return directed(mode, a, b, 0.f, [](float x, float y, float) { return x - y; });         \
  }                                                                                          \
  inline float __fmul_##suffix(float a, float b) {                                           \
    return directed(mode, a, b, 0.f, [](float x, float y, float) { return x * y; });         \
  }                                                                                          \
  inline float __fmaf_##suffix(float a, float b, float c) {                                  \
    return directed(mode, a, b, c, [](float x, float y, float z) { return fmaf(x, y, z); }); \
  }
DIRECTED(rz, FE_TOWARDZERO)
DIRECTED(rd, FE_DOWNWARD)
DIRECTED(ru, FE_UPWARD)

inline float __uint_as_float(unsigned u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float __saturatef(float a) { return a > 0.f ? (a < 1.f ? a : 1.f) : 0.f; }
inline int __float2int_rn(float a) { return static_cast<int>(std::rint(a)); }
inline int __float2int_rd(float a) { return static_cast<int>(std::floor(a)); }
inline int __float2int_ru(float a) { return static_cast<int>(std::ceil(a)); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned long long __brevll(unsigned long long x) {
  unsigned long long r = 0;
  for (int i = 0; i < 64; ++i) r |= (x >> i & 1) << (63 - i);
  return r;
}
inline unsigned __brev(unsigned x) { return static_cast<unsigned>(__brevll(x) >> 32); }
inline int __umulhi(unsigned x, unsigned y) {
  return static_cast<int>(static_cast<unsigned long long>(x) * y >> 32);
}
inline long long __mul64hi(long long x, long long y) {
  return static_cast<long long>(static_cast<__int128>(x) * y >> 64);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline unsigned long long both(unsigned low, unsigned high) {
  return static_cast<unsigned long long>(high) << 32 | low;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
  return static_cast<unsigned>(both(low, high) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
  return static_cast<unsigned>(both(low, high) >> (n & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned n) {
  return n >= 32 ? low : __funnelshift_l(low, high, n);
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned n) {
  return n >= 32 ? high : __funnelshift_r(low, high, n);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    r |= static_cast<unsigned>(both(x, y) >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  }
  return r;
}

inline float __expf(float a) { return std::exp(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float a) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a))); }
