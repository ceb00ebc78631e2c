// The CUDA runtime API: errors, the device, and the driver's entry points. Like the rest of it in
// cudart_*.cpp, it offers what launch code calls; what is missing is an error of the linker.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "device_limits.h"
#include "report.h"
#include "runtime.h"

namespace hostsim {
namespace {

cudaError_t g_last_error = cudaSuccess;
cudaError_t g_kernel_error = cudaSuccess;

struct ErrorText {
  cudaError_t code;
  char const* name;
  char const* text;
};

constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidPitchValue, "cudaErrorInvalidPitchValue", "invalid pitch argument"},
    {cudaErrorInvalidSymbol, "cudaErrorInvalidSymbol", "invalid device symbol"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidKernelImage, "cudaErrorInvalidKernelImage", "device kernel image is invalid"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidPtx, "cudaErrorInvalidPtx", "a PTX JIT compilation failed"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorCooperativeLaunchTooLarge, "cudaErrorCooperativeLaunchTooLarge",
     "too many blocks in cooperative launch"},
    {cudaErrorInvalidClusterSize, "cudaErrorInvalidClusterSize", "misconfigured cluster"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
};

ErrorText const* find_text(cudaError_t code) {
  auto const* const found =
      std::ranges::find_if(kErrors, [&](ErrorText const& error) { return error.code == code; });
  return found != std::end(kErrors) ? found : nullptr;
}

int device_attribute(cudaDeviceAttr attribute) {
  Settings const& settings = machine().settings;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return kMaxThreadsPerBlock;
    case cudaDevAttrMaxBlockDimZ: return kMaxBlockZ;
    case cudaDevAttrMaxGridDimX: return kMaxGridX;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return kMaxGridYZ;
    case cudaDevAttrMaxSharedMemoryPerBlock: return kDefaultSharedPerBlock;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return int(kMaxSharedPerBlock);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return kSharedPerSm;
    case cudaDevAttrReservedSharedMemoryPerBlock: return kReservedSharedPerBlock;
    case cudaDevAttrWarpSize: return kWarpSize;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return kRegistersPerSm;
    case cudaDevAttrMultiProcessorCount: return settings.num_sms;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return kMaxThreadsPerSm;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return kMaxBlocksPerSm;
    case cudaDevAttrComputeCapabilityMajor: return settings.compute_capability / 10;
    case cudaDevAttrComputeCapabilityMinor: return settings.compute_capability % 10;
    case cudaDevAttrL2CacheSize: return kL2Bytes;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrMemoryPoolsSupported: return 1;
    case cudaDevAttrTextureAlignment: return 512;
    default:
      throw std::runtime_error("cudaDeviceGetAttribute: attribute " +
                               std::to_string(int(attribute)) + " is not emulated");
  }
}

cudaDeviceProp device_properties() {
  cudaDeviceProp p{};
  std::strcpy(p.name, "hostsim");
  p.totalGlobalMem = kGlobalBytes;
  p.sharedMemPerBlock = size_t(kDefaultSharedPerBlock);
  p.sharedMemPerBlockOptin = kMaxSharedPerBlock;
  p.sharedMemPerMultiprocessor = size_t(kSharedPerSm);
  p.reservedSharedMemPerBlock = size_t(kReservedSharedPerBlock);
  p.regsPerBlock = kRegistersPerSm;
  p.regsPerMultiprocessor = kRegistersPerSm;
  p.warpSize = kWarpSize;
  p.maxThreadsPerBlock = kMaxThreadsPerBlock;
  p.maxThreadsPerMultiProcessor = kMaxThreadsPerSm;
  p.maxBlocksPerMultiProcessor = kMaxBlocksPerSm;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = kMaxThreadsPerBlock;
  p.maxThreadsDim[2] = kMaxBlockZ;
  p.maxGridSize[0] = kMaxGridX;
  p.maxGridSize[1] = p.maxGridSize[2] = kMaxGridYZ;
  p.major = machine().settings.compute_capability / 10;
  p.minor = machine().settings.compute_capability % 10;
  p.multiProcessorCount = machine().settings.num_sms;
  p.l2CacheSize = kL2Bytes;
  p.cooperativeLaunch = p.unifiedAddressing = p.managedMemory = p.concurrentKernels = 1;
  return p;
}

cudaError_t find_driver_function(char const* name, void** function,
                                 cudaDriverEntryPointQueryResult* result) {
  bool const known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  if (result != nullptr) {
    *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  }
  return known || result != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t remember(cudaError_t status) {
  if (status != cudaSuccess && status != cudaErrorNotReady) {
    g_last_error = status;
  }
  return status;
}

cudaError_t kernel_error() { return g_kernel_error; }

void set_kernel_error(cudaError_t status) {
  g_kernel_error = status;
  g_last_error = status;
}

cudaError_t report_exception(std::exception const& error) {
  report("api", "%s", error.what());
  return cudaErrorNotSupported;
}

cudaError_t drain() {
  if (!synchronize()) {
    set_kernel_error(cudaErrorLaunchFailure);
  }
  return g_kernel_error;
}

}  // namespace hostsim

using hostsim::api;

extern "C" {

// ---- Errors ---------------------------------------------------------------------------------------

cudaError_t cudaGetLastError() {
  return std::exchange(hostsim::g_last_error, hostsim::g_kernel_error);
}

cudaError_t cudaPeekAtLastError() { return hostsim::g_last_error; }

char const* cudaGetErrorName(cudaError_t error) {
  auto const* const found = hostsim::find_text(error);
  return found != nullptr ? found->name : "unrecognized error code";
}

char const* cudaGetErrorString(cudaError_t error) {
  auto const* const found = hostsim::find_text(error);
  return found != nullptr ? found->text : "unrecognized error code";
}

// ---- The device -----------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  return api([&] {
    *device = 0;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return api([&] { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return api([&] {
    if (device != 0) {
      return cudaErrorInvalidDevice;
    }
    *value = hostsim::device_attribute(attribute);
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return api([&] {
    if (device != 0) {
      return cudaErrorInvalidDevice;
    }
    *properties = hostsim::device_properties();
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return api([] {
    cudaError_t const status = hostsim::refuse_while_capturing(/*relaxed_too=*/true);
    return status != cudaSuccess ? status : hostsim::drain();
  });
}

// ---- The driver -----------------------------------------------------------------------------------

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPoint(char const* symbol, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
  return api([&] { return hostsim::find_driver_function(symbol, function, result); });
}

cudaError_t cudaGetDriverEntryPointByVersion(char const* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  return api([&] { return hostsim::find_driver_function(symbol, function, result); });
}

}  // extern "C"
