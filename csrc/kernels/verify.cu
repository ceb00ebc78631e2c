// Which drafts of each request are accepted, and the target's own token after them; the rules are
// those of p_eagle_cuda.verification. Node i of request b has the row row_start[b] + i.
//
// Two launches. Of the first, a block takes a tile of 4096 logits of a row and leaves its largest and
// the sum of its exponentials: the logits are read once, all rows at a time. Of the second, a block
// takes a request and walks from the root: what tiles weigh says in which a choice falls, and that
// one is read again. So a step reads each logits row that can be visited once, and a tile more for
// each token that is drawn. Rows of drafts outside of the vocabulary are not read.
//
// Numerics: weights are float32 exponentials, their sums and all else that decides is float64. No
// order of sums depends on the other requests.
// Garbage: rows and links are checked against what is there; what a row of two requests is at is the
// lower one's temperature.

#include <cutlass/numeric_types.h>

#include "ops.h"
#include "verification/kernel.cuh"

namespace p_eagle {

cudaError_t launch_verify(VerifyParams const& params, LogitsType type, cudaStream_t stream) {
  switch (type) {
    case LogitsType::kBFloat16: return launch_verify_with<cutlass::bfloat16_t>(params, stream);
    case LogitsType::kHalf: return launch_verify_with<cutlass::half_t>(params, stream);
    case LogitsType::kFloat: return launch_verify_with<float>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
