// Lets Python call the project's launch function without torch.

#include "kernels/prune_rows.cu"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_prune_rows_from_c(p_eagle::PruneRowsParams const& params) {
  return p_eagle::launch_prune_rows(params, nullptr);
}
