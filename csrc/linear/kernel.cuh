// The kernel of the linear layers at decode sizes, where every pass streams all weights once and the
// rows are few: a product with the weight as the first operand, 16 of its rows for each warp, and
// the rows of the batch as the second, so that eight rows cost no more than one.
//
//   weight, in blocks of [tile rows, 64]   cp.async, a ring of stages, not to wait for
//   rows, in blocks of [tokens, 64]        registers, normed, two buffers of shared memory
//   product [tile rows, tokens]            float32 in registers, to the Epilogue when it is complete
//
// Stream-K (partition.h): CTAs take equal runs of blocks, over the ends of tiles. A tile that is cut
// is added up by the last of its CTAs to arrive, in the order of columns: nobody waits, and the sum
// does not depend on who is last.
//
// The weights of the first stages are requested before the previous kernel has ended, everything
// else after. Numerics: products accumulate in float32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/launch.h"
#include "linear/partition.h"
#include "linear/product.cuh"
#include "linear/rows.cuh"
#include "linear/tiles.h"
#include "linear/weights.cuh"
#include "ops.h"

namespace p_eagle {

template <class Element_, bool kIsE4M3_, int kTileRows_, int kTokens_>
struct LinearConfig {
  using Element = Element_;
  static constexpr bool kIsE4M3 = kIsE4M3_;
  static constexpr LinearTile kTile = linear_tile(kTileRows_, kTokens_, kIsE4M3 ? 1 : 2);
  static constexpr int kTileRows = kTile.rows;
  static constexpr int kTokens = kTile.tokens;
  static constexpr int kStages = kTile.stages;
  static constexpr int kThreads = kTile.threads();
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kTokenOctets = kTokens / 8;   // the MMA's N is 8
  static constexpr int kThreadTokens = kTokens / 4;  // of which a thread holds values

  using Weight = WeightBlock<Element, kIsE4M3, kTileRows>;
  using Rows = RowBlock<kTokens>;

  using Accumulator = p_eagle::Accumulator<kTokens>;

  // The thread among those that share an epilogue, and a barrier of those: here the CTA.
  CUTLASS_DEVICE static int thread() { return threadIdx.x; }
  CUTLASS_DEVICE static void sync() { __syncthreads(); }
};

template <class Config, class Epilogue>
struct LinearStorage {
  typename Config::Weight weight[Config::kStages];
  typename Config::Rows rows[2];
  TileRows<Config::kTokens> tile_rows;
  typename Epilogue::template SharedStorage<Config> epilogue;
  bool is_last;
};

// A unit of work: a block of the weight.
struct LinearUnit {
  int tile;
  int block;  // of the tile

  CUTLASS_DEVICE int column() const { return block * kBlockColumns; }

  CUTLASS_DEVICE void advance(int tile_blocks) {
    if (++block == tile_blocks) {
      block = 0;
      ++tile;
    }
  }
};

template <class Config, class Epilogue>
class LinearCta {
 public:
  using Params = typename Epilogue::Params;
  using Shared = LinearStorage<Config, Epilogue>;
  using Accumulator = typename Config::Accumulator;

  CUTLASS_DEVICE LinearCta(Params const& params, Shared& shared)
      : params_(params),
        shared_(shared),
        partition_(LinearPartition::make(Epilogue::num_tiles(params),
                                         params.weight.columns / kBlockColumns, gridDim.x,
                                         gridDim.y == 1)),
        first_row_(blockIdx.y * Config::kTokens) {}

  CUTLASS_DEVICE void run() {
    int const tile_blocks = partition_.tile_blocks;
    bool const has_work = int(blockIdx.x) < partition_.num_ctas;
    int const begin = has_work ? partition_.first_unit(blockIdx.x) : 0;
    int const end = has_work ? partition_.first_unit(blockIdx.x + 1) : 0;

    // Prologue: weights are constant, so they need not wait.
    uint64_t const policy = evict_first_policy();
    LinearUnit unit{begin / tile_blocks, begin % tile_blocks};
    LinearUnit ahead = unit;
    int to_load = end - begin;
    auto const load_weight = [&](int stage) {
      if (to_load > 0) {
        shared_.weight[stage].template load<Config::kThreads>(
            params_.weight.data, params_.weight.columns, ahead.column(),
            [&](int row) { return Epilogue::weight_row(params_, ahead.tile, row); }, policy);
        ahead.advance(tile_blocks);
        --to_load;
      }
      cute::cp_async_fence();  // a group for each stage, also an empty one
    };
#pragma unroll 1
    for (int stage = 0; stage < Config::kStages - 1; ++stage) {
      load_weight(stage);
    }
    wait_for_previous_kernel();
    let_next_kernel_start();

    shared_.tile_rows.find_rows(params_.input, first_row_);
    bool const has_rows = first_row_ < *params_.input.num_rows;
    __syncthreads();
    if (!has_work || !has_rows) {
      cute::cp_async_wait<0>();  // none may be underway when the CTA's shared memory is given away
      return;
    }
    find_norms();
    __syncthreads();

    RowLoader<typename Config::Element, Config::kTokens, Config::kThreads, Config::kTokens,
              Config::kIsE4M3>
        rows(params_.input, shared_.tile_rows);
    rows.load(unit.column());
    Accumulator acc;
    acc.clear();
    int stage = 0;
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      cute::cp_async_wait<Config::kStages - 2>();
      typename Config::Rows& block = shared_.rows[(i - begin) % 2];
      rows.store(block);
      __syncthreads();  // this unit is in shared memory, and all have done with the one before

      load_weight(stage == 0 ? Config::kStages - 1 : stage - 1);
      LinearUnit const current = unit;
      unit.advance(tile_blocks);
      if (i + 1 < end) {
        rows.load(unit.column());
      }
      multiply(shared_.weight[stage], block, acc);
      stage = stage + 1 == Config::kStages ? 0 : stage + 1;

      if (unit.block == 0 || i + 1 == end) {
        finish(current.tile, begin, end, acc);
        acc.clear();
      }
    }
  }

 private:
  CUTLASS_DEVICE void find_norms() {
    LinearInput const& input = params_.input;
    if (input.norm_weight == nullptr) {
      return;
    }
    if (input.sum_squares) {
      shared_.tile_rows.norms_from_sums(input, params_.weight.columns);
    } else {
      shared_.tile_rows.template norms_from_rows<typename Config::Element, Config::kThreads>(
          input, params_.weight.columns);
    }
  }

  CUTLASS_DEVICE static void multiply(typename Config::Weight const& weight,
                                      typename Config::Rows const& rows, Accumulator& acc) {
    int const warp = threadIdx.x / kWarpSize;
    int const lane = threadIdx.x % kWarpSize;
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][4];
      weight.fragments(warp * kWarpRows, half, lane, a);
      CUTLASS_PRAGMA_UNROLL
      for (int octet = 0; octet < Config::kTokenOctets; ++octet) {
        Vec16 const b = rows.fragments(octet * 8, half, lane);
        multiply_add<typename Config::Element>(acc.values[octet], a[0], b.words[0], b.words[1]);
        multiply_add<typename Config::Element>(acc.values[octet], a[1], b.words[2], b.words[3]);
      }
    }
  }

  // Ends the CTA's part of a tile, and hands the tile to the epilogue if that completes it.
  CUTLASS_DEVICE void finish(int tile, int begin, int end, Accumulator& acc) {
    if (partition_.is_cut(tile, begin, end)) {
      TileParts<Config> const parts(params_.workspace, partition_);
      bool const begins_tile = begin <= tile * partition_.tile_blocks;
      if (!parts.leave(tile, begins_tile, acc, Accumulator::kOctets, shared_.is_last)) {
        return;
      }
      acc = parts.template sum<Config::kTokens>(tile, 0);
    }
    Epilogue::template apply<Config>(params_, shared_.epilogue, shared_.tile_rows.source_row, tile,
                                     first_row_, acc);
  }

  Params const& params_;
  Shared& shared_;
  LinearPartition partition_;
  int first_row_;
};

// Two kernels share an SM where there is dependent launch, so each may have half of the registers.
// Only Hopper's compiler makes do with those: newer architectures spill, so there fewer CTAs fit.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
inline constexpr int kKernelsPerSm = 1;
#else
inline constexpr int kKernelsPerSm = 2;
#endif

template <class Config, class Epilogue>
__global__ void __launch_bounds__(Config::kThreads, kKernelsPerSm* Config::kTile.ctas_per_sm)
    linear_kernel(__grid_constant__ typename Epilogue::Params const params) {
  extern __shared__ __align__(128) char shared_bytes[];
  auto& shared = *reinterpret_cast<LinearStorage<Config, Epilogue>*>(shared_bytes);
  LinearCta<Config, Epilogue>(params, shared).run();
}

}  // namespace p_eagle
