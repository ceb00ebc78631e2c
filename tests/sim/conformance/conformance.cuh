// What the micro-kernels of the conformance tests are made of. Each tests one family of
// instructions; the same source runs on the emulator and on a GPU.
//
//   #include "conformance.cuh"
//
//   MICRO_KERNEL(add_u32) {
//     auto const* a = args.input<unsigned>(0);
//     args.output<unsigned>(0)[threadIdx.x] = a[threadIdx.x] + unsigned(args.n[0]);
//   }
//
// Python calls it by that name: conformance.run("integer.cu", "add_u32", ...).
#pragma once

#include <cuda_runtime.h>

inline constexpr unsigned kPortableSharedBytes = 48 * 1024;  // more of it must be asked for
inline constexpr unsigned kPortableClusterBlocks = 8;

// The one parameter of every micro-kernel. Mirrored by `Args` in micro_kernels.py.
struct Args {
  void const* in[6];
  void* out[4];
  int n[8];

  template <class T>
  __device__ T const* input(int i) const {
    return static_cast<T const*>(in[i]);
  }
  template <class T>
  __device__ T* output(int i) const {
    return static_cast<T*>(out[i]);
  }
};

// Mirrored by `LaunchShape` in micro_kernels.py.
struct LaunchShape {
  unsigned grid[3];
  unsigned block[3];
  unsigned cluster[3];
  unsigned dynamic_shared_bytes;
};

inline dim3 to_dim3(unsigned const (&size)[3]) { return dim3(size[0], size[1], size[2]); }

// Launches any kernel in this shape; for launchers that pass more than Args, a tensor map say.
template <class... Params>
cudaError_t launch_shaped(void (*kernel)(Params...), LaunchShape const& shape, Params... params) {
  unsigned const cluster_blocks = shape.cluster[0] * shape.cluster[1] * shape.cluster[2];
  cudaError_t status = cudaSuccess;
  if (shape.dynamic_shared_bytes > kPortableSharedBytes) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  int(shape.dynamic_shared_bytes));
  }
  if (status == cudaSuccess && cluster_blocks > kPortableClusterBlocks) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (status != cudaSuccess) {
    return status;
  }

  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {shape.cluster[0], shape.cluster[1], shape.cluster[2]};

  cudaLaunchConfig_t config{};
  config.gridDim = to_dim3(shape.grid);
  config.blockDim = to_dim3(shape.block);
  config.dynamicSmemBytes = shape.dynamic_shared_bytes;
  config.attrs = &cluster;
  config.numAttrs = cluster_blocks > 1 ? 1 : 0;

  void* arguments[] = {&params...};
  return cudaLaunchKernelExC(&config, reinterpret_cast<void const*>(kernel), arguments);
}

// The functions that Python calls are named launch_<kernel>.
#define MICRO_LAUNCHER(name)                                                            \
  extern "C" __attribute__((visibility("default"))) int launch_##name(Args const& args, \
                                                                      LaunchShape const& shape)

// Defines the kernel, whose body follows, and its launcher.
#define MICRO_KERNEL(name)                                                    \
  __global__ void name##_kernel(__grid_constant__ Args const args);           \
  MICRO_LAUNCHER(name) { return launch_shaped(&name##_kernel, shape, args); } \
  __global__ void name##_kernel(__grid_constant__ Args const args)
