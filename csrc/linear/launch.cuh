// From the arguments of a linear layer to the one kernel that is made for them.
#pragma once

#include <cutlass/numeric_types.h>

#include "common/launch.h"
#include "linear/kernel.cuh"

namespace p_eagle {

// Whether the kernels of csrc/hopper run a layer: on sm_90, which has them alone, with more rows
// than fit a tile here, both operands of 16 bits or both e4m3, and a weight whose rows make groups
// of 16. Every published drafter's do.
inline cudaError_t find_wide_kernel(LinearInput const& input, LinearWeight const& weight,
                                    bool& has_one) {
  has_one = false;
  bool const is_mixed = (weight.scale != nullptr) != input.is_e4m3;
  if (input.max_rows <= kMaxTileTokens || is_mixed || weight.rows % 16 != 0) {
    return cudaSuccess;
  }
  int capability = 0;
  if (cudaError_t const status = find_compute_capability(capability); status != cudaSuccess) {
    return status;
  }
  has_one = capability == 90;
  return cudaSuccess;
}

template <class Config, class Epilogue>
cudaError_t launch_linear_with(typename Epilogue::Params const& params, cudaStream_t stream) {
  static_assert(sizeof(LinearStorage<Config, Epilogue>) <= Config::kTile.shared_bytes());
  int num_sms = 0;
  if (cudaError_t const status = count_sms(num_sms); status != cudaSuccess) {
    return status;
  }
  int const max_ctas = linear_grid(Config::kTile, num_sms);
  int const token_tiles = (params.input.max_rows + Config::kTokens - 1) / Config::kTokens;
  LinearPartition const partition =
      LinearPartition::make(Epilogue::num_tiles(params), params.weight.columns / kBlockColumns,
                            max_ctas, token_tiles == 1);
  LaunchPlan const plan{.grid = dim3(partition.num_ctas, token_tiles),
                        .block = dim3(Config::kThreads),
                        .smem_bytes = sizeof(LinearStorage<Config, Epilogue>),
                        .stream = stream};
  return launch(&linear_kernel<Config, Epilogue>, plan, params);
}

template <class Epilogue, class Element, bool kIsE4M3>
cudaError_t dispatch_tokens(typename Epilogue::Params const& params, cudaStream_t stream) {
  constexpr int kRows = Epilogue::kTileRows;
  switch (tile_tokens(params.input.max_rows)) {
    case 8:
      return launch_linear_with<LinearConfig<Element, kIsE4M3, kRows, 8>, Epilogue>(params, stream);
    case 16:
      return launch_linear_with<LinearConfig<Element, kIsE4M3, kRows, 16>, Epilogue>(params,
                                                                                     stream);
    default:
      return launch_linear_with<LinearConfig<Element, kIsE4M3, kRows, 32>, Epilogue>(params,
                                                                                     stream);
  }
}

// `launch_wide` launches the kernel of csrc/hopper that has the same arguments.
template <template <class> class EpilogueOf, class LaunchWide>
cudaError_t launch_linear(typename EpilogueOf<cutlass::half_t>::Params const& params, DType dtype,
                          cudaStream_t stream, LaunchWide const& launch_wide) {
  bool is_wide = false;
  if (cudaError_t const status = find_wide_kernel(params.input, params.weight, is_wide);
      status != cudaSuccess) {
    return status;
  }
  if (is_wide) {
    return launch_wide(params, dtype, stream);
  }
  bool const is_e4m3 = params.weight.scale != nullptr;
  switch (dtype) {
    case DType::kBFloat16: {
      using Element = cutlass::bfloat16_t;
      return is_e4m3 ? dispatch_tokens<EpilogueOf<Element>, Element, true>(params, stream)
                     : dispatch_tokens<EpilogueOf<Element>, Element, false>(params, stream);
    }
    case DType::kHalf: {
      using Element = cutlass::half_t;
      return is_e4m3 ? dispatch_tokens<EpilogueOf<Element>, Element, true>(params, stream)
                     : dispatch_tokens<EpilogueOf<Element>, Element, false>(params, stream);
    }
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
