// Clusters of blocks that read each other's shared memory. kBug 0 is right.
#include <cooperative_groups.h>

#include <cstdint>

namespace cg = cooperative_groups;

enum Bug { kNone, kNoFirstBarrier, kNoLastBarrier, kRelaxedArrive, kWriteAfterArrive, kWrongRank };

// out[cluster, k]: sum over the cluster's blocks of what each put at k; blocks of 64.
template <int kBug>
__global__ void __cluster_dims__(4, 1, 1) cluster_sum(const float* x, float* out) {
  __shared__ float part[64];
  const int thread = threadIdx.x;
  cg::cluster_group cluster = cg::this_cluster();
  if (kBug == kWriteAfterArrive) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    part[thread] = x[blockIdx.x * 64 + thread];
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  } else {
    part[thread] = x[blockIdx.x * 64 + thread];
    if (kBug == kRelaxedArrive) {
      asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
      asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    } else if (kBug != kNoFirstBarrier) {
      cluster.sync();
    }
  }
  if (cluster.block_rank() == 0) {
    float sum = 0;
    for (unsigned rank = 0; rank < cluster.num_blocks() + (kBug == kWrongRank); ++rank) {
      sum += *cluster.map_shared_rank(&part[thread], rank);
    }
    out[blockIdx.x / 4 * 64 + thread] = sum;
  }
  if (kBug != kNoLastBarrier) cluster.sync();
}

// Two rounds through the same memory, addressed in the shared::cluster window: a block puts its
// number, plus the round, into the next block; blocks of 32, cluster size from the launch.
template <int kBug>
__global__ void cluster_ring(int* out) {
  __shared__ int box[32];
  uint32_t rank, size;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  const uint32_t own = static_cast<uint32_t>(__cvta_generic_to_shared(&box[threadIdx.x]));
  uint32_t next;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(next) : "r"(own), "r"((rank + 1) % size));
  asm volatile("barrier.cluster.arrive;\n barrier.cluster.wait;" ::: "memory");
  for (int round = 0; round < 2; ++round) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(next), "r"(rank + 100 * round)
                 : "memory");
    asm volatile("barrier.cluster.arrive.release;\n barrier.cluster.wait.acquire;" ::: "memory");
    out[(blockIdx.x * 2 + round) * 32 + threadIdx.x] = box[threadIdx.x ^ 1];
    if (kBug == 0) {  // 1: the next round overwrites what a neighbour still reads
      asm volatile("barrier.cluster.arrive.release;\n barrier.cluster.wait.acquire;" ::: "memory");
    }
  }
}

template __global__ void cluster_sum<0>(const float*, float*);
template __global__ void cluster_sum<1>(const float*, float*);
template __global__ void cluster_sum<2>(const float*, float*);
template __global__ void cluster_sum<3>(const float*, float*);
template __global__ void cluster_sum<4>(const float*, float*);
template __global__ void cluster_sum<5>(const float*, float*);
template __global__ void cluster_ring<0>(int*);
template __global__ void cluster_ring<1>(int*);
