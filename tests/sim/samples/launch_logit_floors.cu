// Lets Python launch one configuration of the project's kernels without torch.

#include "ops.h"
#include "ptx.cuh"
#include "verification/floors.cuh"

SAMPLE_LAUNCHER launch_logit_floors_from_c(p_eagle::LogitFloorsParams const& params) {
  return p_eagle::launch_logit_floors_with<cutlass::bfloat16_t>(params, nullptr);
}
