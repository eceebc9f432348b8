// The pack of a CUDA thread from sm_100 on: two neighbouring columns, which share an instruction
// for each addition and multiplication.
#pragma once

#include "lane.cuh"

namespace bgkd {

template <bool kChecked_>
struct LanePair {
  float2 value;
};

__device__ __forceinline__ uint64_t packed(float2 x) {
  uint64_t bits;
  asm("mov.b64 %0, {%1, %2};" : "=l"(bits) : "f"(x.x), "f"(x.y));
  return bits;
}
__device__ __forceinline__ float2 unpacked(uint64_t bits) {
  float2 x;
  asm("mov.b64 {%0, %1}, %2;" : "=f"(x.x), "=f"(x.y) : "l"(bits));
  return x;
}

template <bool kChecked_>
__device__ __forceinline__ LanePair<kChecked_> operator+(LanePair<kChecked_> a,
                                                         LanePair<kChecked_> b) {
  uint64_t sum;
  asm("add.rn.ftz.f32x2 %0, %1, %2;" : "=l"(sum) : "l"(packed(a.value)), "l"(packed(b.value)));
  return {unpacked(sum)};
}
template <bool kChecked_>
__device__ __forceinline__ LanePair<kChecked_> operator-(LanePair<kChecked_> a,
                                                         LanePair<kChecked_> b) {
  uint64_t difference;
  asm("sub.rn.ftz.f32x2 %0, %1, %2;"
      : "=l"(difference)
      : "l"(packed(a.value)), "l"(packed(b.value)));
  return {unpacked(difference)};
}
template <bool kChecked_>
__device__ __forceinline__ LanePair<kChecked_> operator*(LanePair<kChecked_> a,
                                                         LanePair<kChecked_> b) {
  uint64_t product;
  asm("mul.rn.ftz.f32x2 %0, %1, %2;" : "=l"(product) : "l"(packed(a.value)), "l"(packed(b.value)));
  return {unpacked(product)};
}

template <bool kChecked_>
struct Pack<LanePair<kChecked_>> {
  using F = LanePair<kChecked_>;
  using Checked = LanePair<true>;
  using Narrow = Lane<kChecked_>;
  using Single = Pack<Narrow>;
  static constexpr int kColumns = 2;
  static constexpr bool kHasExp2 = true;
  static constexpr bool kChecked = kChecked_;
  static constexpr bool kFusesMultiplyAdd = true;

  static __device__ __forceinline__ F broadcast(float x) { return {{x, x}}; }
  static __device__ __forceinline__ F spread(Narrow x) { return broadcast(x.value); }
  static __device__ __forceinline__ Narrow sum_of_columns(F x) { return {x.value.x + x.value.y}; }
  static __device__ __forceinline__ float column(F x, int k) {
    return k == 0 ? x.value.x : x.value.y;
  }
  static __device__ __forceinline__ F fma(F a, F b, F c) {
    uint64_t sum;
    asm("fma.rn.ftz.f32x2 %0, %1, %2, %3;"
        : "=l"(sum)
        : "l"(packed(a.value)), "l"(packed(b.value)), "l"(packed(c.value)));
    return {unpacked(sum)};
  }
  static __device__ __forceinline__ Rounded<F> round(F x) {
    const F shift = broadcast(kRoundingShift), shifted = x + shift;
    return {shifted, shifted - shift};
  }
  static __device__ __forceinline__ F scale_by_power_of_two(F x, Rounded<F> n) {
    const float2 shifted = n.shifted.value;
    return x * F{{power_of_two(shifted.x), power_of_two(shifted.y)}};
  }

  // ---- column by column
  static __device__ __forceinline__ F at_least(F x, float bound) {
    return each([=](Narrow x) { return Single::at_least(x, bound); }, x);
  }
  static __device__ __forceinline__ F where_greater(F a, F b, F x, F y) {
    return each([](auto... column) { return Single::where_greater(column...); }, a, b, x, y);
  }
  static __device__ __forceinline__ F exp2(F x) { return each(Single::exp2, x); }
  static __device__ __forceinline__ F log2(F x) { return each(Single::log2, x); }
  static __device__ __forceinline__ F divide(F a, F b) { return each(Single::divide, a, b); }

 private:
  template <class Function, class... Pairs>
  static __device__ __forceinline__ F each(const Function& function, Pairs... x) {
    return {{function(Narrow{x.value.x}...).value, function(Narrow{x.value.y}...).value}};
  }
};

}  // namespace bgkd
