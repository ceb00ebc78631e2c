// The products of sm_90a: CUTLASS's cooperative mainloop, wgmma of two warpgroups into registers.
#pragma once

#include <cutlass/gemm/collective/builders/sm90_gmma_builder.inl>
#include <cutlass/gemm/collective/sm90_mma_tma_gmma_ss_warpspecialized.hpp>

#include "collectives/work.cuh"

namespace p_eagle {

template <class Element, int kCluster>
class Sm90Products : public CollectiveShape<Element, kCluster> {
 public:
  using Shape = CollectiveShape<Element, kCluster>;
  using Work = CollectiveWork<kCluster>;
  using typename Shape::Slice;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, typename Shape::RowStride, 8,
      Element, typename Shape::WeightStride, 8, float, typename Shape::Tile,
      typename Shape::Cluster, cutlass::gemm::collective::StageCount<CollectiveTile::kStages>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
  using Pipeline = typename Mainloop::MainloopPipeline;
  static constexpr int kArchitecture = 90;

  struct SharedStorage {
    typename Mainloop::TensorStorage operands;
    typename Mainloop::PipelineStorage pipeline;
  };

  CUTLASS_DEVICE Sm90Products(typename Mainloop::Params const& mainloop, SharedStorage& shared)
      : mainloop_(mainloop),
        shared_(shared),
        pipeline_(shared.pipeline, pipeline_params(mainloop), typename Shape::Cluster{}) {}

  // What a warp has of a product.
  struct Product {
    Accumulator<Shape::kTokens> all;

    CUTLASS_DEVICE Slice slice(int index) const {
      Slice slice;
      CUTLASS_PRAGMA_UNROLL
      for (int octet = 0; octet < Slice::kOctets; ++octet) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 4; ++i) {
          slice.values[octet][i] = all.values[index * Slice::kOctets + octet][i];
        }
      }
      return slice;
    }
  };

  // The first row of a tile that a warp has.
  CUTLASS_DEVICE static int warp_row(int warp) { return warp * kWarpRows; }

  // For the threads that hold no product.
  template <class ProblemShape>
  CUTLASS_DEVICE void produce(Work const& work, ProblemShape const& problem) {
    if (threadIdx.x / kWarpSize != Shape::kProducerWarp) {
      return;
    }
    Mainloop mainloop;
    auto const inputs = mainloop.load_init(problem, mainloop_);
    auto state = cutlass::make_producer_start_state<Pipeline>();
    work.for_each_tile([&](int tile, int first_block, int num_blocks) {
      auto const columns =
          cute::make_coord_iterator(first_block, cute::shape<3>(cute::get<0>(inputs)));
      mainloop.load(mainloop_, pipeline_, state, inputs, work.place(tile), columns, num_blocks,
                    threadIdx.x % kWarpSize, Shape::rank(), shared_.operands);
      state.advance(num_blocks);
    });
    mainloop.load_tail(pipeline_, state);  // the other CTA may still arrive at barriers of this one
  }

  // For those that do: calls finish(tile, product) with each.
  template <class Finish>
  CUTLASS_DEVICE void consume(Work const& work, Finish const& finish) {
    Mainloop mainloop;
    typename Mainloop::PipelineState state;
    work.for_each_tile([&](int tile, int, int num_blocks) {
      Product product;
      auto accumulators =
          cute::make_tensor(&product.all.values[0][0],
                            cute::partition_shape_C(typename Mainloop::TiledMma{},
                                                    cute::take<0, 2>(typename Shape::Tile{})));
      mainloop.mma(pipeline_, state, accumulators, num_blocks, threadIdx.x, shared_.operands,
                   mainloop_);
      mainloop.mma_tail(pipeline_, state, num_blocks);
      state.advance(num_blocks);
      finish(tile, product);
    });
  }

 private:
  CUTLASS_DEVICE static typename Pipeline::Params pipeline_params(
      typename Mainloop::Params const& mainloop) {
    typename Pipeline::Params params;
    params.role = threadIdx.x < Shape::kThreads ? Pipeline::ThreadCategory::Consumer
                                                : Pipeline::ThreadCategory::Producer;
    params.is_leader = threadIdx.x == Shape::kThreads;
    params.num_consumers = Shape::kThreads;
    params.transaction_bytes = mainloop.tma_transaction_bytes;
    return params;
  }

  typename Mainloop::Params const& mainloop_;
  SharedStorage& shared_;
  Pipeline pipeline_;
};

}  // namespace p_eagle
