// Lets Python launch one configuration of the project's kernels without torch.

#include "ops.h"
#include "ptx.cuh"
#include "verification/penalties.cuh"

SAMPLE_LAUNCHER launch_apply_penalties_from_c(p_eagle::ApplyPenaltiesParams const& params) {
  return p_eagle::launch_apply_penalties_with<cutlass::bfloat16_t>(params, nullptr);
}
