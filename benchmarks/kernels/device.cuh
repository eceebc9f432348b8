// Device memory that frees itself, made-up logits, the copy that kernels are measured against, and
// a clock.
#pragma once

#include <algorithm>

#include "../../csrc/cuda/columns.cuh"
#include "options.h"

namespace bgkd::bench {

inline void check(cudaError_t error, const std::string& attempt) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(attempt + ": " + cudaGetErrorString(error) +
                           (error == cudaErrorNoKernelImageForDevice
                                ? "; build for it: cmake -DCMAKE_CUDA_ARCHITECTURES=native"
                                : ""));
}

inline int attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&value, name, device), "asking for an attribute of the device");
  return value;
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t size) : size_(size) {
    check(cudaMalloc(&data_, bytes()), "allocating " + std::to_string(bytes()) + " bytes");
    check(cudaMemset(data_, 0, bytes()), "clearing memory");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }

  void write(const std::vector<T>& values) const {
    check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
          "copying to the device");
  }
  std::vector<T> read(int64_t first, int64_t count) const {
    std::vector<T> values(static_cast<size_t>(count));
    check(
        cudaMemcpy(values.data(), data_ + first, values.size() * sizeof(T), cudaMemcpyDeviceToHost),
        "copying to the host");
    return values;
  }
  void copy_from(const DeviceArray& source) const {
    check(cudaMemcpyAsync(data_, source.data_, bytes(), cudaMemcpyDeviceToDevice, nullptr),
          "copying on the device");
  }

 private:
  T* data_ = nullptr;
  int64_t size_;
};

constexpr int kBenchThreads = 256;

inline unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kBenchThreads - 1) / kBenchThreads);
}

// Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
__device__ inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A sum of four uniform numbers is near enough to a normal one; standard deviation 2. With
// outliers, as real models have: without them the running maxima hardly move.
template <class T>
__global__ void fill_kernel(T* logits, int64_t count, uint64_t seed) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBenchThreads + threadIdx.x;
  if (i >= count) return;
  const uint64_t bits = mixed(mixed(seed) + static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15u);
  float sum = 0.f;
  for (int k = 0; k < 4; ++k) sum += static_cast<float>((bits >> (12 * k)) & 0xfffu) / 4096.f;
  const bool is_outlier = (bits >> 48) % 4096 == 0;
  logits[i] = from_float<T>(3.4641f * (sum - 2.f) + (is_outlier ? 12.f : 0.f));
}

template <class T>
void fill_logits(const DeviceArray<T>& logits, uint64_t seed) {
  fill_kernel<<<blocks_for(logits.size()), kBenchThreads>>>(logits.data(), logits.size(), seed);
  check(cudaGetLastError(), "filling the logits");
}

// Four vectors a thread are under way at once.
static __global__ void copy_kernel(const uint4* from, uint4* to, int64_t count) {
  constexpr int kVectors = 4;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBenchThreads * kVectors + threadIdx.x;
  uint4 vectors[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    if (first + k * kBenchThreads < count) vectors[k] = from[first + k * kBenchThreads];
  }
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    if (first + k * kBenchThreads < count) to[first + k * kBenchThreads] = vectors[k];
  }
}

static __global__ void read_kernel(const uint4* from, int64_t count, unsigned* sink) {
  unsigned seen = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBenchThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBenchThreads + threadIdx.x; i < count;
       i += step) {
    const uint4 v = from[i];
    seen |= v.x | v.y | v.z | v.w;
  }
  if (seen != 0) *sink = seen;  // never: the memory is zero
}

// Times what is launched when nothing that it needs is in the L2 cache.
class ColdTimer {
 public:
  explicit ColdTimer(int64_t copy_bytes)
      : flush_(2 * attribute(cudaDevAttrL2CacheSize) / sizeof(uint4)),
        sink_(1),
        copy_(2 * vectors_of(copy_bytes)) {
    check(cudaEventCreate(&start_), "making an event");
    check(cudaEventCreate(&stop_), "making an event");
  }
  ~ColdTimer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  ColdTimer(const ColdTimer&) = delete;
  ColdTimer& operator=(const ColdTimer&) = delete;

  // Microseconds of the device between the two ends of `launch`.
  template <class Launch>
  double time(const Launch& launch) const {
    // Reading, unlike writing, leaves nothing in the cache that has to go to memory while the next
    // kernel runs. It also keeps the device busy while the host prepares the launch, so that its
    // latency is not seen.
    const unsigned blocks = 8 * attribute(cudaDevAttrMultiProcessorCount);
    read_kernel<<<std::min(blocks, blocks_for(flush_.size())), kBenchThreads>>>(
        flush_.data(), flush_.size(), sink_.data());
    check(cudaGetLastError(), "flushing the L2 cache");
    check(cudaEventRecord(start_, nullptr), "recording an event");
    launch();
    check(cudaEventRecord(stop_, nullptr), "recording an event");
    check(cudaEventSynchronize(stop_), "running what was timed");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start_, stop_), "reading the time");
    return 1e3 * static_cast<double>(milliseconds);
  }
  // Of a copy that reads half of the bytes and writes half.
  double time_of_copy(int64_t bytes) const {
    const int64_t count = vectors_of(bytes);
    return time([&] {
      copy_kernel<<<blocks_for((count + 3) / 4), kBenchThreads>>>(copy_.data(),
                                                                  copy_.data() + count, count);
      check(cudaGetLastError(), "the copy kernel");
    });
  }

 private:
  static int64_t vectors_of(int64_t bytes) {
    return std::max<int64_t>(1, bytes / 2 / static_cast<int64_t>(sizeof(uint4)));
  }

  DeviceArray<uint4> flush_;
  DeviceArray<unsigned> sink_;
  DeviceArray<uint4> copy_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

}  // namespace bgkd::bench
