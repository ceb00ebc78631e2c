// Lets Python call the project's launch function without torch.

#include "kernels/compact_cache.cu"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_compact_cache_from_c(p_eagle::CompactCacheParams const& params) {
  return p_eagle::launch_compact_cache(params, nullptr);
}
