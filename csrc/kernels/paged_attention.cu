// paged_attention: runtime values become a configuration of the kernel in paged_attention.cuh.

#include <cutlass/numeric_types.h>

#include "kernels/paged_attention.cuh"
#include "ops.h"

namespace p_eagle {
namespace {

template <class Element, class Cache>
cudaError_t dispatch_head_dim(PagedAttentionParams const& params, cudaStream_t stream) {
  switch (params.head_dim) {
    case 64:
      return launch_paged_attention_with<PagedAttentionConfig<Element, Cache, 64>>(params, stream);
    case 128:
      return launch_paged_attention_with<PagedAttentionConfig<Element, Cache, 128>>(params, stream);
  }
  return cudaErrorInvalidValue;
}

template <class Element>
cudaError_t dispatch_cache(PagedAttentionParams const& params, CacheType cache_dtype,
                           cudaStream_t stream) {
  switch (cache_dtype) {
    case CacheType::kElement: return dispatch_head_dim<Element, Element>(params, stream);
    case CacheType::kE4M3: return dispatch_head_dim<Element, cutlass::float_e4m3_t>(params, stream);
    case CacheType::kE5M2: return dispatch_head_dim<Element, cutlass::float_e5m2_t>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_paged_attention(PagedAttentionParams const& params, DType dtype,
                                   CacheType cache_dtype, cudaStream_t stream) {
  switch (dtype) {
    case DType::kBFloat16: return dispatch_cache<cutlass::bfloat16_t>(params, cache_dtype, stream);
    case DType::kHalf: return dispatch_cache<cutlass::half_t>(params, cache_dtype, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
