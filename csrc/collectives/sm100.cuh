// The products of sm_100a: CUTLASS's mainloop of one SM, tcgen05.mma into tensor memory.
//
// One warp brings operands, one starts the tensor cores. Two products fit in tensor memory, so one
// is multiplied while the other is taken out. tcgen05.ld of 16x256b then leaves a warp what wgmma
// would: 16 rows with all columns. It reaches only the 32 rows that are the warp's by its place in
// its warpgroup; the first warpgroup takes the upper 16 of them, the second the lower.
#pragma once

// The builder needs the first two, which it does not bring.
// clang-format off
#include <cutlass/gemm/collective/collective_builder_decl.hpp>
#include <cutlass/gemm/collective/collective_mma_decl.hpp>
#include <cutlass/gemm/collective/builders/sm100_umma_builder.inl>
#include <cutlass/gemm/collective/sm100_mma_warpspecialized.hpp>
// clang-format on

#include <cute/arch/copy_sm100.hpp>
#include <cute/arch/tmem_allocator_sm100.hpp>

#include "collectives/work.cuh"

namespace p_eagle {

template <class Element, int kCluster>
class Sm100Products : public CollectiveShape<Element, kCluster> {
 public:
  using Shape = CollectiveShape<Element, kCluster>;
  using Work = CollectiveWork<kCluster>;
  using typename Shape::Slice;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm100, cutlass::arch::OpClassTensorOp, Element, typename Shape::RowStride, 8,
      Element, typename Shape::WeightStride, 8, float, typename Shape::Tile,
      typename Shape::Cluster, cutlass::gemm::collective::StageCount<CollectiveTile::kStages>,
      cutlass::gemm::KernelTmaWarpSpecialized1SmSm100>::CollectiveOp;
  using Pipeline = typename Mainloop::MainloopPipeline;
  static constexpr int kArchitecture = 100;
  static constexpr int kProducts =
      Mainloop::DispatchPolicy::Schedule::AccumulatorPipelineStageCount;
  static_assert(kProducts == 2);
  using ProductPipeline = cutlass::PipelineUmmaAsync<kProducts>;

  struct SharedStorage {
    typename Mainloop::TensorStorage operands;
    typename Mainloop::PipelineStorage pipeline;
    typename ProductPipeline::SharedStorage products;
    uint32_t tensor_memory;  // where it begins
  };

  CUTLASS_DEVICE Sm100Products(typename Mainloop::Params const& mainloop, SharedStorage& shared)
      : mainloop_(mainloop, typename Shape::Cluster{}, Shape::rank()),
        shared_(shared),
        pipeline_(shared.pipeline, pipeline_params(), typename Shape::Cluster{}),
        products_(shared.products, product_pipeline_params(), typename Shape::Cluster{}) {
    if (threadIdx.x / kWarpSize == kMultiplierWarp) {
      Allocator{}.allocate(Allocator::Sm100TmemCapacityColumns, &shared.tensor_memory);
    }
  }

  // What a warp has of a product: where it lies in tensor memory, lanes above columns.
  struct Product {
    uint32_t address;

    CUTLASS_DEVICE Slice slice(int index) const {
      using Load = cute::SM100_TMEM_LOAD_16dp256b16x;
      constexpr int kRegisters = 4 * Slice::kOctets;
      static_assert(std::extent_v<Load::DRegisters> == kRegisters);
      uint32_t const from[] = {address + index * Shape::kSliceColumns};
      uint32_t words[kRegisters];
      cute::detail::explode(cute::detail::CallCOPY<Load>{}, from, cute::make_int_sequence<1>{},
                            words, cute::make_int_sequence<kRegisters>{});
      cutlass::arch::fence_view_async_tmem_load();
      Slice slice;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kRegisters; ++i) {
        // To the compiler the wait is about nothing: it would read a register before its word comes.
        asm volatile("" : "+r"(words[i]));
        slice.values[i / 4][i % 4] = __uint_as_float(words[i]);
      }
      return slice;
    }
  };

  // The first row of a tile that a warp has.
  CUTLASS_DEVICE static int warp_row(int warp) {
    return warp % 4 * 2 * kWarpRows + warp / 4 * kWarpRows;
  }

  // For the threads that hold no product.
  template <class ProblemShape>
  CUTLASS_DEVICE void produce(Work const& work, ProblemShape const& problem) {
    int const warp = threadIdx.x / kWarpSize;
    if (warp == Shape::kProducerWarp) {
      load(work, problem);
    } else if (warp == kMultiplierWarp) {
      multiply(work);
    }
  }

  // For those that do: calls finish(tile, product) with each.
  template <class Finish>
  CUTLASS_DEVICE void consume(Work const& work, Finish const& finish) {
    typename ProductPipeline::PipelineState state;
    uint32_t const first = shared_.tensor_memory + (warp_row(threadIdx.x / kWarpSize) << 16);
    work.for_each_tile([&](int tile, int, int) {
      products_.consumer_wait(state);
      // PTX orders tensor memory across threads by a barrier and these fences only.
      asm volatile("tcgen05.fence::after_thread_sync;");
      finish(tile, Product{first + state.index() * Shape::kTokens});
      asm volatile("tcgen05.fence::before_thread_sync;");
      products_.consumer_release(state);
      ++state;
    });
  }

 private:
  using Allocator = cute::TMEM::Allocator1Sm;
  static constexpr int kMultiplierWarp = Shape::kProducerWarp + 1;

  CUTLASS_DEVICE static typename Pipeline::Params pipeline_params() {
    int const warp = threadIdx.x / kWarpSize;
    typename Pipeline::Params params;
    params.role = warp == kMultiplierWarp        ? Pipeline::ThreadCategory::Consumer
                  : warp == Shape::kProducerWarp ? Pipeline::ThreadCategory::Producer
                                                 : Pipeline::ThreadCategory::NonParticipant;
    params.is_leader = threadIdx.x == Shape::kThreads;
    params.transaction_bytes = Mainloop::TmaTransactionBytes;
    return params;
  }

  CUTLASS_DEVICE static typename ProductPipeline::Params product_pipeline_params() {
    typename ProductPipeline::Params params;
    params.role = threadIdx.x < Shape::kThreads ? ProductPipeline::ThreadCategory::Consumer
                                                : ProductPipeline::ThreadCategory::Producer;
    params.consumer_arv_count = Shape::kThreads;
    return params;
  }

  template <class ProblemShape>
  CUTLASS_DEVICE void load(Work const& work, ProblemShape const& problem) {
    auto const inputs = mainloop_.load_init(problem, shared_.operands);
    auto state = cutlass::make_producer_start_state<Pipeline>();
    work.for_each_tile([&](int tile, int first_block, int num_blocks) {
      auto const columns = cute::make_coord_iterator(first_block, inputs.k_tiles);
      mainloop_.load(pipeline_, state, inputs, work.place(tile), columns, num_blocks);
      state.advance(num_blocks);
    });
    mainloop_.load_tail(pipeline_,
                        state);  // the other CTA may still arrive at barriers of this one
  }

  CUTLASS_DEVICE void multiply(Work const& work) {
    auto memory = Mainloop::template init_tmem_tensors(typename Shape::Tile{});
    Mainloop::set_tmem_offsets(memory, shared_.tensor_memory);
    auto const inputs = mainloop_.mma_init(memory, shared_.operands);
    typename Mainloop::MainloopPipelineState state;
    auto product = cutlass::make_producer_start_state<ProductPipeline>();
    work.for_each_tile([&](int tile, int, int num_blocks) {
      state =
          mainloop_.mma(cute::make_tuple(pipeline_, products_), cute::make_tuple(state, product),
                        Mainloop::slice_accumulator(memory, product.index()), inputs,
                        work.place(tile), num_blocks);
      products_.producer_commit(product);
      ++product;
    });
    Allocator allocator;
    allocator.release_allocation_lock();
    products_.producer_tail(product);  // all have been taken out
    allocator.free(shared_.tensor_memory, Allocator::Sm100TmemCapacityColumns);
  }

  Mainloop mainloop_;
  SharedStorage& shared_;
  Pipeline pipeline_;
  ProductPipeline products_;
};

}  // namespace p_eagle
