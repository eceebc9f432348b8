// Multiplies the rows of a gradient by numbers of their own.

#include "columns.cuh"
#include "launch.h"

namespace bgkd {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorsPerThread = 4;

template <class T>
__device__ __forceinline__ uint4 scaled(uint4 v, float scale) {
  using W = Word<T>;
  uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (uint32_t& bits : word) {
    bits = W::pack(W::at(bits, 0) * scale, W::at(bits, W::kSize - 1) * scale);
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

template <class T>
constexpr int kColumnsPerBlock = kThreads * kVectorsPerThread * kVectorSize<T>;

// Grid: (num_tokens, parts of a row).
template <class T>
__global__ void __launch_bounds__(kThreads) scale_rows_kernel(const ScaleArgs args) {
  const float scale = args.scale[blockIdx.x];
  if (scale == 1.f) return;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * kColumnsPerBlock<T>;
  T* const part = static_cast<T*>(args.rows) + blockIdx.x * args.stride + begin;
  const int columns = static_cast<int>(min(args.num_columns - begin, int64_t{kColumnsPerBlock<T>}));
  const bool is_zero = scale == 0.f;  // also where the gradient is not finite
  const int vectors = is_16_byte_aligned(part) ? columns / kVectorSize<T> : 0;
  for (int i = threadIdx.x; i < vectors; i += kThreads) {
    T* const address = part + i * kVectorSize<T>;
    const uint4 v = is_zero ? make_uint4(0, 0, 0, 0) : scaled<T>(load_16_bytes(address), scale);
    __stcs(reinterpret_cast<uint4*>(address), v);
  }
  for (int column = vectors * kVectorSize<T> + threadIdx.x; column < columns; column += kThreads) {
    part[column] = from_float<T>(is_zero ? 0.f : to_float(part[column]) * scale);
  }
}

}  // namespace

cudaError_t launch_scale_rows(const ScaleArgs& args, cudaStream_t stream) {
  if (args.num_tokens == 0 || args.num_columns == 0) return cudaSuccess;
  with_dtype<__nv_bfloat16, __half>(args.dtype, [&]<class T>(T) {
    const int64_t parts = (args.num_columns + kColumnsPerBlock<T> - 1) / kColumnsPerBlock<T>;
    const dim3 grid(static_cast<unsigned>(args.num_tokens), static_cast<unsigned>(parts));
    scale_rows_kernel<T><<<grid, kThreads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

}  // namespace bgkd
