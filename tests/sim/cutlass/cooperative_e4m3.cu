// A CUTLASS GEMM of the production kind; see collective_gemm.h.
#include "collective_gemm.h"

// Two consumer warpgroups share a tile of FP8.
extern "C" __attribute__((visibility("default"))) int run_gemm(int M, int N, int K, void const* a,
                                                               void const* b, void* d) {
  return run_collective_gemm<cutlass::float_e4m3_t,
                             cutlass::gemm::KernelTmaWarpSpecializedCooperative,
                             cutlass::epilogue::TmaWarpSpecializedCooperative,
                             cute::Shape<cute::_128, cute::_64, cute::_128>>(M, N, K, a, b, d);
}
