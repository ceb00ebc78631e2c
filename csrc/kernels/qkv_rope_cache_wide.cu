// qkv_rope_cache.cu for more than 32 rows, on Hopper. Linear layer by hopper/kernel.cuh; traffic:
// the weight once for each 256 rows, the rows once for each 128 of the weight's, the rest as there.

#include "hopper/launch.cuh"
#include "linear/epilogue_heads.cuh"
#include "ops.h"

namespace p_eagle {

cudaError_t launch_wide_qkv_rope_cache(QkvRopeCacheParams const& params, DType dtype,
                                       cudaStream_t stream) {
  switch (params.head_dim) {
    case 64: return launch_wide<StoreHeads64>(params, dtype, stream);
    case 128: return launch_wide<StoreHeads128>(params, dtype, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace p_eagle
