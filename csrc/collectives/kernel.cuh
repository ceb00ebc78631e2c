// The kernel of the linear layers at many rows, on Hopper: rows of the batch by the weight, on
// CUTLASS's collective mainloop.
//
//   rows [128, 64], weight [256, 64]     TMA, a ring of stages, one thread that asks for both
//   product [128, 256]                   wgmma, float32 in registers of two warpgroups
//
// The mainloop is CUTLASS's, TMA and wgmma in specialised warps; what is around it is ours, because
// how many rows there are is known on the device alone. The tiles of the rows that exist are dealt to
// CTAs there, stream-K by LinearPartition, and an epilogue stores those rows and no other. So one
// captured launch serves every count.
//
// A cluster of two CTAs has rows one below the other, and each brings half of the weight to both.
// The weight's rows are taken in groups of 16, the 8 and 8 of a group from where the epilogue wants
// them to meet: three dimensions of the tensor map (gemm_epilogue.cuh).
//
// Numerics: products accumulate in float32. Where tiles are cut depends on the number of rows.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cutlass/numeric_types.h>

#include <cutlass/gemm/collective/builders/sm90_gmma_builder.inl>
#include <cutlass/gemm/collective/sm90_mma_tma_gmma_ss_warpspecialized.hpp>

#include "collectives/gemm_epilogue.cuh"
#include "common/launch.h"
#include "linear/partition.h"
#include "linear/product.cuh"
#include "linear/tiles.h"
#include "ops.h"

namespace p_eagle {

template <class Element_, int kCluster>
struct CollectiveConfig {
  using Element = Element_;
  static constexpr CollectiveTile kTile = {kCluster};
  static constexpr int kRows = CollectiveTile::kRows;
  static constexpr int kTokens = CollectiveTile::kWeightRows;  // columns of a product
  static constexpr int kThreads = CollectiveTile::kConsumers;  // that hold it
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kProducerWarp = kWarps;
  static constexpr int kConsumerRegisters = 232;
  static constexpr int kProducerRegisters = 40;

  using Cluster = cute::Shape<cute::Int<kCluster>, cute::_1, cute::_1>;
  using Groups = cute::Shape<cute::_8, cute::_2, cute::Int<kTokens / 16>>;
  using Tile = cute::Shape<cute::Int<kRows>, Groups, cute::Int<kBlockColumns>>;
  using RowStride = cute::Stride<int64_t, cute::_1, cute::_0>;
  using WeightStride = cute::Stride<cute::Stride<int64_t, int64_t, int64_t>, cute::_1, cute::_0>;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, RowStride, 8, Element,
      WeightStride, 8, float, Tile, Cluster,
      cutlass::gemm::collective::StageCount<CollectiveTile::kStages>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;

  CUTLASS_DEVICE static void sync() { cutlass::arch::NamedBarrier::sync(kThreads, 0); }
};

template <class Config, class Epilogue>
struct CollectiveStorage {
  typename Config::Mainloop::TensorStorage operands;
  typename Config::Mainloop::PipelineStorage pipeline;
  typename Epilogue::SharedStorage epilogue[Config::kWarps];
  // Registers have no room for these beside a product.
  LinearPartition partition;
  int begin;  // the cluster's units
  int end;
  int num_rows;
  bool is_last;
};

template <class Config, class Epilogue>
class CollectiveCta {
 public:
  using Shared = CollectiveStorage<Config, Epilogue>;
  using Mainloop = typename Config::Mainloop;
  using Pipeline = typename Mainloop::MainloopPipeline;
  using Product = Accumulator<Config::kTokens>;
  static constexpr int kCluster = Config::kTile.cluster;

  CUTLASS_DEVICE CollectiveCta(GemmParams const& params, typename Mainloop::Params const& mainloop,
                               Shared& shared)
      : params_(params),
        mainloop_(mainloop),
        shared_(shared),
        pipeline_(shared.pipeline, pipeline_params(mainloop), typename Config::Cluster{}) {}

  CUTLASS_DEVICE void run() {
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (threadIdx.x == 0) {
      find_work();
    }
    if constexpr (kCluster > 1) {
      cute::cluster_sync();  // and the barriers exist, also those of the other CTA
    } else {
      __syncthreads();
    }
    if (threadIdx.x >= Config::kThreads) {
      cutlass::arch::warpgroup_reg_dealloc<Config::kProducerRegisters>();
      if (threadIdx.x / kWarpSize == Config::kProducerWarp) {
        produce();
      }
    } else {
      cutlass::arch::warpgroup_reg_alloc<Config::kConsumerRegisters>();
      consume();
    }
  }

 private:
  CUTLASS_DEVICE static typename Pipeline::Params pipeline_params(
      typename Mainloop::Params const& mainloop) {
    typename Pipeline::Params params;
    params.role = threadIdx.x < Config::kThreads ? Pipeline::ThreadCategory::Consumer
                                                 : Pipeline::ThreadCategory::Producer;
    params.is_leader = threadIdx.x == Config::kThreads;
    params.num_consumers = Config::kThreads;
    params.transaction_bytes = mainloop.tma_transaction_bytes;
    return params;
  }

  CUTLASS_DEVICE void find_work() {
    int const num_rows = *params_.num_rows;
    int const cluster = blockIdx.x / kCluster;
    LinearPartition const partition = collective_partition(
        kCluster, num_rows, params_.weight.rows, params_.weight.columns, gridDim.x / kCluster);
    bool const has_work = cluster < partition.num_ctas;
    shared_.partition = partition;
    shared_.begin = has_work ? partition.first_unit(cluster) : 0;
    shared_.end = has_work ? partition.first_unit(cluster + 1) : 0;
    shared_.num_rows = num_rows;
  }

  CUTLASS_DEVICE static int rank() { return blockIdx.x % kCluster; }  // in the cluster

  // Tiles of rows come first: a run of tiles stays with the same weights, which L2 then has.
  CUTLASS_DEVICE int row_tile(int tile) const {
    return tile % collective_row_tiles(kCluster, shared_.num_rows) * kCluster + rank();
  }
  CUTLASS_DEVICE int weight_tile(int tile) const {
    return tile / collective_row_tiles(kCluster, shared_.num_rows);
  }

  CUTLASS_DEVICE void produce() {
    Mainloop mainloop;
    auto const inputs = mainloop.load_init(Epilogue::problem_shape(params_), mainloop_);
    auto state = cutlass::make_producer_start_state<Pipeline>();
#pragma unroll 1
    for (int unit = shared_.begin; unit < shared_.end;) {
      int const tile = unit / shared_.partition.tile_blocks;
      int const tile_end = min(shared_.end, (tile + 1) * shared_.partition.tile_blocks);
      auto const place =
          cute::make_coord(row_tile(tile), cute::make_coord(0, 0, weight_tile(tile)), cute::_, 0);
      auto const columns = cute::make_coord_iterator(unit % shared_.partition.tile_blocks,
                                                     cute::shape<3>(cute::get<0>(inputs)));
      mainloop.load(mainloop_, pipeline_, state, inputs, place, columns, tile_end - unit,
                    threadIdx.x % kWarpSize, rank(), shared_.operands);
      state.advance(tile_end - unit);
      unit = tile_end;
    }
    mainloop.load_tail(pipeline_, state);  // the other CTA may still arrive at barriers of this one
  }

  CUTLASS_DEVICE void consume() {
    Mainloop mainloop;
    typename Mainloop::PipelineState state;
#pragma unroll 1
    for (int unit = shared_.begin; unit < shared_.end;) {
      int const tile = unit / shared_.partition.tile_blocks;
      int const tile_end = min(shared_.end, (tile + 1) * shared_.partition.tile_blocks);
      Product acc;
      auto product = cute::make_tensor(
          &acc.values[0][0], cute::partition_shape_C(typename Mainloop::TiledMma{},
                                                     cute::take<0, 2>(typename Config::Tile{})));
      mainloop.mma(pipeline_, state, product, tile_end - unit, threadIdx.x, shared_.operands,
                   mainloop_);
      mainloop.mma_tail(pipeline_, state, tile_end - unit);
      state.advance(tile_end - unit);
      finish(tile, acc);
      unit = tile_end;
    }
  }

  // Ends the CTA's part of a tile, and hands the tile to the epilogue if that completes it.
  CUTLASS_DEVICE void finish(int tile, Product& acc) {
    LinearPartition const& partition = shared_.partition;
    int const first_row = row_tile(tile) * Config::kRows;
    if (first_row >= shared_.num_rows) {  // the cluster's other CTA alone has rows
      return;
    }
    if (partition.is_cut(tile, shared_.begin, shared_.end)) {
      TileParts<Config> const parts(params_.workspace, partition, kCluster);
      bool const begins_tile = shared_.begin <= tile * partition.tile_blocks;
      if (!parts.leave(tile, begins_tile, acc, Product::kOctets, shared_.is_last)) {
        return;
      }
      acc = parts.template sum<Config::kTokens>(tile, 0);
    }
    int const warp = threadIdx.x / kWarpSize;
    Epilogue::apply(params_, shared_.epilogue[warp], first_row + warp * kWarpRows, shared_.num_rows,
                    weight_tile(tile), acc);
  }

  GemmParams const& params_;
  typename Mainloop::Params const& mainloop_;
  Shared& shared_;
  Pipeline pipeline_;
};

// Only sm_90a has wgmma and TMA; launch_collective() asks for no other device.
template <class Config, class Epilogue>
__global__ void __launch_bounds__(CollectiveTile::kThreads, 1)
    collective_kernel(__grid_constant__ GemmParams const params,
                      __grid_constant__ typename Config::Mainloop::Params const mainloop) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char collective_shared_bytes[];
  auto& shared = *reinterpret_cast<CollectiveStorage<Config, Epilogue>*>(collective_shared_bytes);
  CollectiveCta<Config, Epilogue>(params, mainloop, shared).run();
#endif
}

}  // namespace p_eagle
