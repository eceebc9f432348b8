#include "sample.cuh"

#define INSTANCES(kThreads)                                                                   \
  template __global__ void sample_stats<kThreads>(const __nv_bfloat16*, const __nv_bfloat16*, \
                                                  SampleStats*, unsigned, int64_t, float);    \
  template __global__ void sample_gradient<kThreads>(                                         \
      const __nv_bfloat16*, const __nv_bfloat16*, const SampleStats*, const float*,           \
      __nv_bfloat16*, unsigned, int64_t, float, float);
INSTANCES(256)
INSTANCES(512)
