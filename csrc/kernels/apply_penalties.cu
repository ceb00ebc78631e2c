// Penalties for tokens that have occurred, in place. A token that a request has in its list or on
// the path of drafts to the row's node, c times in the output and on that path, gets
//
//   x' = x / r if x > 0 else x * r,   x'' = x' - f * c - (p if c > 0 else 0)
//
// with the request's repetition r, frequency f and presence p: vLLM's rule, and what the row would
// have got if the drafts before it had been emitted.
//
// Mapping: a block has a row. It looks up the path first, goes through the list, and then does what
// was on the path alone.
// Traffic: the list, and of the row what is in it. Requests without penalties read neither.
// Numerics: float32, every operation rounded; the row's type rounds once.
// Garbage: tokens outside of the vocabulary do not count, a parent that is no node before its child
// ends a path, a row of several requests is the lowest one's. A token that is listed twice is
// penalised once or twice, with either count.

#include <cutlass/numeric_types.h>

#include "ops.h"
#include "verification/penalties.cuh"

namespace p_eagle {

cudaError_t launch_apply_penalties(ApplyPenaltiesParams const& params, LogitsType type,
                                   cudaStream_t stream) {
  switch (type) {
    case LogitsType::kBFloat16:
      return launch_apply_penalties_with<cutlass::bfloat16_t>(params, stream);
    case LogitsType::kHalf: return launch_apply_penalties_with<cutlass::half_t>(params, stream);
    case LogitsType::kFloat: return launch_apply_penalties_with<float>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
