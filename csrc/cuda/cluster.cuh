// Thread block clusters (sm_90 and later). On older devices every block is a cluster of its own.
#pragma once

#include <cooperative_groups.h>

namespace bgkd {

__device__ __forceinline__ unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().num_blocks();
#else
  return 1;
#endif
}

__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().block_rank();
#else
  return 0;
#endif
}

// Barrier of all threads of the cluster; what they wrote to shared memory is then seen by all.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#else
  __syncthreads();
#endif
}

// The variable `mine` of shared memory in block `rank` of the cluster.
template <class Value>
__device__ __forceinline__ const Value& of_block(Value& mine, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  return *cooperative_groups::this_cluster().map_shared_rank(&mine, rank);
#else
  return mine;
#endif
}

}  // namespace bgkd
