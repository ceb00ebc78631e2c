// A CUTLASS GEMM of the production kind; see collective_gemm.h.
#include "collective_gemm.h"

// Two consumer warpgroups take turns at the tensor cores.
extern "C" __attribute__((visibility("default"))) int run_gemm(int M, int N, int K, void const* a,
                                                               void const* b, void* d) {
  return run_collective_gemm<cutlass::bfloat16_t, cutlass::gemm::KernelTmaWarpSpecializedPingpong,
                             cutlass::epilogue::TmaWarpSpecialized,
                             cute::Shape<cute::_64, cute::_64, cute::_64>>(M, N, K, a, b, d);
}
