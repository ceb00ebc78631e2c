// From the arguments of a linear layer with many rows to the one kernel that is made for them.
#pragma once

#include <cutlass/numeric_types.h>

#include "common/launch.h"
#include "hopper/kernel.cuh"

namespace p_eagle {

template <class Config, class Epilogue>
cudaError_t launch_wide_with(typename Epilogue::Params const& params, cudaStream_t stream) {
  using Storage = WideStorage<Config, Epilogue>;
  static_assert(sizeof(Storage) <= Config::kTile.shared_bytes());
  constexpr int kSharedBytesPerSm = 228 * 1024;
  constexpr int kReservedBytes = 1024;  // of each CTA
  static_assert(Config::kTile.kernels_per_sm * (sizeof(Storage) + kReservedBytes) <=
                kSharedBytesPerSm);
  int num_sms = 0;
  if (cudaError_t const status = count_sms(num_sms); status != cudaSuccess) {
    return status;
  }
  CUtensorMap weight_map;
  constexpr bool kIsBf16 = std::is_same_v<typename Config::Element, cutlass::bfloat16_t>;
  constexpr CUtensorMapDataType kType = Config::kIsE4M3 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                        : kIsBf16       ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                        : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  if (cudaError_t const status =
          make_weight_map(weight_map, params.weight, Epilogue::weight_rows(params), kType);
      status != cudaSuccess) {
    return status;
  }
  int const token_tiles = (params.input.max_rows + Config::kTokens - 1) / Config::kTokens;
  LinearPartition const partition = LinearPartition::make(
      WideCta<Config, Epilogue>::num_tiles(params), Config::num_blocks(params.weight),
      wide_grid(num_sms), token_tiles == 1);
  LaunchPlan const plan{.grid = dim3(partition.num_ctas, token_tiles),
                        .block = dim3(Config::kTile.threads()),
                        .smem_bytes = sizeof(Storage),
                        .stream = stream};
  return launch(&wide_kernel<Config, Epilogue>, plan, params, weight_map);
}

template <class Epilogue, class Element>
cudaError_t dispatch_wide_tokens(typename Epilogue::Params const& params, cudaStream_t stream) {
  int const max_rows = params.input.max_rows;
  if (params.input.is_e4m3) {
    switch (wide_tile(max_rows, 1).tokens) {
      case 128: return launch_wide_with<WideConfig<Element, true, 128>, Epilogue>(params, stream);
      default: return launch_wide_with<WideConfig<Element, true, 256>, Epilogue>(params, stream);
    }
  }
  switch (wide_tile(max_rows, 2).tokens) {
    case 64: return launch_wide_with<WideConfig<Element, false, 64>, Epilogue>(params, stream);
    case 128: return launch_wide_with<WideConfig<Element, false, 128>, Epilogue>(params, stream);
    default: return launch_wide_with<WideConfig<Element, false, 256>, Epilogue>(params, stream);
  }
}

// For what has_wide_kernel() (linear/launch.cuh) accepts.
template <template <class> class EpilogueOf>
cudaError_t launch_wide(typename EpilogueOf<cutlass::half_t>::Params const& params, DType dtype,
                        cudaStream_t stream) {
  switch (dtype) {
    case DType::kBFloat16: {
      using Element = cutlass::bfloat16_t;
      return dispatch_wide_tokens<EpilogueOf<Element>, Element>(params, stream);
    }
    case DType::kHalf: {
      using Element = cutlass::half_t;
      return dispatch_wide_tokens<EpilogueOf<Element>, Element>(params, stream);
    }
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
