// Rows of logits in global memory: 16-byte loads where a row allows them, single elements
// elsewhere.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "../core/portable.h"

namespace bgkd {

// 16 bytes of T.
template <class T>
constexpr int kVectorSize = 16 / sizeof(T);

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(x);
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(x);
}

__device__ __forceinline__ uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint32_t bits_of(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
__device__ __forceinline__ uint32_t bits_of(__half x) { return __half_as_ushort(x); }

// Two 16-bit numbers in one register, or one float.
template <class T>
struct Word {
  using Type =
      std::conditional_t<std::is_same_v<T, float>, float,
                         std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>>;
  static constexpr int kSize = sizeof(uint32_t) / sizeof(T);

  static __device__ __forceinline__ Type of_bits(uint32_t bits) {
    Type word;
    memcpy(&word, &bits, sizeof word);
    return word;
  }
  // The number at `index` of a word. For bfloat16 moving bytes is enough; nvcc would make a shift a
  // multiplication, on the pipe that has most to do.
  static __device__ __forceinline__ float at(uint32_t bits, int index) {
    if constexpr (std::is_same_v<T, float>) return __uint_as_float(bits);
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return __uint_as_float(index == 0 ? __byte_perm(bits, 0, 0x1044) : bits & 0xffff0000u);
    }
    if constexpr (std::is_same_v<T, __half>) {
      return index == 0 ? __low2float(of_bits(bits)) : __high2float(of_bits(bits));
    }
  }
  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return bits_of_word(__floats2bfloat162_rn(first, second));
    }
    if constexpr (std::is_same_v<T, __half>) return bits_of_word(__floats2half2_rn(first, second));
    return __float_as_uint(first);
  }
  static __device__ __forceinline__ uint32_t bits_of_word(Type word) {
    uint32_t bits;
    memcpy(&bits, &word, sizeof bits);
    return bits;
  }
  // Of -inf: a column that is absent.
  static constexpr uint32_t kAbsentBits = std::is_same_v<T, float>    ? 0xff800000u
                                          : std::is_same_v<T, __half> ? 0xfc00u
                                                                      : 0xff80u;
  // Of both numbers of the words at once; the number where the other one is NaN.
  static __device__ __forceinline__ uint32_t maximum(uint32_t a, uint32_t b) {
    if constexpr (std::is_same_v<T, float>) {
      return __float_as_uint(fmaxf(__uint_as_float(a), __uint_as_float(b)));
    } else {
      return bits_of_word(__hmax2(of_bits(a), of_bits(b)));
    }
  }
};

// Past L1: a row is read once. Not the read-only path (.nc): a gradient may overwrite what it
// reads.
__device__ __forceinline__ uint4 load_16_bytes(const void* address) {
  uint4 v;
  asm("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(address));
  return v;
}

// kVectors * kVectorSize columns of a row, packed as they lie in memory. F: a pack of one lane, of
// one column or two neighbours.
template <class T, class F, int kVectors>
struct PackedBlock {
  using Value = F;
  using Narrow = typename Pack<F>::Narrow;
  static constexpr int kSize = kVectors * kVectorSize<T> / Pack<F>::kColumns;
  static constexpr int kWords = 4 * kVectors;
  uint32_t word[kWords];

  __device__ __forceinline__ F operator[](int k) const {
    if constexpr (Pack<F>::kColumns == 1) {
      return {at(k)};
    } else {
      return {{at(2 * k), at(2 * k + 1)}};
    }
  }
  __device__ __forceinline__ Narrow maximum() const {
    uint32_t both = word[0];
#pragma unroll
    for (int i = 1; i < kWords; ++i) both = Word<T>::maximum(both, word[i]);
    if constexpr (Word<T>::kSize == 1) return {Word<T>::at(both, 0)};
    return {fmaxf(Word<T>::at(both, 0), Word<T>::at(both, 1))};
  }
  // Vector i lies `stride` columns behind vector i - 1; all of them are in the row and aligned.
  __device__ __forceinline__ void load(const T* columns, int stride) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) load_vector(i, columns + i * stride);
  }
  // The same for the end of a row, whose columns from `end` on are absent, and for rows that are
  // not aligned.
  __device__ __forceinline__ void load_ragged(const T* columns, int stride, const T* end,
                                              bool is_aligned) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const T* first = columns + i * stride;
      if (is_aligned && first + kVectorSize<T> <= end) {
        load_vector(i, first);
      } else {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          uint32_t bits = 0;
#pragma unroll
          for (int k = 0; k < Word<T>::kSize; ++k) {
            const T* at = first + w * Word<T>::kSize + k;
            bits |= (at < end ? bits_of(*at) : Word<T>::kAbsentBits) << (8 * sizeof(T) * k % 32);
          }
          word[4 * i + w] = bits;
        }
      }
    }
  }

 private:
  __device__ __forceinline__ float at(int column) const {
    return Word<T>::at(word[column / Word<T>::kSize], column % Word<T>::kSize);
  }
  __device__ __forceinline__ void load_vector(int i, const T* columns) {
    const uint4 v = load_16_bytes(columns);
    word[4 * i] = v.x, word[4 * i + 1] = v.y, word[4 * i + 2] = v.z, word[4 * i + 3] = v.w;
  }
};

__device__ __forceinline__ bool is_16_byte_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

}  // namespace bgkd
