// Lets Python launch one configuration of the project's kernel without torch.

#include "head/kernel.cuh"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_lm_head_topk_from_c(p_eagle::LmHeadTopkParams const& params) {
  return p_eagle::launch_head_with<p_eagle::HeadConfig<cutlass::bfloat16_t, false, 16>>(params,
                                                                                        nullptr);
}
