// Queries, keys and values of each row r < num_rows, stored where attention wants them:
//
//   h       = W x[r] + bias, per head of D values; x[r] normed first where there is a norm
//   q, k    = rotate(rms_norm(h) * norm where the model norms heads, else h; position of r)
//   v       = h
//   q goes to q[r], k and v to slot slots[r] of the paged caches, FP8 ones divided by their scale
//
// A tile is a head, so a norm over the head stays in the CTA, and the two values that rotate into
// each other are multiplied by the same thread. All of it is float32, rounded once when it is stored;
// FP8 saturates at the largest finite value. Linear layer by linear/kernel.cuh; traffic: the weight
// once, the rows once, the results.

#include "linear/epilogue_heads.cuh"
#include "linear/launch.cuh"
#include "ops.h"

namespace p_eagle {

cudaError_t launch_qkv_rope_cache(QkvRopeCacheParams const& params, DType dtype,
                                  cudaStream_t stream) {
  switch (params.head_dim) {
    case 64: return launch_linear<StoreHeads64>(params, dtype, stream, &launch_wide_qkv_rope_cache);
    case 128:
      return launch_linear<StoreHeads128>(params, dtype, stream, &launch_wide_qkv_rope_cache);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace p_eagle
