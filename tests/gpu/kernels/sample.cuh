// A sample of the kernels this machinery is for: KL divergence of one vocabulary shard. One block
// for each row; both tensors are streamed once, 16 bytes at a time; an online softmax in base 2.
//   sample_stats     stats[row] = {m_s, d_s, m_t, d_t, w}, w = sum of 2^(t - m_t) (t - s)
//   sample_gradient  dz_s = scale[row] / temperature * (softmax(z_s) - softmax(z_t))
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#ifdef SAMPLE_REGISTERS  // fewer than it needs: the static check must see the spills
#define SAMPLE_BOUNDS __maxnreg__(SAMPLE_REGISTERS)
#else
#define SAMPLE_BOUNDS __launch_bounds__(kThreads)
#endif

struct SampleStats {
  float student_max, student_sum, teacher_max, teacher_sum, weighted;
};

constexpr float kLowest = -3.0e38f;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float2 widen(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

__device__ __forceinline__ SampleStats merge(const SampleStats& a, const SampleStats& b) {
  SampleStats r;
  r.student_max = fmaxf(a.student_max, b.student_max);
  r.teacher_max = fmaxf(a.teacher_max, b.teacher_max);
  const float sa = exp2f(a.student_max - r.student_max), sb = exp2f(b.student_max - r.student_max);
  const float ta = exp2f(a.teacher_max - r.teacher_max), tb = exp2f(b.teacher_max - r.teacher_max);
  r.student_sum = a.student_sum * sa + b.student_sum * sb;
  r.teacher_sum = a.teacher_sum * ta + b.teacher_sum * tb;
  r.weighted = a.weighted * ta + b.weighted * tb;
  return r;
}

__device__ __forceinline__ SampleStats from_lane(const SampleStats& a, int mask) {
  SampleStats r;
  r.student_max = __shfl_xor_sync(kAllLanes, a.student_max, mask);
  r.student_sum = __shfl_xor_sync(kAllLanes, a.student_sum, mask);
  r.teacher_max = __shfl_xor_sync(kAllLanes, a.teacher_max, mask);
  r.teacher_sum = __shfl_xor_sync(kAllLanes, a.teacher_sum, mask);
  r.weighted = __shfl_xor_sync(kAllLanes, a.weighted, mask);
  return r;
}

__device__ __forceinline__ void fold8(SampleStats& stats, const uint4& student,
                                      const uint4& teacher, float log2e_over_t) {
  const uint32_t s_bits[4] = {student.x, student.y, student.z, student.w};
  const uint32_t t_bits[4] = {teacher.x, teacher.y, teacher.z, teacher.w};
  float s[8], t[8];
  float s_max = stats.student_max, t_max = stats.teacher_max;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float2 x = widen(s_bits[k]), y = widen(t_bits[k]);
    s[2 * k] = x.x * log2e_over_t, s[2 * k + 1] = x.y * log2e_over_t;
    t[2 * k] = y.x * log2e_over_t, t[2 * k + 1] = y.y * log2e_over_t;
  }
#pragma unroll
  for (int k = 0; k < 8; ++k) s_max = fmaxf(s_max, s[k]), t_max = fmaxf(t_max, t[k]);
  const float s_scale = exp2f(stats.student_max - s_max);
  const float t_scale = exp2f(stats.teacher_max - t_max);
  float s_sum = stats.student_sum * s_scale, t_sum = stats.teacher_sum * t_scale;
  float weighted = stats.weighted * t_scale;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    s_sum += exp2f(s[k] - s_max);
    const float e = exp2f(t[k] - t_max);
    t_sum += e;
    weighted = fmaf(e, t[k] - s[k], weighted);
  }
  stats = {s_max, s_sum, t_max, t_sum, weighted};
}

// stride: elements from one row to the next, a multiple of 8
template <int kThreads>
__global__ void SAMPLE_BOUNDS sample_stats(const __nv_bfloat16* __restrict__ student,
                                           const __nv_bfloat16* __restrict__ teacher,
                                           SampleStats* __restrict__ out, unsigned columns,
                                           int64_t stride, float log2e_over_t) {
  constexpr int kWarps = kThreads / 32;
  __shared__ SampleStats part[kWarps];
  const int row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint4* s = reinterpret_cast<const uint4*>(student + row * stride);
  const uint4* t = reinterpret_cast<const uint4*>(teacher + row * stride);
  SampleStats stats{kLowest, 0.f, kLowest, 0.f, 0.f};
  for (unsigned i = threadIdx.x; i < columns / 8; i += kThreads) {
    fold8(stats, __ldcs(s + i), __ldcs(t + i), log2e_over_t);
  }
#pragma unroll
  for (int mask = 16; mask; mask >>= 1) stats = merge(stats, from_lane(stats, mask));
  if (lane == 0) part[warp] = stats;
  __syncthreads();
  if (warp != 0) return;
  stats = lane < kWarps ? part[lane] : SampleStats{kLowest, 0.f, kLowest, 0.f, 0.f};
#pragma unroll
  for (int mask = kWarps / 2; mask; mask >>= 1) stats = merge(stats, from_lane(stats, mask));
  if (lane == 0) out[row] = stats;
}

template <int kThreads>
__global__ void SAMPLE_BOUNDS sample_gradient(const __nv_bfloat16* __restrict__ student,
                                              const __nv_bfloat16* __restrict__ teacher,
                                              const SampleStats* __restrict__ stats,
                                              const float* __restrict__ scale,
                                              __nv_bfloat16* __restrict__ gradient,
                                              unsigned columns, int64_t stride, float log2e_over_t,
                                              float inv_temperature) {
  const int row = blockIdx.x;
  __shared__ float shared[4];
  if (threadIdx.x == 0) {
    const SampleStats s = stats[row];
    const float g = scale[row] * inv_temperature;
    shared[0] = s.student_max, shared[1] = g / s.student_sum;
    shared[2] = s.teacher_max, shared[3] = g / s.teacher_sum;
  }
  __syncthreads();
  const float s_max = shared[0], s_scale = shared[1], t_max = shared[2], t_scale = shared[3];
  const uint4* s = reinterpret_cast<const uint4*>(student + row * stride);
  const uint4* t = reinterpret_cast<const uint4*>(teacher + row * stride);
  uint4* out = reinterpret_cast<uint4*>(gradient + row * stride);
  for (unsigned i = threadIdx.x; i < columns / 8; i += kThreads) {
    const uint4 a = __ldcs(s + i), b = __ldcs(t + i);
    const uint32_t s_bits[4] = {a.x, a.y, a.z, a.w}, t_bits[4] = {b.x, b.y, b.z, b.w};
    uint32_t result[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 x = widen(s_bits[k]), y = widen(t_bits[k]);
      const float g0 = s_scale * exp2f(fmaf(x.x, log2e_over_t, -s_max)) -
                       t_scale * exp2f(fmaf(y.x, log2e_over_t, -t_max));
      const float g1 = s_scale * exp2f(fmaf(x.y, log2e_over_t, -s_max)) -
                       t_scale * exp2f(fmaf(y.y, log2e_over_t, -t_max));
      const __nv_bfloat162 pair = __floats2bfloat162_rn(g0, g1);
      memcpy(&result[k], &pair, 4);
    }
    __stcs(out + i, make_uint4(result[0], result[1], result[2], result[3]));
  }
}
