// Lets Python call the launch functions of the row kernels without torch.

#include "kernels/gate_rows.cu"
#include "kernels/norm_rows.cu"
#include "kernels/rope_cache.cu"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_norm_rows_from_c(p_eagle::NormRowsParams const& params) {
  return p_eagle::launch_norm_rows(params, p_eagle::DType::kBFloat16, nullptr);
}

SAMPLE_LAUNCHER launch_gate_rows_from_c(p_eagle::GateRowsParams const& params) {
  return p_eagle::launch_gate_rows(params, p_eagle::DType::kBFloat16, nullptr);
}

SAMPLE_LAUNCHER launch_rope_cache_from_c(p_eagle::RopeCacheParams const& params) {
  return p_eagle::launch_rope_cache(params, p_eagle::DType::kBFloat16, nullptr);
}
