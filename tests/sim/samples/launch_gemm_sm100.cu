// Lets Python launch two matrix products of many rows that sm_100a has: by one CTA, and by two that
// share a weight.

#include "collectives/launch.cuh"
#include "ops.h"
#include "ptx.cuh"

using SampleElement = cutlass::bfloat16_t;

SAMPLE_LAUNCHER launch_gemm_swiglu_sm100_from_c(p_eagle::GemmParams const& params) {
  using Products = p_eagle::Sm100Products<SampleElement, 1>;
  using Epilogue = p_eagle::GemmSwiglu<SampleElement>;
  return p_eagle::launch_collective_with<Products, Epilogue>(params, nullptr);
}

SAMPLE_LAUNCHER launch_gemm_sm100_from_c(p_eagle::GemmParams const& params) {
  using Products = p_eagle::Sm100Products<SampleElement, 2>;
  using Epilogue = p_eagle::GemmStore<SampleElement>;
  return p_eagle::launch_collective_with<Products, Epilogue>(params, nullptr);
}
