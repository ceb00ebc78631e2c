// The gated half of an MLP for many rows: out[r] = silu(G x[r]) * (U x[r]). Linear layer by
// collectives/kernel.cuh; traffic as in gemm.cu, with half as much to write.

#include "collectives/launch.cuh"
#include "ops.h"

namespace p_eagle {

cudaError_t launch_gemm_swiglu(GemmParams const& params, DType dtype, cudaStream_t stream) {
  return launch_collective<GemmSwiglu>(params, dtype, stream);
}

}  // namespace p_eagle
