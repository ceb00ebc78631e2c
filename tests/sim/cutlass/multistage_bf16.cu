// CUTLASS 2.x GEMM, D = A @ B^T: cp.async multistage pipeline, ldmatrix, mma.sync, the path of sm_80.
#include <cutlass/gemm/device/gemm.h>

extern "C" __attribute__((visibility("default"))) int run_multistage_bf16(int M, int N, int K,
                                                                          void const* a,
                                                                          void const* b, void* d) {
  using Element = cutlass::bfloat16_t;
  using Gemm = cutlass::gemm::device::Gemm<
      Element, cutlass::layout::RowMajor, Element, cutlass::layout::ColumnMajor, Element,
      cutlass::layout::RowMajor, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
      cutlass::gemm::GemmShape<64, 64, 32>, cutlass::gemm::GemmShape<32, 32, 32>,
      cutlass::gemm::GemmShape<16, 8, 16>>;
  Gemm::Arguments const arguments(
      {M, N, K}, {static_cast<Element const*>(a), K}, {static_cast<Element const*>(b), K},
      {static_cast<Element const*>(d), N}, {static_cast<Element*>(d), N}, {1.0f, 0.0f});
  Gemm gemm;
  return gemm(arguments) == cutlass::Status::kSuccess ? 0 : 1;
}
