// A projection onto the residual stream. For each row r < num_rows:
//
//   residual[r]         += W x[r] + bias
//   sum_squares[g, r]    = sum of residual[r, c]^2 over the 64 columns c of group g
//
// The sums are what the next layer's norm needs of the whole row: with them it can norm the row while
// it loads it. They are of the rounded values. Linear layer by linear/kernel.cuh; traffic: the weight
// once, x once, the residual read and written once, the sums.

#include "linear/epilogue_residual.cuh"
#include "linear/launch.cuh"
#include "ops.h"

namespace p_eagle {

cudaError_t launch_linear_residual(LinearResidualParams const& params, DType dtype,
                                   cudaStream_t stream) {
  return launch_linear<AddToResidual>(params, dtype, stream, &launch_wide_linear_residual);
}

}  // namespace p_eagle
