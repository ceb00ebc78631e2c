// The kernel of the linear layers at many rows: rows of the batch by the weight, on CUTLASS's
// collective mainloops.
//
//   rows [128, 64], weight [256, 64]     TMA, a ring of stages, one thread that asks for both
//   product [128, 256]                   float32: sm90.cuh, sm100.cuh
//
// The mainloop is CUTLASS's, TMA and tensor cores in specialised warps; what is around it is ours,
// because how many rows there are is known on the device alone. The tiles of the rows that exist
// are dealt to CTAs there, stream-K by LinearPartition, and an epilogue stores those rows and no
// other. So one captured launch serves every count. All architectures hand a product to the same
// eight warps, 16 rows each, a slice of columns at a time; so the rest is one for all.
//
// A cluster of two CTAs has rows one below the other, and each brings half of the weight to both.
// The weight's rows are taken in groups of 16, the 8 and 8 of a group from where the epilogue wants
// them to meet: three dimensions of the tensor map (gemm_epilogue.cuh).
//
// Numerics: products accumulate in float32. Where tiles are cut depends on the number of rows.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/arch/reg_reconfig.h>

#include "collectives/gemm_epilogue.cuh"
#include "collectives/work.cuh"
#include "common/launch.h"
#include "linear/product.cuh"
#include "linear/tiles.h"
#include "ops.h"

namespace p_eagle {

template <class Products, class Epilogue>
struct CollectiveStorage {
  typename Products::SharedStorage products;
  typename Epilogue::SharedStorage epilogue[Products::kWarps];
  typename Products::Work work;
  bool is_last;
};

template <class Products, class Epilogue>
class CollectiveCta {
 public:
  using Shared = CollectiveStorage<Products, Epilogue>;
  using Mainloop = typename Products::Mainloop;
  using Product = typename Products::Product;
  using Slice = typename Products::Slice;
  static constexpr int kCluster = Products::kTile.cluster;
  static constexpr int kSlices = Products::kTokens / Products::kSliceColumns;

  CUTLASS_DEVICE CollectiveCta(GemmParams const& params, typename Mainloop::Params const& mainloop,
                               Shared& shared)
      : params_(params), shared_(shared), products_(mainloop, shared.products) {}

  CUTLASS_DEVICE void run() {
    constexpr int kConsumerRegisters = 232;
    constexpr int kProducerRegisters = 40;
    wait_for_previous_kernel();
    let_next_kernel_start();
    if (threadIdx.x == 0) {
      shared_.work.find(params_);
    }
    if constexpr (kCluster > 1) {
      cute::cluster_sync();  // and the barriers exist, also those of the other CTA
    } else {
      __syncthreads();
    }
    if (threadIdx.x >= Products::kThreads) {
      cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
      products_.produce(shared_.work, Epilogue::problem_shape(params_));
    } else {
      cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
      products_.consume(shared_.work,
                        [&](int tile, Product const& product) { finish(tile, product); });
    }
  }

 private:
  // Ends the CTA's part of a tile, and hands the tile to the epilogue if that completes it.
  CUTLASS_DEVICE void finish(int tile, Product const& product) {
    auto const& work = shared_.work;
    int const warp = threadIdx.x / kWarpSize;
    int const first_row = work.row_tile(tile) * Products::kRows;
    if (first_row >= work.num_rows) {  // the cluster's other CTA alone has rows
      return;
    }
    TileParts<Products> const parts(params_.workspace, work.partition, kCluster);
    bool const is_cut = work.partition.is_cut(tile, work.begin, work.end);
    if (is_cut) {
      bool const begins_tile = work.begin <= tile * work.partition.tile_blocks;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kSlices; ++i) {
        parts.store(begins_tile, product.slice(i), i * Slice::kOctets, kSlices * Slice::kOctets);
      }
      if (!parts.arrives_last(tile, shared_.is_last)) {
        return;
      }
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kSlices; ++i) {
      Slice const slice =
          is_cut ? parts.template sum<Products::kSliceColumns>(tile, i * Slice::kOctets)
                 : product.slice(i);
      Epilogue::apply(params_, shared_.epilogue[warp], first_row + Products::warp_row(warp),
                      work.num_rows, work.weight_tile(tile) * kSlices + i, slice);
    }
  }

  GemmParams const& params_;
  Shared& shared_;
  Products products_;
};

// That this pass of the compiler is for.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr int kCollectiveArchitecture = 90;
#elif defined(__CUDA_ARCH_FEAT_SM100_ALL)
inline constexpr int kCollectiveArchitecture = 100;
#else
inline constexpr int kCollectiveArchitecture = 0;
#endif

// Empty for other architectures than that of its products, as which launch_collective() asks for no
// other device.
template <class Products, class Epilogue>
__global__ void __launch_bounds__(CollectiveTile::kThreads, 1)
    collective_kernel(__grid_constant__ GemmParams const params,
                      __grid_constant__ typename Products::Mainloop::Params const mainloop) {
  if constexpr (Products::kArchitecture == kCollectiveArchitecture) {
    extern __shared__ __align__(1024) char collective_shared_bytes[];
    auto& shared =
        *reinterpret_cast<CollectiveStorage<Products, Epilogue>*>(collective_shared_bytes);
    CollectiveCta<Products, Epilogue>(params, mainloop, shared).run();
  }
}

}  // namespace p_eagle
