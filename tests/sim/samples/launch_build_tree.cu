// Lets Python call the project's launch function without torch.

#include "kernels/build_tree.cu"
#include "ops.h"
#include "ptx.cuh"

SAMPLE_LAUNCHER launch_build_tree_from_c(p_eagle::BuildTreeParams const& params) {
  return p_eagle::launch_build_tree(params, nullptr);
}
