// From the arguments of a matrix product to the kernel and the tile that are made for them.
#pragma once

#include <algorithm>

#include "collectives/kernel.cuh"
#include "collectives/sm100.cuh"
#include "collectives/sm90.cuh"

namespace p_eagle {

// Whether this compilation is for an architecture, such as 900, among others.
constexpr bool is_compiled_for(int architecture) {
  constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};
  return std::find(std::begin(kArchitectures), std::end(kArchitectures), architecture) !=
         std::end(kArchitectures);
}

template <class Products, class Epilogue>
cudaError_t launch_collective_with(GemmParams const& params, cudaStream_t stream) {
  using Mainloop = typename Products::Mainloop;
  using Element = typename Products::Element;
  using Storage = CollectiveStorage<Products, Epilogue>;
  constexpr int kMaxSharedBytes = 227 * 1024;
  static_assert(sizeof(Storage) <= kMaxSharedBytes);
  constexpr int kCluster = Products::kTile.cluster;
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
  return launch(&collective_kernel<Products, Epilogue>, plan, params, mainloop);
}

template <template <class, int> class Products, class Element, class Epilogue>
cudaError_t dispatch_cluster(GemmParams const& params, cudaStream_t stream) {
  return collective_tile(params.max_rows).cluster == 1
             ? launch_collective_with<Products<Element, 1>, Epilogue>(params, stream)
             : launch_collective_with<Products<Element, 2>, Epilogue>(params, stream);
}

// What is compiled for an architecture with features of its own runs on no other: 100a not on 10.3.
template <class Element, class Epilogue>
cudaError_t dispatch_architecture([[maybe_unused]] GemmParams const& params,
                                  [[maybe_unused]] int capability,
                                  [[maybe_unused]] cudaStream_t stream) {
  if constexpr (is_compiled_for(900)) {
    if (capability == 90) {
      return dispatch_cluster<Sm90Products, Element, Epilogue>(params, stream);
    }
  }
  if constexpr (is_compiled_for(1000)) {
    if (capability == 100) {
      return dispatch_cluster<Sm100Products, Element, Epilogue>(params, stream);
    }
  }
  return cudaErrorNotSupported;
}

// cudaErrorNotSupported: the device or this build has no collectives.
template <template <class> class EpilogueOf>
cudaError_t launch_collective(GemmParams const& params, DType dtype, cudaStream_t stream) {
  int capability = 0;
  if (cudaError_t const status = find_compute_capability(capability); status != cudaSuccess) {
    return status;
  }
  switch (dtype) {
    case DType::kBFloat16: {
      using Element = cutlass::bfloat16_t;
      return dispatch_architecture<Element, EpilogueOf<Element>>(params, capability, stream);
    }
    case DType::kHalf: {
      using Element = cutlass::half_t;
      return dispatch_architecture<Element, EpilogueOf<Element>>(params, capability, stream);
    }
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
