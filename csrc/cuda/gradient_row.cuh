// Writes the gradient of one row, or of a part of it: where, and which columns get an extra term.
#pragma once

#include "arithmetic.cuh"
#include "row_sweep.cuh"

namespace bgkd {

// grad_columns: with padding, which gets 0.
template <class T>
struct GradientPart {
  RowPart<T> row;
  T* dz;
  int grad_columns;
};

// Added at one column; -1 when it is not in this part.
struct ExtraTerm {
  int column;
  float value;

  __device__ __forceinline__ float at(int other) const { return column == other ? value : 0.f; }
};

// The column of a token id in this part, or -1.
template <class T>
__device__ __forceinline__ int column_of_token(const GradientPart<T>& part, int64_t id,
                                               int64_t vocab_start) {
  const int64_t column = id - vocab_start - part.row.begin;
  return id >= 0 && column >= 0 && column < part.row.num_columns ? static_cast<int>(column) : -1;
}

template <class T>
__device__ __forceinline__ GradientPart<T> gradient_part(const LogitsShard& logits, void* grad,
                                                         int64_t grad_stride, int64_t grad_columns,
                                                         int64_t token, int64_t columns_per_part) {
  GradientPart<T> part;
  part.row = row_part<T>(logits, token, columns_per_part);
  part.dz = static_cast<T*>(grad) + token * grad_stride + part.row.begin;
  part.grad_columns =
      static_cast<int>(max(min(columns_per_part, grad_columns - part.row.begin), int64_t{0}));
  return part;
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

// The columns with an extra term. What is written there is computed before the gradient may
// overwrite the row and written after it, so that the loop over the row does not look for these
// columns.
template <class T>
class ExtraColumns {
 public:
  // In shared memory, so that the loop has the registers. Each number is for the thread alone that
  // writes its column: no barrier is needed between writing and reading it.
  using Gradients = float[2];

  __device__ __forceinline__ ExtraColumns(const ExtraTerm& first, const ExtraTerm& second,
                                          Gradients& gradients)
      : terms_{first, second}, gradients_(gradients) {}

  // element(z, t): the gradient at a column without extra terms. Without a teacher t is z.
  template <bool kReadsTeacher, class Element>
  __device__ __forceinline__ void compute(const RowPart<T>& row, const Element& element) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = terms_[i].column;
      if (!is_mine(column)) continue;
      const Lane<true> z{to_float(row.z[column])};
      const Lane<true> t = kReadsTeacher ? Lane<true>{to_float(row.t[column])} : z;
      gradients_[i] = element(z, t).value + terms_[0].at(column) + terms_[1].at(column);
    }
  }
  __device__ __forceinline__ void write(T* dz) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = terms_[i].column;
      if (is_mine(column)) dz[column] = from_float<T>(gradients_[i]);
    }
  }

 private:
  // Whether it is in this part, and column_of names it for this thread.
  static __device__ __forceinline__ bool is_mine(int column) {
    return column >= 0 &&
           static_cast<unsigned>(column) / kVectorSize<T> % blockDim.x == threadIdx.x;
  }

  ExtraTerm terms_[2];
  Gradients& gradients_;
};

// Zeros in columns [begin, part.grad_columns).
template <class T>
__device__ __forceinline__ void write_zeros(const GradientPart<T>& part, int begin) {
  constexpr int kSize = kVectorSize<T>;
  int column = begin;
  if (is_16_byte_aligned(part.dz + begin)) {
    const int vectors = (part.grad_columns - begin) / kSize;
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
      __stcs(reinterpret_cast<uint4*>(part.dz + begin + i * kSize), uint4{});
    }
    column += vectors * kSize;
  }
  for (column += threadIdx.x; column < part.grad_columns; column += blockDim.x) {
    part.dz[column] = T{};
  }
}

// Writes block `block` of this thread; element(z, t, polynomial): the gradient at the columns of a
// pack. kWhole: all of the block lies in the row, and dz is aligned. share: of the exponentials
// that whole blocks make of polynomials; the others are few.
template <bool kWhole, class T, class Columns, class Element>
__device__ __forceinline__ void write_block(const GradientPart<T>& part, int block,
                                            const Columns& z, const Columns& t, int share,
                                            const Element& element) {
  using P = Pack<typename Columns::Value>;
  PolynomialShare polynomial{kWhole ? share : 0};
  constexpr int kSize = kVectorSize<T>;
#pragma unroll
  for (int i = 0; i < kVectorsPerBlock; ++i) {
    const int column = column_of<T>(block, i * kSize);
    float gradient[kSize];
#pragma unroll
    for (int k = 0; k < kSize; k += P::kColumns) {
      const int pack = (i * kSize + k) / P::kColumns;
      const auto value = element(z[pack], t[pack], polynomial);
#pragma unroll
      for (int j = 0; j < P::kColumns; ++j) gradient[k + j] = P::column(value, j);
    }
    if constexpr (kWhole) {
      store_vector(part.dz + column, gradient);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        if (column + k < part.row.num_columns) part.dz[column + k] = from_float<T>(gradient[k]);
      }
    }
  }
}

// Every thread overwrites only what it has read itself, so dz may be the student's logits.
template <class T, bool kReadsTeacher, class Element>
__device__ __forceinline__ void write_gradient(const GradientPart<T>& part, ExtraColumns<T> extra,
                                               int share, const Element& element) {
  extra.template compute<kReadsTeacher>(part.row, [&](auto z, auto t) {
    PolynomialShare none;
    return element(z, t, none);
  });
  const bool aligned = is_aligned(part.row) && is_16_byte_aligned(part.dz);
  sweep<T, ColumnPack<true>, kReadsTeacher>(
      part.row, aligned, [&](const auto& z, const auto& t, int block, auto is_whole) {
        write_block<decltype(is_whole)::value>(part, block, z, t, share, element);
      });
  extra.write(part.dz);
  write_zeros(part, part.row.num_columns);
}

}  // namespace bgkd
