// The gated half of an MLP. For each row r < num_rows, with G and U the upper and the lower half of
// the weight's rows:
//
//   out[r] = silu(G x[r]) * (U x[r]),  x[r] = rms_norm(residual[r]) * norm_weight
//
// Row i of G and row i of U are multiplied by the same thread, so neither product leaves registers.
// Linear layer by linear/kernel.cuh; traffic: the weight once, the rows once, the result. No
// [R, 2I] intermediate exists.

#include "linear/epilogue_swiglu.cuh"
#include "linear/launch.cuh"
#include "ops.h"

namespace p_eagle {

cudaError_t launch_norm_swiglu(NormSwigluParams const& params, DType dtype, cudaStream_t stream) {
  return launch_linear<Gate>(params, dtype, stream, &launch_wide_norm_swiglu);
}

}  // namespace p_eagle
