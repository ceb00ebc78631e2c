// Lets Python call the project's launch function without torch.

#include "kernels/plan_attention.cu"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_plan_attention_from_c(p_eagle::PlanAttentionParams const& params) {
  return p_eagle::launch_plan_attention(params, nullptr);
}
