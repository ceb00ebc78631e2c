// The CUDA runtime API: launches, what functions are allowed, and occupancy.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "device_limits.h"
#include "fatbin.h"
#include "report.h"
#include "runtime.h"

namespace hostsim {
namespace {

struct CallConfiguration {
  dim3 grid;
  dim3 block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
};

// Of <<<...>>> expressions whose stub has not run yet; they nest where an argument launches, too.
std::vector<CallConfiguration>& call_configurations() {
  static std::vector<CallConfiguration> configurations;
  return configurations;
}

Dim3 to_dim3(dim3 size) { return {size.x, size.y, size.z}; }

RegisteredKernel& require_kernel(void const* function) {
  RegisteredKernel* const found = find_kernel(function);
  if (found == nullptr) {
    throw std::runtime_error("the host function is no kernel of this library");
  }
  return *found;
}

std::vector<char> copy_parameters(Kernel const& kernel, void** arguments) {
  std::vector<char> bytes(kernel.parameter_bytes);
  for (size_t i = 0; i < kernel.parameters.size(); ++i) {
    auto const [offset, size] = kernel.parameters[i];
    std::memcpy(&bytes[offset], arguments[i], size);
  }
  return bytes;
}

// ---- Occupancy --------------------------------------------------------------------------------------

// Registers are not among the limits: PTX does not say how many a kernel takes.
int blocks_per_sm(RegisteredKernel const& registered, int threads, size_t dynamic_shared) {
  if (threads <= 0 || threads > registered.kernel->max_threads) {
    return 0;
  }
  int const whole_warps = (threads + kWarpSize - 1) / kWarpSize * kWarpSize;
  size_t const shared = registered.static_shared + dynamic_shared + kReservedSharedPerBlock;
  return std::min({kMaxBlocksPerSm, kMaxThreadsPerSm / whole_warps, int(kSharedPerSm / shared)});
}

int blocks_on_device(RegisteredKernel const& registered, LaunchConfig const& config) {
  int const threads = int(config.block.product());
  return blocks_per_sm(registered, threads, config.dynamic_shared) * machine().settings.num_sms;
}

// ---- Launch -----------------------------------------------------------------------------------------

void apply_attribute(cudaLaunchAttribute const& attribute, LaunchConfig& config) {
  cudaLaunchAttributeValue const& value = attribute.val;
  switch (attribute.id) {
    case cudaLaunchAttributeClusterDimension:
      config.cluster = {value.clusterDim.x, value.clusterDim.y, value.clusterDim.z};
      return;
    case cudaLaunchAttributeProgrammaticStreamSerialization:
      config.overlaps_previous = value.programmaticStreamSerializationAllowed != 0;
      return;
    case cudaLaunchAttributeCooperative: config.cooperative = value.cooperative != 0; return;
    // These change the speed of a kernel, and nothing else.
    case cudaLaunchAttributeIgnore:
    case cudaLaunchAttributeAccessPolicyWindow:
    case cudaLaunchAttributeSynchronizationPolicy:
    case cudaLaunchAttributeClusterSchedulingPolicyPreference:
    case cudaLaunchAttributePriority:
    case cudaLaunchAttributeMemSyncDomainMap:
    case cudaLaunchAttributeMemSyncDomain:
    case cudaLaunchAttributePreferredSharedMemoryCarveout: return;
    default:
      throw std::runtime_error("launch attribute " + std::to_string(int(attribute.id)) +
                               " is not emulated");
  }
}

cudaError_t refuse(Kernel const& kernel, std::string const& why, cudaError_t status) {
  report("launch", "%s: %s", short_kernel_name(kernel.name).c_str(), why.c_str());
  return status;
}

// What a GPU refuses and enqueue() does not know of, because the host said it to the runtime.
cudaError_t check_launch(RegisteredKernel const& registered, LaunchConfig const& config) {
  Kernel const& kernel = *registered.kernel;
  if (int64_t(config.dynamic_shared) > registered.max_dynamic_shared) {
    return refuse(kernel,
                  std::to_string(config.dynamic_shared) + " bytes of dynamic shared memory, but " +
                      "cudaFuncAttributeMaxDynamicSharedMemorySize is " +
                      std::to_string(registered.max_dynamic_shared),
                  cudaErrorInvalidValue);
  }
  if (config.cluster.product() > uint64_t(kPortableClusterBlocks) &&
      !registered.non_portable_cluster) {
    return refuse(kernel,
                  "a cluster of " + std::to_string(config.cluster.product()) + " blocks needs " +
                      "cudaFuncAttributeNonPortableClusterSizeAllowed",
                  cudaErrorInvalidClusterSize);
  }
  int const together = config.cooperative ? blocks_on_device(registered, config) : 0;
  if (config.cooperative && config.grid.product() > uint64_t(together)) {
    return refuse(kernel,
                  "a cooperative launch of " + std::to_string(config.grid.product()) +
                      " blocks, of which " + std::to_string(together) + " fit on the device",
                  cudaErrorCooperativeLaunchTooLarge);
  }
  return cudaSuccess;
}

cudaError_t launch(void const* function, LaunchConfig const& config, void** arguments,
                   cudaStream_t stream) {
  RegisteredKernel const& registered = require_kernel(function);
  if (cudaError_t const status = check_launch(registered, config); status != cudaSuccess) {
    return status;
  }
  Kernel const& kernel = *registered.kernel;
  return submit(stream, KernelLaunch{&kernel, config, copy_parameters(kernel, arguments)});
}

LaunchConfig plain_config(dim3 grid, dim3 block, size_t shared) {
  LaunchConfig config;
  config.grid = to_dim3(grid);
  config.block = to_dim3(block);
  config.dynamic_shared = uint32_t(shared);
  return config;
}

cudaError_t set_attribute(RegisteredKernel& registered, cudaFuncAttribute attribute, int value) {
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize: {
      int const available = int(kMaxSharedPerBlock) - int(registered.static_shared);
      if (value < 0 || value > available) {
        return cudaErrorInvalidValue;
      }
      registered.max_dynamic_shared = value;
      return cudaSuccess;
    }
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      registered.non_portable_cluster = value != 0;
      return cudaSuccess;
    // These change the speed of a kernel, and nothing else.
    case cudaFuncAttributePreferredSharedMemoryCarveout:
    case cudaFuncAttributeClusterSchedulingPolicyPreference: return cudaSuccess;
    default:
      throw std::runtime_error("cudaFuncSetAttribute: attribute " + std::to_string(int(attribute)) +
                               " is not emulated");
  }
}

// PTX does not tell the registers: numRegs stays 0.
cudaFuncAttributes attributes_of(RegisteredKernel const& registered) {
  Kernel const& kernel = *registered.kernel;
  cudaFuncAttributes attributes{};
  attributes.sharedSizeBytes = registered.static_shared;
  attributes.localSizeBytes = kernel.local_bytes;
  attributes.maxThreadsPerBlock = kernel.max_threads;
  attributes.ptxVersion = machine().settings.compute_capability;
  attributes.binaryVersion = machine().settings.compute_capability;
  attributes.maxDynamicSharedSizeBytes = registered.max_dynamic_shared;
  attributes.preferredShmemCarveout = -1;
  attributes.nonPortableClusterSizeAllowed = registered.non_portable_cluster;
  return attributes;
}

LaunchConfig to_config(cudaLaunchConfig_t const& from) {
  LaunchConfig config = plain_config(from.gridDim, from.blockDim, from.dynamicSmemBytes);
  for (unsigned i = 0; i < from.numAttrs; ++i) {
    apply_attribute(from.attrs[i], config);
  }
  return config;
}

}  // namespace

cudaError_t run(KernelLaunch const& launch) {
  if (enqueue(*launch.kernel, launch.config, launch.parameters)) {
    return cudaSuccess;
  }
  return launch.kernel->unsupported.empty() ? cudaErrorInvalidConfiguration : cudaErrorInvalidPtx;
}

}  // namespace hostsim

using hostsim::api;

extern "C" {

// ---- Launch ---------------------------------------------------------------------------------------

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  hostsim::call_configurations().push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  auto& configurations = hostsim::call_configurations();
  if (configurations.empty()) {
    return hostsim::remember(cudaErrorInvalidConfiguration);
  }
  auto const& configuration = configurations.back();
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  configurations.pop_back();
  return cudaSuccess;
}

// The handle of a kernel is the address of its stub.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, void const* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(void const* function, dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t stream) {
  return api([&] {
    return hostsim::launch(function, hostsim::plain_config(grid, block, shared), arguments, stream);
  });
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchKernelExC(cudaLaunchConfig_t const* config, void const* function,
                                void** arguments) {
  return api([&] {
    return hostsim::launch(function, hostsim::to_config(*config), arguments, config->stream);
  });
}

cudaError_t cudaLaunchCooperativeKernel(void const* function, dim3 grid, dim3 block,
                                        void** arguments, size_t shared, cudaStream_t stream) {
  return api([&] {
    hostsim::LaunchConfig config = hostsim::plain_config(grid, block, shared);
    config.cooperative = true;
    return hostsim::launch(function, config, arguments, stream);
  });
}

// ---- Functions ------------------------------------------------------------------------------------

cudaError_t cudaFuncSetAttribute(void const* function, cudaFuncAttribute attribute, int value) {
  return api(
      [&] { return hostsim::set_attribute(hostsim::require_kernel(function), attribute, value); });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void const* function) {
  return api([&] {
    *attributes = hostsim::attributes_of(hostsim::require_kernel(function));
    return cudaSuccess;
  });
}

cudaError_t cudaFuncSetCacheConfig(void const*, cudaFuncCache) { return cudaSuccess; }

// ---- Occupancy ------------------------------------------------------------------------------------

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void const* function,
                                                          int threads, size_t shared) {
  return api([&] {
    *blocks = hostsim::blocks_per_sm(hostsim::require_kernel(function), threads, shared);
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks,
                                                                   void const* function,
                                                                   int threads, size_t shared,
                                                                   unsigned) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void const* function,
                                           cudaLaunchConfig_t const* config) {
  return api([&] {
    hostsim::LaunchConfig const wanted = hostsim::to_config(*config);
    int const blocks = hostsim::blocks_on_device(hostsim::require_kernel(function), wanted);
    *clusters = blocks / int(wanted.cluster.product());
    return cudaSuccess;
  });
}

}  // extern "C"
