// A stand-in for the CUDA runtime library. An nvcc-built library registers and launches its kernels
// as usual; launches, copies and fills are handed to callbacks, so that the real host code is
// tested where there is no GPU. Everything is synchronous, and streams are only passed on.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

struct Function {
  std::string name;
  int max_dynamic_shared = 48 * 1024;  // more has to be asked for
  bool non_portable_cluster = false;
};

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};

struct Callbacks {
  int (*launch)(const char* name, const unsigned* sizes, size_t shared, void** args, void* stream);
  int (*copy)(void* to, const void* from, size_t count, int kind);
  int (*fill)(void* to, int value, size_t count);
  void* (*allocate)(size_t count);  // null: no room
};

std::map<const void*, Function> functions;
std::map<int, int> attributes;
int device_count = 1;
std::vector<Configuration> pending;
Callbacks callbacks;
int last_error;

cudaError_t note(int error) {
  if (error) last_error = error;
  return static_cast<cudaError_t>(error);
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, dim3 cluster, void** args,
                   size_t shared, void* stream) {
  const auto found = functions.find(function);
  if (found == functions.end()) return note(cudaErrorInvalidDeviceFunction);
  if (!callbacks.launch) return note(cudaErrorNoDevice);
  const size_t threads = size_t{block.x} * block.y * block.z;
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  if (!threads || !blocks || threads > 1024 || grid.y > 65535 || grid.z > 65535) {
    return note(cudaErrorInvalidConfiguration);
  }
  if (shared > static_cast<size_t>(found->second.max_dynamic_shared)) {
    return note(cudaErrorInvalidValue);
  }
  if (cluster.x * cluster.y * cluster.z > 8 && !found->second.non_portable_cluster) {
    return note(cudaErrorInvalidClusterSize);
  }
  const unsigned sizes[9] = {grid.x,  grid.y,    grid.z,    block.x,  block.y,
                             block.z, cluster.x, cluster.y, cluster.z};
  return note(callbacks.launch(found->second.name.c_str(), sizes, shared, args, stream));
}

int attribute(int which) {
  const auto found = attributes.find(which);
  return found == attributes.end() ? 0 : found->second;
}

// By threads and shared memory; the registers are not known here.
int blocks_per_sm(int threads, size_t shared) {
  const int by_threads = attribute(cudaDevAttrMaxThreadsPerMultiProcessor) / std::max(threads, 1);
  const size_t each = shared + attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  const size_t all = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return std::min<size_t>({static_cast<size_t>(by_threads), all / std::max<size_t>(each, 1), 32});
}

}  // namespace

extern "C" {

void stand_in_set_callbacks(const Callbacks* given) { callbacks = *given; }
void stand_in_set_attribute(int which, int value) { attributes[which] = value; }
void stand_in_set_device_count(int count) { device_count = count; }

// ---- what nvcc's generated code calls
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  functions[host].name = device;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
char __cudaInitModule(void**) { return 0; }
int __cudaGetKernel(void** kernel, const void* function) {
  *kernel = const_cast<void*>(function);
  return 0;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  pending.push_back({grid, block, shared, stream});
  return 0;
}
int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Configuration last = pending.back();
  pending.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared = last.shared;
  *static_cast<void**>(stream) = last.stream;
  return 0;
}
int __cudaLaunchKernel(void* kernel, dim3 grid, dim3 block, void** args, size_t shared,
                       void* stream) {
  return launch(kernel, grid, block, {0, 0, 0}, args, shared, stream);
}

// ---- launches and functions
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** args,
                             size_t shared, cudaStream_t stream) {
  return launch(function, grid, block, {0, 0, 0}, args, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** args) {
  dim3 cluster{0, 0, 0};
  for (unsigned k = 0; k < config->numAttrs; ++k) {
    const cudaLaunchAttribute& given = config->attrs[k];
    if (given.id == cudaLaunchAttributeClusterDimension) {
      cluster = {given.val.clusterDim.x, given.val.clusterDim.y, given.val.clusterDim.z};
    } else if (given.id == cudaLaunchAttributeCooperative && given.val.cooperative) {
      return note(cudaErrorNotSupported);  // blocks run one chunk after the other
    }
  }
  return launch(function, config->gridDim, config->blockDim, cluster, args,
                config->dynamicSmemBytes, config->stream);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute which, int value) {
  const auto found = functions.find(function);
  if (found == functions.end()) return note(cudaErrorInvalidDeviceFunction);
  if (which == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))
      return note(cudaErrorInvalidValue);
    found->second.max_dynamic_shared = value;
  } else if (which == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    found->second.non_portable_cluster = value != 0;
  } else if (which != cudaFuncAttributePreferredSharedMemoryCarveout) {
    return note(cudaErrorNotSupported);
  }
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          size_t shared) {
  *blocks = blocks_per_sm(threads, shared);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*,
                                                                   int threads, size_t shared,
                                                                   unsigned) {
  *blocks = blocks_per_sm(threads, shared);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*,
                                           const cudaLaunchConfig_t* config) {
  int size = 1;
  for (unsigned k = 0; k < config->numAttrs; ++k) {
    const auto& c = config->attrs[k].val.clusterDim;
    if (config->attrs[k].id == cudaLaunchAttributeClusterDimension) size = c.x * c.y * c.z;
  }
  const dim3 block = config->blockDim;
  const int each = blocks_per_sm(block.x * block.y * block.z, config->dynamicSmemBytes);
  *clusters = each * attribute(cudaDevAttrMultiProcessorCount) / size;
  return cudaSuccess;
}

// ---- device and errors
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return note(device ? cudaErrorInvalidDevice : cudaSuccess);
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count;
  return note(device_count ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  if (device || !attributes.count(which)) return note(cudaErrorInvalidValue);
  *value = attributes[which];
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const int error = last_error;
  last_error = 0;
  return static_cast<cudaError_t>(error);
}
cudaError_t cudaPeekAtLastError() { return static_cast<cudaError_t>(last_error); }
const char* cudaGetErrorName(cudaError_t error) { return error ? "stand-in error" : "cudaSuccess"; }
const char* cudaGetErrorString(cudaError_t error) {
  return error ? "an error of the stand-in runtime" : "no error";
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  std::strcpy(properties->name, "stand-in");
  return note(device ? cudaErrorInvalidDevice : cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

// ---- events: there is no time, so each is recorded a millisecond after the one before
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new int(0));
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<int*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  static int milliseconds;
  *reinterpret_cast<int*>(event) = ++milliseconds;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = static_cast<float>(*reinterpret_cast<int*>(end) - *reinterpret_cast<int*>(start));
  return cudaSuccess;
}

// ---- memory
cudaError_t cudaMalloc(void** memory, size_t count) {
  *memory = callbacks.allocate ? callbacks.allocate(count) : nullptr;
  return note(*memory ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void*) { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *available = *total = size_t{1} << 28;  // ptx.Device's
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t count, cudaMemcpyKind kind,
                            cudaStream_t) {
  return note(callbacks.copy ? callbacks.copy(to, from, count, kind) : cudaErrorNoDevice);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t count, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, count, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t count, cudaStream_t) {
  return note(callbacks.fill ? callbacks.fill(to, value, count) : cudaErrorNoDevice);
}
cudaError_t cudaMemset(void* to, int value, size_t count) {
  return cudaMemsetAsync(to, value, count, nullptr);
}

}  // extern "C"
