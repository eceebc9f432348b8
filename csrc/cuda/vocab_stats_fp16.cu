#include "vocab_stats_launch.cuh"

namespace bgkd {

template cudaError_t launch_vocab_stats_of<__half>(const StatsArgs&, const CudaPlan&, float*,
                                                   cudaStream_t);

}  // namespace bgkd
