// The final norm and the head, for the sampled rows alone. With n < N and t the temperature, or 1,
//
//   logits[n, v] = W[v] x[n] / t,  x[n] = rms_norm(residual[sample_rows[n]]) * norm_weight
//   ids[n]       = the k largest of logits[n] (+ Gumbel noise), the lower id first where equal
//   lse[n]       = log of the sum of exp(logits[n, v]) over all v
//
// The weight is most of what a pass reads. CTAs stay, each with a run of its rows (head/tiles.h),
// and stream it as linear layers do (linear/kernel.cuh): a tile of 128 rows at a time, of which all
// columns, to the product [128, tokens] in float32 registers. What is wanted of a tile goes to
// shared memory (head/column.cuh), the tile itself nowhere. The last CTA to arrive merges what all
// have found (head/merge.cuh). Traffic: the weight once for up to 256 rows, the rows, the findings.
//
// The loads of a run do not stop at the ends of tiles. A row's product is added up in the order of
// columns, and its exponentials in an order that depends on the weight's rows and on the device:
// never on the other rows of the batch, on how many there are, or on who is last.

#include <cutlass/numeric_types.h>

#include "head/kernel.cuh"
#include "head/tiles.h"
#include "ops.h"

namespace p_eagle {
namespace {

template <class Element, bool kIsE4M3>
cudaError_t dispatch_tokens(LmHeadTopkParams const& params, cudaStream_t stream) {
  switch (head_tokens(params.num_samples)) {
    case 8: return launch_head_with<HeadConfig<Element, kIsE4M3, 8>>(params, stream);
    case 16: return launch_head_with<HeadConfig<Element, kIsE4M3, 16>>(params, stream);
    case 32: return launch_head_with<HeadConfig<Element, kIsE4M3, 32>>(params, stream);
    case 64: return launch_head_with<HeadConfig<Element, kIsE4M3, 64>>(params, stream);
    case 128: return launch_head_with<HeadConfig<Element, kIsE4M3, 128>>(params, stream);
    default: return launch_head_with<HeadConfig<Element, kIsE4M3, 256>>(params, stream);
  }
}

template <class Element>
cudaError_t dispatch_weight(LmHeadTopkParams const& params, cudaStream_t stream) {
  return params.weight.scale ? dispatch_tokens<Element, true>(params, stream)
                             : dispatch_tokens<Element, false>(params, stream);
}

}  // namespace

cudaError_t launch_lm_head_topk(LmHeadTopkParams const& params, DType dtype, cudaStream_t stream) {
  switch (dtype) {
    case DType::kBFloat16: return dispatch_weight<cutlass::bfloat16_t>(params, stream);
    case DType::kHalf: return dispatch_weight<cutlass::half_t>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
