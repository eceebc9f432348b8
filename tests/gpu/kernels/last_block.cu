// Every block writes a partial sum; the block that finishes last adds them up. kBug 0 is right.
enum Bug { kNone, kNoRelease, kNoAcquire, kNoBarrier, kResetByAll };

template <int kBug>
__global__ void last_block_sum(const float* x, float* partial, unsigned* counter, float* out,
                               int n) {
  __shared__ bool last;
  float v = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(~0u, v, m);
  __shared__ float part[32];
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  // two partials for each block, the second by a thread that does not touch the counter
  if (threadIdx.x == 0) partial[blockIdx.x * 2] = part[0];
  if (threadIdx.x == 32) partial[blockIdx.x * 2 + 1] = part[1];
  if (kBug != kNoBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    if (kBug != kNoRelease) __threadfence();
    last = atomicAdd(counter, 1u) == gridDim.x - 1;
    if (kBug != kNoAcquire) __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x < 32) {
    float sum = 0;
    for (int i = threadIdx.x; i < 2 * gridDim.x; i += 32) sum += partial[i];
    for (int m = 16; m; m >>= 1) sum += __shfl_xor_sync(~0u, sum, m);
    if (threadIdx.x == 0) {
      *out = sum;
      *counter = 0;  // ready for the next launch
    }
  }
}

template __global__ void last_block_sum<0>(const float*, float*, unsigned*, float*, int);
template __global__ void last_block_sum<1>(const float*, float*, unsigned*, float*, int);
template __global__ void last_block_sum<2>(const float*, float*, unsigned*, float*, int);
template __global__ void last_block_sum<3>(const float*, float*, unsigned*, float*, int);

// The same with acquire and release on the atomic itself.
__global__ void last_block_acq_rel(const float* x, float* partial, unsigned* counter, float* out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = 2 * x[blockIdx.x];
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    last = before == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float sum = 0;
    for (int i = 0; i < gridDim.x; ++i) sum += partial[i];
    *out = sum;
  }
}
