// Host code that uses what the runtime offers around a launch.
#include <cuda_runtime.h>

#include <cstdint>

extern __shared__ int staged[];

// out[i] = x[i] + the rank of its block in the cluster, through `elements` of dynamic shared memory
__global__ void stage(const int* x, int* out, int elements) {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  for (int i = threadIdx.x; i < elements; i += blockDim.x) staged[i] = x[i];
  __syncthreads();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = staged[i] + rank;
}

extern "C" int copy_and_stage(const int* x, int* copy, int* out, int elements, int blocks,
                              int cluster, int allow, cudaStream_t stream) {
  int device = -1, shared_limit = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  if (cudaError_t error =
          cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) {
    return error;
  }
  const size_t bytes = elements * sizeof(int);
  if (bytes > static_cast<size_t>(shared_limit)) return cudaErrorInvalidValue;
  if (allow) {
    const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (cudaError_t error = cudaFuncSetAttribute(stage, attribute, static_cast<int>(bytes))) {
      return error;
    }
  }
  if (cudaError_t error = cudaMemsetAsync(out, 0xff, blocks * 64 * sizeof(int), stream)) {
    return error;
  }
  if (cudaError_t error = cudaMemcpyAsync(copy, x, bytes, cudaMemcpyDeviceToDevice, stream)) {
    return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = 64;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = cluster ? 1 : 0;
  int active = 0;
  if (cudaError_t error = cudaOccupancyMaxActiveClusters(&active, stage, &config)) return error;
  if (active == 0) return cudaErrorInvalidConfiguration;
  return cudaLaunchKernelEx(&config, stage, static_cast<const int*>(copy), out, elements);
}
