// What the collectives of all architectures have alike: the tile and its operands, and which parts of
// which tiles a cluster multiplies.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/numeric_types.h>

#include <cute/tensor.hpp>

#include "common/reduce.cuh"
#include "linear/partition.h"
#include "linear/product.cuh"
#include "linear/tiles.h"
#include "ops.h"

namespace p_eagle {

// Threads of a CTA: those that hold the product, kConsumers, and then a warpgroup whose warps bring
// the operands or start the tensor cores.
template <class Element_, int kCluster>
struct CollectiveShape {
  using Element = Element_;
  // Columns of a product that are looked at together.
  static constexpr int kSliceColumns = 128;
  using Slice = Accumulator<kSliceColumns>;
  static constexpr CollectiveTile kTile = {kCluster};
  static constexpr int kRows = CollectiveTile::kRows;
  static constexpr int kTokens = CollectiveTile::kWeightRows;  // columns of a product
  static constexpr int kThreads = CollectiveTile::kConsumers;  // that hold it
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kProducerWarp = kWarps;

  using Cluster = cute::Shape<cute::Int<kCluster>, cute::_1, cute::_1>;
  using Groups = cute::Shape<cute::_8, cute::_2, cute::Int<kTokens / 16>>;
  using Tile = cute::Shape<cute::Int<kRows>, Groups, cute::Int<kBlockColumns>>;
  using RowStride = cute::Stride<int64_t, cute::_1, cute::_0>;
  using WeightStride = cute::Stride<cute::Stride<int64_t, int64_t, int64_t>, cute::_1, cute::_0>;

  CUTLASS_DEVICE static void sync() { cutlass::arch::NamedBarrier::sync(kThreads, 0); }

  CUTLASS_DEVICE static int rank() { return blockIdx.x % kCluster; }  // in the cluster
};

// A cluster's units of the partition. In shared memory: registers have no room beside a product.
template <int kCluster>
struct CollectiveWork {
  LinearPartition partition;
  int begin;
  int end;
  int num_rows;

  CUTLASS_DEVICE void find(GemmParams const& params) {
    int const cluster = blockIdx.x / kCluster;
    num_rows = *params.num_rows;
    partition = collective_partition(kCluster, num_rows, params.weight.rows, params.weight.columns,
                                     gridDim.x / kCluster);
    bool const has_work = cluster < partition.num_ctas;
    begin = has_work ? partition.first_unit(cluster) : 0;
    end = has_work ? partition.first_unit(cluster + 1) : 0;
  }

  // Calls visit(tile, first_block, num_blocks) for each tile of which the cluster has blocks.
  template <class Visit>
  CUTLASS_DEVICE void for_each_tile(Visit const& visit) const {
#pragma unroll 1
    for (int unit = begin; unit < end;) {
      int const tile = unit / partition.tile_blocks;
      int const tile_end = min(end, (tile + 1) * partition.tile_blocks);
      visit(tile, unit % partition.tile_blocks, tile_end - unit);
      unit = tile_end;
    }
  }

  // Tiles of rows come first: a run of tiles stays with the same weights, which L2 then has.
  CUTLASS_DEVICE int row_tile(int tile) const {
    return tile % collective_row_tiles(kCluster, num_rows) * kCluster + blockIdx.x % kCluster;
  }
  CUTLASS_DEVICE int weight_tile(int tile) const {
    return tile / collective_row_tiles(kCluster, num_rows);
  }

  // Of a tile's operands in CUTLASS's tensors, [rows, (8, 2, groups), columns, 1].
  CUTLASS_DEVICE auto place(int tile) const {
    return cute::make_coord(row_tile(tile), cute::make_coord(0, 0, weight_tile(tile)), cute::_, 0);
  }
};

}  // namespace p_eagle
