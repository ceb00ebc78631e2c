// project_taps.cu for more than 32 rows, on Hopper. Linear layer by hopper/kernel.cuh; traffic:
// the weight once for each 256 rows, the rows once for each 128 of the weight's, the rest as there.

#include "hopper/launch.cuh"
#include "linear/epilogue_store.cuh"
#include "ops.h"

namespace p_eagle {

cudaError_t launch_wide_project_taps(ProjectTapsParams const& params, DType dtype,
                                     cudaStream_t stream) {
  return launch_wide<Store>(params, dtype, stream);
}

}  // namespace p_eagle
