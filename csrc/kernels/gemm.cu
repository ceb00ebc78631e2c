// The matrix product of many rows, stored or added to what is there: out[r] = W x[r] + bias, or
// out[r] += that. Linear layer by collectives/kernel.cuh. Traffic: the weight once for each 128 rows,
// or 256 where two CTAs share it, mostly from L2; rows of x once for each 256 of the weight's.

#include "collectives/launch.cuh"
#include "ops.h"

namespace p_eagle {

cudaError_t launch_gemm(GemmParams const& params, DType dtype, cudaStream_t stream) {
  return launch_collective<GemmStore>(params, dtype, stream);
}

}  // namespace p_eagle
