// Lets Python launch two configurations of the project's kernel, by the size of the cache's elements.

#include "kernels/paged_attention.cuh"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_paged_attention_from_c(p_eagle::PagedAttentionParams const& params,
                                              int cache_bytes) {
  using Element = cutlass::bfloat16_t;
  using Plain = p_eagle::PagedAttentionConfig<Element, Element, 64>;
  using Fp8 = p_eagle::PagedAttentionConfig<Element, cutlass::float_e4m3_t, 64>;
  return cache_bytes == 2 ? p_eagle::launch_paged_attention_with<Plain>(params, nullptr)
                          : p_eagle::launch_paged_attention_with<Fp8>(params, nullptr);
}
