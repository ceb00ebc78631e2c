// The target's hidden states as the drafter sees them: for each row r < num_rows with a source row,
//
//   out[r] = W x[r],  x[r] = [norm](tap_0[source_row[r]], tap_1[source_row[r]], ...)
//
// The taps are read where they lie, no concatenation is made. Linear layer by linear/kernel.cuh;
// traffic: the weight once, the tapped rows once, the result.

#include "linear/epilogue_store.cuh"
#include "linear/launch.cuh"
#include "ops.h"

namespace p_eagle {

cudaError_t launch_project_taps(ProjectTapsParams const& params, DType dtype, cudaStream_t stream) {
  return launch_linear<Store>(params, dtype, stream, &launch_wide_project_taps);
}

}  // namespace p_eagle
