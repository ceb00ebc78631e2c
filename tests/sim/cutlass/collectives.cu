// CUTLASS 3.x GEMMs from its collective builder, D = A @ B^T with A [M, K], B [N, K], D [M, N] bfloat16:
// TMA loads into swizzled shared memory, mbarrier pipeline between specialised warps, wgmma, clusters
// with multicast, TMA-store epilogue. Production code that is known to be right, so the emulator must
// run them without a report. One file, and of the mainloops those that are used: the headers take a minute.

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder_decl.hpp>
#include <cutlass/gemm/collective/collective_mma_decl.hpp>
#include <cutlass/gemm/collective/sm90_mma_tma_gmma_ss_warpspecialized.hpp>
#include <cutlass/gemm/collective/sm90_mma_tma_gmma_ss_warpspecialized_fp8.hpp>
#include <cutlass/gemm/collective/builders/sm90_gmma_builder.inl>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

template <class Element, class MainloopSchedule, class EpilogueSchedule, class Tile>
int run_collective_gemm(int M, int N, int K, void const* a, void const* b, void* d) {
  using Output = cutlass::bfloat16_t;
  using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;
  constexpr int kAlignment = 16 / int(sizeof(Element));
  constexpr int kOutputAlignment = 16 / int(sizeof(Output));

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Output, RowMajor,
      kOutputAlignment, Output, RowMajor, kOutputAlignment, EpilogueSchedule>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, RowMajor, kAlignment, Element,
      ColumnMajor, kAlignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<int(
          sizeof(typename Epilogue::SharedStorage))>,
      MainloopSchedule>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  auto const stride_a = cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, {M, K, 1});
  auto const stride_b = cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, {N, K, 1});
  auto const stride_d = cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, {M, N, 1});
  cutlass::KernelHardwareInfo const hardware{.device_id = 0, .sm_count = 4};
  typename Gemm::Arguments const arguments{
      cutlass::gemm::GemmUniversalMode::kGemm,
      {M, N, K, 1},
      {static_cast<Element const*>(a), stride_a, static_cast<Element const*>(b), stride_b},
      {{1.0f, 0.0f}, nullptr, stride_d, static_cast<Output*>(d), stride_d},
      hardware};
  Gemm gemm;
  if (Gemm::get_workspace_size(arguments) != 0 ||
      gemm.can_implement(arguments) != cutlass::Status::kSuccess ||
      gemm.initialize(arguments) != cutlass::Status::kSuccess) {
    return 1;
  }
  return gemm.run() == cutlass::Status::kSuccess ? 0 : 2;
}

#define LAUNCHER extern "C" __attribute__((visibility("default"))) int

// Two consumer warpgroups take turns at the tensor cores.
LAUNCHER run_pingpong_bf16(int M, int N, int K, void const* a, void const* b, void* d) {
  return run_collective_gemm<cutlass::bfloat16_t, cutlass::gemm::KernelTmaWarpSpecializedPingpong,
                             cutlass::epilogue::TmaWarpSpecialized,
                             cute::Shape<cute::_64, cute::_64, cute::_64>>(M, N, K, a, b, d);
}

// Two consumer warpgroups share a tile of FP8.
LAUNCHER run_cooperative_e4m3(int M, int N, int K, void const* a, void const* b, void* d) {
  return run_collective_gemm<cutlass::float_e4m3_t,
                             cutlass::gemm::KernelTmaWarpSpecializedCooperative,
                             cutlass::epilogue::TmaWarpSpecializedCooperative,
                             cute::Shape<cute::_128, cute::_64, cute::_128>>(M, N, K, a, b, d);
}
