// The sample kernels with the host code that launches them, in both ways there are to launch.
#include <cuda_runtime.h>

#include "sample.cuh"

constexpr float kLog2E = 1.4426950408889634f;

extern "C" int sample_forward(const void* student, const void* teacher, void* stats, int rows,
                              int columns, int64_t stride, float temperature, cudaStream_t stream) {
  sample_stats<256><<<rows, 256, 0, stream>>>(
      static_cast<const __nv_bfloat16*>(student), static_cast<const __nv_bfloat16*>(teacher),
      static_cast<SampleStats*>(stats), columns, stride, kLog2E / temperature);
  return cudaGetLastError();
}

extern "C" int sample_backward(const void* student, const void* teacher, const void* stats,
                               const float* scale, void* gradient, int rows, int columns,
                               int64_t stride, float temperature, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = rows;
  config.blockDim = 512;
  config.stream = stream;
  return cudaLaunchKernelEx(
      &config, sample_gradient<512>, static_cast<const __nv_bfloat16*>(student),
      static_cast<const __nv_bfloat16*>(teacher), static_cast<const SampleStats*>(stats), scale,
      static_cast<__nv_bfloat16*>(gradient), columns, stride, kLog2E / temperature,
      1.f / temperature);
}
