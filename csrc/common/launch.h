// The one way to launch a kernel: named fields, and programmatic dependent launch wherever the GPU
// has it, so every kernel must call wait_for_previous_kernel() before it touches anything but
// weights.
#pragma once

#include <cuda_runtime.h>

namespace p_eagle {

// Every thread block must run this, also one that then finds nothing to do: a block that leaves
// without it lets the next kernel start before the previous one has finished.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// Lets the next kernel's blocks be scheduled and load their weights.
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Of the current device.
inline cudaError_t count_sms(int& num_sms) {
  int device = 0;
  if (cudaError_t const status = cudaGetDevice(&device); status != cudaSuccess) {
    return status;
  }
  return cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
}

// Of the current device: 90 for 9.0.
inline cudaError_t find_compute_capability(int& capability) {
  int device = 0;
  int major = 0;
  int minor = 0;
  if (cudaError_t const status = cudaGetDevice(&device); status != cudaSuccess) {
    return status;
  }
  if (cudaError_t const status =
          cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      status != cudaSuccess) {
    return status;
  }
  if (cudaError_t const status =
          cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      status != cudaSuccess) {
    return status;
  }
  capability = 10 * major + minor;
  return cudaSuccess;
}

struct LaunchPlan {
  dim3 grid;
  dim3 block;
  size_t smem_bytes = 0;
  cudaStream_t stream = nullptr;
  int cluster = 1;  // blocks, along x
};

template <class... KernelArgs, class... Args>
cudaError_t launch(void (*kernel)(KernelArgs...), LaunchPlan const& plan, Args&&... args) {
  int capability = 0;
  if (cudaError_t const status = find_compute_capability(capability); status != cudaSuccess) {
    return status;
  }

  // More than this a kernel has to ask for.
  constexpr size_t kPlainSmemBytes = 48 * 1024;
  if (plan.smem_bytes > kPlainSmemBytes) {
    if (cudaError_t const status = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(plan.smem_bytes));
        status != cudaSuccess) {
      return status;
    }
  }

  cudaLaunchAttribute attributes[2] = {};  // of devices that have them
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {unsigned(plan.cluster), 1, 1};

  cudaLaunchConfig_t config{};
  config.gridDim = plan.grid;
  config.blockDim = plan.block;
  config.dynamicSmemBytes = plan.smem_bytes;
  config.stream = plan.stream;
  config.attrs = attributes;
  config.numAttrs = capability < 90 ? 0 : plan.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Args&&>(args)...);
}

}  // namespace p_eagle
