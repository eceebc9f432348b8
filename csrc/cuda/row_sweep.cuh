// One thread block reads a row, or a part of it: every thread takes blocks of 32 bytes of each
// tensor, in the order of the columns.
#pragma once

#include "../launch_plan.h"
#include "columns.cuh"

namespace bgkd {

constexpr int kVectorsPerBlock = kCudaBytesPerThread / 16;

// Columns of one block of a thread.
template <class T>
constexpr int kBlockColumns = kVectorsPerBlock * kVectorSize<T>;

// A part of a row: columns [begin, begin + num_columns) of the shard; t is null without a teacher.
template <class T>
struct RowPart {
  const T* z;
  const T* t;
  int64_t begin;
  int num_columns;
};

template <class T>
__device__ __forceinline__ RowPart<T> row_part(const LogitsShard& logits, int64_t token,
                                               int64_t columns_per_part) {
  RowPart<T> part;
  part.begin = blockIdx.y * columns_per_part;
  part.num_columns =
      static_cast<int>(max(min(columns_per_part, logits.num_columns - part.begin), int64_t{0}));
  part.z = static_cast<const T*>(logits.student) + token * logits.student_stride + part.begin;
  part.t = logits.teacher == nullptr
               ? nullptr
               : static_cast<const T*>(logits.teacher) + token * logits.teacher_stride + part.begin;
  return part;
}

// Column k of this thread's block number `block`. They rise with the block and with k.
template <class T>
__device__ __forceinline__ int column_of(int block, int k) {
  const int vector = block * kVectorsPerBlock + k / kVectorSize<T>;
  return (vector * blockDim.x + threadIdx.x) * kVectorSize<T> + k % kVectorSize<T>;
}

// Blocks [first, last) of this thread, as the end of a row or a row that is not aligned needs it:
// columns behind the row are absent. fold(z, t, block, is_whole); the last is a std::bool_constant:
// all columns of the block are in the row and aligned.
template <class T, class F, bool kHasTeacher, class Fold>
__device__ __forceinline__ void sweep_ragged(const RowPart<T>& part, int first, int last,
                                             const Fold& fold) {
  const int stride = blockDim.x * kVectorSize<T>;
  for (int block = first; block < last; ++block) {
    const int column = column_of<T>(block, 0);
    PackedBlock<T, F, kVectorsPerBlock> z, t;
    z.load_ragged(part.z + column, stride, part.z + part.num_columns, is_16_byte_aligned(part.z));
    if constexpr (kHasTeacher) {
      t.load_ragged(part.t + column, stride, part.t + part.num_columns, is_16_byte_aligned(part.t));
    }
    fold(z, t, block, std::bool_constant<false>{});
  }
}

// Blocks [0, last), all of them within the row and aligned.
template <class T, class F, bool kHasTeacher, class Fold>
__device__ __forceinline__ void sweep_aligned(const RowPart<T>& part, int last, const Fold& fold) {
  const int stride = blockDim.x * kVectorSize<T>;
  const int step = stride * kVectorsPerBlock;
  const T* z = part.z + column_of<T>(0, 0);
  const T* t = kHasTeacher ? part.t + column_of<T>(0, 0) : nullptr;
  PackedBlock<T, F, kVectorsPerBlock> z_next, t_next;
  if (last > 0) {
    z_next.load(z, stride);
    if constexpr (kHasTeacher) t_next.load(t, stride);
  }
#pragma unroll 1  // an iteration has enough to do; several take registers
  for (int block = 0; block < last; ++block) {
    const PackedBlock<T, F, kVectorsPerBlock> z_block = z_next, t_block = t_next;
    // The next block is under way while this one is computed.
    if (block + 1 < last) {
      z += step;
      z_next.load(z, stride);
      if constexpr (kHasTeacher) {
        t += step;
        t_next.load(t, stride);
      }
    }
    fold(z_block, t_block, block, std::bool_constant<true>{});
  }
}

template <class T>
__device__ __forceinline__ int num_blocks(const RowPart<T>& part) {
  const int columns = blockDim.x * kBlockColumns<T>;
  return (part.num_columns + columns - 1) / columns;
}

template <class T>
__device__ __forceinline__ bool is_aligned(const RowPart<T>& part) {
  return is_16_byte_aligned(part.z) && (part.t == nullptr || is_16_byte_aligned(part.t));
}

// All blocks of this thread; `aligned`: where vectors may be used. Those that are not whole come as
// checked packs: the columns behind a row are absent, so 0 * inf is no exception there.
template <class T, class F, bool kHasTeacher, class Fold>
__device__ __forceinline__ void sweep(const RowPart<T>& part, bool aligned, const Fold& fold) {
  const int columns = blockDim.x * kBlockColumns<T>;
  const int aligned_blocks = aligned ? part.num_columns / columns : 0;
  sweep_aligned<T, F, kHasTeacher>(part, aligned_blocks, fold);
  sweep_ragged<T, typename Pack<F>::Checked, kHasTeacher>(part, aligned_blocks, num_blocks(part),
                                                          fold);
}

}  // namespace bgkd
