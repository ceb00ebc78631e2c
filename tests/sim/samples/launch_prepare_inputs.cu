// Lets Python call the project's launch function without torch.

#include "kernels/prepare_inputs.cu"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_prepare_inputs_from_c(p_eagle::PrepareInputsParams const& params) {
  return p_eagle::launch_prepare_inputs(params, nullptr);
}
