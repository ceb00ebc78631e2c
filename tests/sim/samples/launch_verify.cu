// Lets Python launch one configuration of the project's kernels without torch.

#include "ops.h"
#include "ptx.cuh"
#include "verification/kernel.cuh"

SAMPLE_LAUNCHER launch_verify_from_c(p_eagle::VerifyParams const& params) {
  return p_eagle::launch_verify_with<cutlass::bfloat16_t>(params, nullptr);
}
