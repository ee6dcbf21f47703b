// The part of CUDA's runtime interface that launchers call.  Launches run at once; streams and devices are names only.
#pragma once
#include <cstddef>
#include <functional>

#include "emulator/core.h"

typedef enum {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorCudartUnloading = 4,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
} cudaError_t;
typedef struct CUstream_st* cudaStream_t;
typedef enum {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
} cudaFuncAttribute;
struct cudaLaunchAttribute {
  int id;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

static inline const char* cudaGetErrorString(cudaError_t error) { return error ? emu::last_message() : "no error"; }
static inline const char* cudaGetErrorName(cudaError_t error) { return error ? "cudaError" : "cudaSuccess"; }
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
static inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
static inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidValue : cudaSuccess; }

template <class Kernel>
static cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  return static_cast<cudaError_t>(emu::allow_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(value)));
}

template <class... Params>
static void emu_run(void (*kernel)(Params...), Params... params) {
  emu::begin_thread();
  kernel(params...);
}

template <class... Params, class... Args>
static cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "kernel argument count mismatch");
  std::function<void()> thread = [=] { emu_run<Params...>(kernel, static_cast<Params>(args)...); };
  emu::Shape shape{config->gridDim, config->blockDim, config->dynamicSmemBytes};
  return static_cast<cudaError_t>(emu::launch(reinterpret_cast<const void*>(kernel), shape, thread));
}
