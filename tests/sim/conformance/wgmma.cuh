// A product of two tiles by wgmma. The layouts in shared memory, the descriptors and the fragments
// are CuTe's: where an element lies is nothing that these kernels or their tests know.
#pragma once

#include <cute/tensor.hpp>

#include "conformance.cuh"

namespace wgmma {

using cute::GMMA::Major;
using cute::GMMA::ScaleIn;

// D[rows x columns] = A[rows x kDepth] B[columns x kDepth]^T + C by `Op`, with operands in shared
// memory in layouts made of AtomA and AtomB; for an Op with A in registers, AtomA is not used.
template <class Op, class AtomA, class AtomB, int kDepth, int kWarpgroups = 1>
struct Product {
  using TiledMma = decltype(cute::make_tiled_mma(
      Op{}, cute::Layout<cute::Shape<cute::Int<kWarpgroups>, cute::_1, cute::_1>>{}));
  using A = typename TiledMma::ValTypeA;
  using B = typename TiledMma::ValTypeB;
  using D = typename TiledMma::ValTypeC;
  using Rows = decltype(cute::tile_size<0>(TiledMma{}));
  using Columns = decltype(cute::tile_size<1>(TiledMma{}));
  using Depth = cute::Int<kDepth>;
  using LayoutA = decltype(cute::tile_to_shape(AtomA{}, cute::Shape<Rows, Depth>{}));
  using LayoutB = decltype(cute::tile_to_shape(AtomB{}, cute::Shape<Columns, Depth>{}));

  struct Shared {
    alignas(1024) cute::ArrayEngine<A, cute::cosize_v<LayoutA>> a;
    alignas(1024) cute::ArrayEngine<B, cute::cosize_v<LayoutB>> b;
  };

  // A matrix in global memory, row by row.
  template <class T, class NumRows, class NumColumns>
  static __device__ auto matrix(T* elements, NumRows rows, NumColumns columns) {
    auto const layout = cute::make_layout(cute::make_shape(rows, columns), cute::LayoutRight{});
    return cute::make_tensor(cute::make_gmem_ptr(elements), layout);
  }

  template <class From, class To>
  static __device__ void copy_by_all_threads(From const& from, To&& to) {
    for (int i = int(threadIdx.x); i < int(size(from)); i += int(blockDim.x)) {
      to(i) = from(i);
    }
  }

  // What the instruction reads of A: registers, or a descriptor for every step along K.
  template <class ThreadMma, class Global, class InShared>
  static __device__ auto fragment_of_a(ThreadMma const& mma, Global const& a,
                                       InShared const& shared_a) {
    if constexpr (cute::is_same_v<typename ThreadMma::FrgTypeA, A>) {
      auto const part = mma.partition_A(a);
      auto registers = cute::make_fragment_like<A>(part);
      cute::copy(part, registers);
      return registers;
    } else {
      return mma.partition_fragment_A(shared_a);
    }
  }

  // in0: A, in1: B, in2: C, out0: D, all row by row. n[0]: whether to add C, else it is left out.
  static __device__ void run(Args const& args) {
    using namespace cute;
    extern __shared__ __align__(1024) char memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    auto const a = matrix(args.input<A>(0), Rows{}, Depth{});
    auto const b = matrix(args.input<B>(1), Columns{}, Depth{});
    auto const c = matrix(args.input<D>(2), Rows{}, Columns{});
    auto const d = matrix(args.output<D>(0), Rows{}, Columns{});
    auto const shared_a = make_tensor(make_smem_ptr(shared.a.begin()), LayoutA{});
    auto const shared_b = make_tensor(make_smem_ptr(shared.b.begin()), LayoutB{});
    copy_by_all_threads(a, shared_a);
    copy_by_all_threads(b, shared_b);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    TiledMma tiled_mma;
    auto const mma = tiled_mma.get_thread_slice(int(threadIdx.x));
    auto const fragment_a = fragment_of_a(mma, a, shared_a);
    auto const fragment_b = mma.partition_fragment_B(shared_b);
    auto accumulators = mma.partition_fragment_C(d);
    copy(mma.partition_C(c), accumulators);

    tiled_mma.accumulate_ = args.n[0] != 0 ? GMMA::ScaleOut::One : GMMA::ScaleOut::Zero;
    warpgroup_fence_operand(accumulators);
    warpgroup_arrive();
    CUTE_UNROLL
    for (int k = 0; k < size<2>(fragment_b); ++k) {
      gemm(tiled_mma, fragment_a(_, _, k), fragment_b(_, _, k), accumulators);
      tiled_mma.accumulate_ = GMMA::ScaleOut::One;
    }
    warpgroup_commit_batch();
    warpgroup_wait<0>();
    warpgroup_fence_operand(accumulators);
    copy(accumulators, mma.partition_C(d));
  }
};

}  // namespace wgmma
