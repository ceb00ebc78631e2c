// Lets Python call the project's launch function without torch.

#include "kernels/embed_norm_concat.cu"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_embed_norm_concat_from_c(p_eagle::EmbedNormConcatParams const& params,
                                                int dtype) {
  return p_eagle::launch_embed_norm_concat(params, p_eagle::DType(dtype), nullptr);
}
