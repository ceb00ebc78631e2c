// From the arguments of a matrix product to the kernel and the tile that are made for them.
#pragma once

#include <algorithm>

#include "collectives/kernel.cuh"

namespace p_eagle {

template <class Config, class Epilogue>
cudaError_t launch_collective_with(GemmParams const& params, cudaStream_t stream) {
  using Mainloop = typename Config::Mainloop;
  using Element = typename Config::Element;
  using Storage = CollectiveStorage<Config, Epilogue>;
  constexpr int kMaxSharedBytes = 227 * 1024;
  static_assert(sizeof(Storage) <= kMaxSharedBytes);
  constexpr int kCluster = Config::kTile.cluster;
  int num_sms = 0;
  if (cudaError_t const status = count_sms(num_sms); status != cudaSuccess) {
    return status;
  }
  int64_t const columns = params.weight.columns;
  WeightGroups const groups = Epilogue::groups(params);
  typename Mainloop::Arguments const arguments{
      static_cast<Element const*>(params.x),
      {columns, cute::_1{}, cute::_0{}},
      static_cast<Element const*>(params.weight.data),
      {{groups.row_step * columns, groups.half_step * columns, groups.group_step * columns},
       cute::_1{},
       cute::_0{}}};
  auto const mainloop =
      Mainloop::to_underlying_arguments(Epilogue::problem_shape(params), arguments, nullptr);
  LinearPartition const partition =
      collective_partition(kCluster, params.max_rows, params.weight.rows, params.weight.columns,
                           std::max(wide_grid(num_sms) / kCluster, 1));
  LaunchPlan const plan{.grid = dim3(partition.num_ctas * kCluster),
                        .block = dim3(CollectiveTile::kThreads),
                        .smem_bytes = sizeof(Storage),
                        .stream = stream,
                        .cluster = kCluster};
  return launch(&collective_kernel<Config, Epilogue>, plan, params, mainloop);
}

template <class Element, class Epilogue>
cudaError_t dispatch_cluster(GemmParams const& params, cudaStream_t stream) {
  return collective_tile(params.max_rows).cluster == 1
             ? launch_collective_with<CollectiveConfig<Element, 1>, Epilogue>(params, stream)
             : launch_collective_with<CollectiveConfig<Element, 2>, Epilogue>(params, stream);
}

template <template <class> class EpilogueOf>
cudaError_t launch_collective(GemmParams const& params, DType dtype, cudaStream_t stream) {
  int device = 0;
  int compute_major = 0;
  if (cudaError_t const status = cudaGetDevice(&device); status != cudaSuccess) {
    return status;
  }
  if (cudaError_t const status =
          cudaDeviceGetAttribute(&compute_major, cudaDevAttrComputeCapabilityMajor, device);
      status != cudaSuccess) {
    return status;
  }
  if (compute_major != 9) {
    return cudaErrorNotSupported;
  }
  switch (dtype) {
    case DType::kBFloat16: {
      using Element = cutlass::bfloat16_t;
      return dispatch_cluster<Element, EpilogueOf<Element>>(params, stream);
    }
    case DType::kHalf: {
      using Element = cutlass::half_t;
      return dispatch_cluster<Element, EpilogueOf<Element>>(params, stream);
    }
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
