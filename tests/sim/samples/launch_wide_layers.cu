// Lets Python launch one kernel of each kind of wide linear layer that the samples run, under the
// names of launch_linear_layers.cu.

#include "hopper/launch.cuh"
#include "linear/epilogue_residual.cuh"
#include "linear/epilogue_swiglu.cuh"
#include "ops.h"
#include "ptx.cuh"

using SampleConfig = p_eagle::WideConfig<cutlass::bfloat16_t, false, 64>;

SAMPLE_LAUNCHER launch_linear_residual_from_c(p_eagle::LinearResidualParams const& params) {
  using Epilogue = p_eagle::AddToResidual<cutlass::bfloat16_t>;
  return p_eagle::launch_wide_with<SampleConfig, Epilogue>(params, nullptr);
}

SAMPLE_LAUNCHER launch_norm_swiglu_from_c(p_eagle::NormSwigluParams const& params) {
  return p_eagle::launch_wide_with<SampleConfig, p_eagle::Gate<cutlass::bfloat16_t>>(params,
                                                                                     nullptr);
}
