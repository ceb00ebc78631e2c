// The smallest logit of each row that top-k, top-p and min-p let through. With w = exp((x - max)/T)
//
//   top-k  the largest x for which k logits are at least x
//   top-p  of those, the smallest x with W(> x) < p * W, W being sums of w
//   min-p  max + T * log(min_p)
//
// and the floor is the largest of the three. Equal logits stay together.
//
// Mapping: a block has a row. Both sums above x are found digit by digit of the keys of
// head/order.cuh, eight bits at a time: a pass over the row adds up what the logits of each of 256
// bins weigh, and a warp looks for the bin in which the goal is.
// Traffic: top-k reads the row once for each digit of the type's keys (bf16 2, f16 3, f32 4), and
// so does top-p; where there is no top-k, once more for the largest. min-p alone reads it once. All
// but the first come from L2 as a rule. A row without filters is not read.
// Numerics: counts and sums are integers, so floors do not depend on any order. Weights are float32
// exponentials cut to 2^-37: a share of probability is exact to 2e-6.
// Garbage: rows of nobody and rows without a finite maximum have no floor; a row of several
// requests is the lowest one's.

#include <cutlass/numeric_types.h>

#include "ops.h"
#include "verification/floors.cuh"

namespace p_eagle {

cudaError_t launch_logit_floors(LogitFloorsParams const& params, LogitsType type,
                                cudaStream_t stream) {
  switch (type) {
    case LogitsType::kBFloat16:
      return launch_logit_floors_with<cutlass::bfloat16_t>(params, stream);
    case LogitsType::kHalf: return launch_logit_floors_with<cutlass::half_t>(params, stream);
    case LogitsType::kFloat: return launch_logit_floors_with<float>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
