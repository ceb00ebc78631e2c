// Lets Python launch the matrix product of many rows that the sample runs.

#include "collectives/launch.cuh"
#include "ops.h"
#include "ptx.cuh"

using SampleProducts = p_eagle::Sm90Products<cutlass::bfloat16_t, 2>;

SAMPLE_LAUNCHER launch_gemm_from_c(p_eagle::GemmParams const& params) {
  using Epilogue = p_eagle::GemmStore<cutlass::bfloat16_t>;
  return p_eagle::launch_collective_with<SampleProducts, Epilogue>(params, nullptr);
}
