// The gradient kernel: one thread block reads one row of both shards, or one of several parts of
// it, once and writes d loss / d student logits, over the student's logits if wanted.
#pragma once

#include "../core/gradient.h"
#include "../launch_plan.h"
#include "../vocab_stats.h"
#include "columns.cuh"
#include "lane.cuh"

namespace bgkd {

constexpr int kGradientVectors = kCudaBytesPerThread / 16;

// One part of a row. label, argmax: columns where an extra term acts, -1 when they are not in this
// part.
template <class T>
struct GradientPart {
  const T* z;
  const T* t;
  T* dz;
  int num_columns;   // with logits
  int grad_columns;  // with padding, which gets 0
  int label;
  int argmax;
};

// The gradients of a vector of columns from `column` on.
template <class T, GradientKind kKind, class Columns>
__device__ __forceinline__ void gradient_of_vector(float (&gradient)[kVectorSize<T>],
                                                   const RowGradient& row, const Columns& z,
                                                   const Columns& t, int vector, int column,
                                                   const GradientPart<T>& part) {
  constexpr int kSize = kVectorSize<T>;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    const int at = vector * kSize + k;
    gradient[k] = element_gradient<kKind>(row, z[at], t[at]).value;
  }
  const auto add = [&](int special, float extra) {
    if (static_cast<unsigned>(special - column) >= kSize) return;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (column + k == special) gradient[k] += extra;
    }
  };
  add(part.label, row.at_label);
  add(part.argmax, row.at_argmax);
}

template <class T>
__device__ __forceinline__ void store_vector(T* address, const float (&values)[kVectorSize<T>]) {
  using W = Word<T>;
  uint32_t word[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    word[w] = W::pack(values[w * W::kSize], values[w * W::kSize + W::kSize - 1]);
  }
  __stcs(reinterpret_cast<uint4*>(address), make_uint4(word[0], word[1], word[2], word[3]));
}

template <class T, GradientKind kKind>
__device__ __forceinline__ void write_gradient(const RowGradient& row,
                                               const GradientPart<T>& part) {
  constexpr bool kReadsTeacher = kKind != GradientKind::kStudent;
  constexpr int kSize = kVectorSize<T>;
  using Columns = PackedBlock<T, Lane<true>, kGradientVectors>;
  const bool is_aligned = is_16_byte_aligned(part.z) && is_16_byte_aligned(part.dz) &&
                          (!kReadsTeacher || is_16_byte_aligned(part.t));
  const int stride = blockDim.x * kSize;
  const int step = stride * kGradientVectors;
  int column = threadIdx.x * kSize;

  // ---- blocks that lie within the row
  const int aligned_columns = is_aligned ? part.num_columns / step * step : 0;
  for (; column < aligned_columns; column += step) {
    Columns z, t;
    z.load(part.z + column, stride);
    if constexpr (kReadsTeacher) t.load(part.t + column, stride);
#pragma unroll
    for (int i = 0; i < kGradientVectors; ++i) {
      float gradient[kSize];
      const int first = column + i * stride;
      gradient_of_vector<T, kKind>(gradient, row, z, t, i, first, part);
      store_vector(part.dz + first, gradient);
    }
  }
  // ---- the end of the row, and rows that are not aligned
  for (; column < part.num_columns; column += step) {
    Columns z, t;
    z.load_ragged(part.z + column, stride, part.z + part.num_columns, is_aligned);
    if constexpr (kReadsTeacher) {
      t.load_ragged(part.t + column, stride, part.t + part.num_columns, is_aligned);
    }
#pragma unroll
    for (int i = 0; i < kGradientVectors; ++i) {
      float gradient[kSize];
      const int first = column + i * stride;
      gradient_of_vector<T, kKind>(gradient, row, z, t, i, first, part);
      if (is_aligned && first + kSize <= part.num_columns) {
        store_vector(part.dz + first, gradient);
      } else {
#pragma unroll
        for (int k = 0; k < kSize; ++k) {
          if (first + k < part.num_columns) part.dz[first + k] = from_float<T>(gradient[k]);
        }
      }
    }
  }
}

// Zeros in columns [begin, part.grad_columns).
template <class T>
__device__ __forceinline__ void write_zeros(const GradientPart<T>& part, int begin) {
  constexpr int kSize = kVectorSize<T>;
  int column = begin;
  if (is_16_byte_aligned(part.dz + begin)) {
    constexpr float kZeros[kSize] = {};
    const int vectors = (part.grad_columns - begin) / kSize;
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
      store_vector(part.dz + begin + i * kSize, kZeros);
    }
    column += vectors * kSize;
  }
  for (column += threadIdx.x; column < part.grad_columns; column += blockDim.x) {
    part.dz[column] = from_float<T>(0.f);
  }
}

// The coefficients of a row, and the columns with an extra term. For one thread.
struct SharedRow {
  RowGradient row;
  int64_t label;  // token ids, or -1
  int64_t argmax;
};

__device__ __forceinline__ void load_row(SharedRow& shared, const GradientArgs& args,
                                         int64_t token) {
  shared.row = RowGradient{};
  shared.label = shared.argmax = -1;
  if (args.labels.skipped(token)) return;
  TokenStats global{}, upstream{};
  load_stats(global, args.global, args.num_tokens, token, args.params.features);
  load_stats(upstream, args.upstream, args.num_tokens, token, args.params.features);
  shared.row = row_gradient(global, upstream, args.params);
  if (args.labels.ids != nullptr) shared.label = args.labels.ids[token];
  if (args.logits.teacher != nullptr) shared.argmax = static_cast<int64_t>(global[kTeacherArgmax]);
}

// Grid: (num_tokens, parts).
template <class T>
__global__ void __launch_bounds__(kCudaThreads)
    vocab_gradient_kernel(const GradientArgs args, int64_t columns_per_part) {
  __shared__ SharedRow shared;
  const int64_t token = blockIdx.x;
  if (threadIdx.x == 0) load_row(shared, args, token);
  __syncthreads();  // the coefficients are there, for all threads

  const LogitsShard& logits = args.logits;
  const int64_t begin = blockIdx.y * columns_per_part;
  const int64_t grad_columns = min(columns_per_part, args.grad_columns - begin);
  if (grad_columns <= 0) return;
  const auto within_part = [&](int64_t id) {
    const int64_t column = id - logits.vocab_start - begin;
    return id >= 0 && column >= 0 && column < grad_columns ? static_cast<int>(column) : -1;
  };
  GradientPart<T> part;
  part.grad_columns = static_cast<int>(grad_columns);
  part.num_columns =
      static_cast<int>(max(min(grad_columns, logits.num_columns - begin), int64_t{0}));
  part.z = static_cast<const T*>(logits.student) + token * logits.student_stride + begin;
  part.t = logits.teacher == nullptr
               ? nullptr
               : static_cast<const T*>(logits.teacher) + token * logits.teacher_stride + begin;
  part.dz = static_cast<T*>(args.grad) + token * args.grad_stride + begin;
  part.label = within_part(shared.label);
  part.argmax = within_part(shared.argmax);

  const RowGradient row = shared.row;
  switch (row.kind) {
    case GradientKind::kZero:
      return write_zeros(part, 0);
    case GradientKind::kStudent:
      write_gradient<T, GradientKind::kStudent>(row, part);
      break;
    case GradientKind::kLinear:
      write_gradient<T, GradientKind::kLinear>(row, part);
      break;
    case GradientKind::kGeneral:
      write_gradient<T, GradientKind::kGeneral>(row, part);
      break;
    case GradientKind::kSoftened:
      write_gradient<T, GradientKind::kSoftened>(row, part);
      break;
  }
  write_zeros(part, part.num_columns);
}

}  // namespace bgkd
