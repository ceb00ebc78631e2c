// Lets Python launch a wide linear layer whose operands are both e4m3.

#include "hopper/launch.cuh"
#include "linear/epilogue_swiglu.cuh"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_norm_swiglu_from_c(p_eagle::NormSwigluParams const& params) {
  using Config = p_eagle::WideConfig<cutlass::bfloat16_t, true, 128>;
  return p_eagle::launch_wide_with<Config, p_eagle::Gate<cutlass::bfloat16_t>>(params, nullptr);
}
