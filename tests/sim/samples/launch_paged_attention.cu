// Lets Python launch one configuration of the project's kernel without torch.

#include "kernels/paged_attention.cuh"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_paged_attention_from_c(p_eagle::PagedAttentionParams const& params) {
  using Config = p_eagle::PagedAttentionConfig<cutlass::bfloat16_t, cutlass::float_e4m3_t, 64>;
  return p_eagle::launch_paged_attention_with<Config>(params, nullptr);
}
