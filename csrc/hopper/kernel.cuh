// The kernel of the linear layers at 33 rows and more, on Hopper: the product of linear/kernel.cuh
// with as many rows of the batch as make each weight come once from memory, on wgmma.
//
//   weight, in blocks of [128, 64]       TMA, a ring of stages, not to wait for
//   rows, in blocks of [tokens, 64]      cp.async, normed there, the same ring
//   product [128, tokens]                float32 in registers of two warpgroups
//
// With operands in e4m3 blocks have 128 columns, and the rows are quantised on their way
// (row_quantizer.cuh).
//
// A third warpgroup brings the operands: one of its threads asks for weights, all of them copy and
// norm rows (row_copier.cuh). Two mbarriers of each stage say that its operands are there, one that
// they have been multiplied. Stream-K as in linear/kernel.cuh, where there is one tile of tokens.
//
// The epilogue is that of linear/, 32 tokens at a time, so its code does not grow with the tile.
// The weights of the first stages are requested before the previous kernel has ended, everything
// else after. Numerics: products accumulate in float32.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include <cstdint>

#include "common/launch.h"
#include "hopper/row_copier.cuh"
#include "hopper/row_quantizer.cuh"
#include "hopper/weight_map.cuh"
#include "hopper/wgmma.cuh"
#include "linear/partition.h"
#include "linear/product.cuh"
#include "linear/tiles.h"
#include "ops.h"

namespace p_eagle {

// What the epilogue sees: the warps of as many rows of the weight as it wants together, with 32 of
// their tokens.
template <class Element_, int kTileRows_>
struct WideEpilogueConfig {
  using Element = Element_;
  static constexpr int kTileRows = kTileRows_;
  static constexpr int kTokens = 32;
  static constexpr int kThreadTokens = kTokens / 4;
  static constexpr int kWarps = kTileRows / kWarpRows;
  static constexpr int kThreads = kWarps * kWarpSize;
  using Accumulator = p_eagle::Accumulator<kTokens>;

  CUTLASS_DEVICE static int thread() { return threadIdx.x % kThreads; }
  CUTLASS_DEVICE static int group() { return threadIdx.x / kThreads; }
  CUTLASS_DEVICE static void sync() { cutlass::arch::NamedBarrier::sync(kThreads, 1 + group()); }
};

template <class Element_, bool kIsE4M3_, int kTokens_>
struct WideConfig {
  using Element = Element_;
  static constexpr bool kIsE4M3 = kIsE4M3_;
  static constexpr WideTile kTile = wide_tile(kTokens_, kIsE4M3 ? 1 : 2);
  static constexpr int kTokens = kTile.tokens;
  static constexpr int kStages = kTile.stages;
  static constexpr int kUnitColumns = kTile.block_columns();
  static_assert(!kIsE4M3 || kUnitColumns == kScaleColumns);
  static constexpr int kAhead = kStages / 2;             // blocks of rows that are underway
  static constexpr int kThreads = WideTile::kConsumers;  // that hold a product
  static constexpr int kProducers = WideTile::kProducers;
  static constexpr int kProducerWarps = kProducers / kWarpSize;

  // Where an equal share of the registers is too little for a product.
  static constexpr bool kMovesRegisters = kTokens != 128;
  static constexpr int kConsumerRegisters = kTokens == 64 ? 96 : 224;
  static constexpr int kProducerRegisters = kTokens == 64 ? 40 : 56;

  using Queue = RowQueue<kTile.queue / 2, kProducers, kStages * kTokens>;

  CUTLASS_DEVICE static void sync() { cutlass::arch::NamedBarrier::sync(kThreads, 0); }

  // The last one may be half a block.
  CUTLASS_HOST_DEVICE static int num_blocks(LinearWeight const& weight) {
    return (weight.columns + kUnitColumns - 1) / kUnitColumns;
  }
};

template <class Config, class Epilogue>
struct WideStorage {
  using EpilogueConfig = WideEpilogueConfig<typename Config::Element, Epilogue::kTileRows>;
  static constexpr int kEpilogues = WideTile::kRows / Epilogue::kTileRows;

  WideWeightBlock weight[Config::kStages];
  RowBlock<Config::kTokens> rows[Config::kStages];
  typename Config::Queue queue;
  TileRows<Config::kTokens> tile_rows;
  typename Epilogue::template SharedStorage<EpilogueConfig> epilogues[kEpilogues];
  uint64_t has_weight[Config::kStages];
  uint64_t has_rows[Config::kStages];
  uint64_t is_empty[Config::kStages];
  bool is_last;
};

// A place in the ring, and in which round through it.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  CUTLASS_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <class Config, class Epilogue>
class WideCta {
 public:
  using Params = typename Epilogue::Params;
  using Shared = WideStorage<Config, Epilogue>;
  using EpilogueConfig = typename Shared::EpilogueConfig;
  using Element = typename Config::Element;
  using Product = Accumulator<Config::kTokens>;
  using Ring = RingPosition<Config::kStages>;
  using Barrier = cutlass::arch::ClusterBarrier;
  using CopyBarrier = cutlass::arch::ClusterTransactionBarrier;

  CUTLASS_DEVICE WideCta(Params const& params, CUtensorMap const& weight_map, Shared& shared)
      : params_(params),
        weight_map_(weight_map),
        shared_(shared),
        partition_(LinearPartition::make(num_tiles(params), Config::num_blocks(params.weight),
                                         gridDim.x, gridDim.y == 1)),
        begin_(partition_.first_unit(blockIdx.x)),
        end_(partition_.first_unit(blockIdx.x + 1)),
        first_row_(blockIdx.y * Config::kTokens) {}

  // Of the CTAs; the epilogue's may be half as large.
  CUTLASS_HOST_DEVICE static int num_tiles(Params const& params) {
    return (Epilogue::num_tiles(params) + Shared::kEpilogues - 1) / Shared::kEpilogues;
  }

  CUTLASS_DEVICE void run() {
    bool const asks_for_weights = threadIdx.x == Config::kThreads;
    int const num_early = min(Config::kStages, end_ - begin_);
    if (asks_for_weights) {
      init_barriers();
      // Prologue: weights are constant, so they need not wait.
      for (int stage = 0; stage < num_early; ++stage) {
        load_weight(begin_ + stage, stage);
      }
    }
    wait_for_previous_kernel();
    let_next_kernel_start();

    int const num_rows = *params_.input.num_rows - first_row_;
    shared_.tile_rows.find_rows(params_.input, first_row_);
    __syncthreads();  // and the barriers exist
    if (num_rows <= 0) {
      if (asks_for_weights) {  // none may be underway when the CTA's shared memory is given away
        for (int stage = 0; stage < num_early; ++stage) {
          CopyBarrier::wait(&shared_.has_weight[stage], 0);
        }
      }
      return;
    }
    find_norms();
    __syncthreads();

    if (int(threadIdx.x) >= Config::kThreads) {
      if constexpr (Config::kMovesRegisters) {
        cutlass::arch::warpgroup_reg_dealloc<Config::kProducerRegisters>();
      }
      produce(threadIdx.x - Config::kThreads, min(num_rows, Config::kTokens));
    } else {
      if constexpr (Config::kMovesRegisters) {
        cutlass::arch::warpgroup_reg_alloc<Config::kConsumerRegisters>();
      }
      consume(min(num_rows, Config::kTokens));
    }
  }

 private:
  CUTLASS_DEVICE void init_barriers() {
    for (int stage = 0; stage < Config::kStages; ++stage) {
      CopyBarrier::init(&shared_.has_weight[stage], 1);
      Barrier::init(&shared_.has_rows[stage], Config::kProducerWarps);
      Barrier::init(&shared_.is_empty[stage], Config::kThreads / kWarpSize);
    }
    cutlass::arch::fence_barrier_init();
  }

  CUTLASS_DEVICE void find_norms() {
    LinearInput const& input = params_.input;
    if (input.norm_weight == nullptr) {
      return;
    }
    if (input.sum_squares) {
      shared_.tile_rows.norms_from_sums(input, params_.weight.columns);
    } else {
      shared_.tile_rows.template norms_from_rows<Element, Config::kTile.threads()>(
          input, params_.weight.columns);
    }
  }

  CUTLASS_DEVICE int column(int unit) const {
    return unit % partition_.tile_blocks * Config::kUnitColumns;
  }

  // Of the rows of a stage.
  CUTLASS_DEVICE float* scales(int stage) const {
    return shared_.queue.scales + stage * Config::kTokens;
  }

  // Weights that several tiles of tokens read are to stay in L2.
  CUTLASS_DEVICE void load_weight(int unit, int stage) {
    CopyBarrier::arrive_and_expect_tx(&shared_.has_weight[stage], WideWeightBlock::kBytes);
    shared_.weight[stage].load(weight_map_, Epilogue::weight_rows(params_),
                               unit / partition_.tile_blocks, column(unit),
                               shared_.has_weight[stage],
                               gridDim.y == 1 ? cute::TMA::CacheHintSm90::EVICT_FIRST
                                              : cute::TMA::CacheHintSm90::EVICT_NORMAL);
  }

  CUTLASS_DEVICE void produce(int thread, int num_tokens) {
    if constexpr (Config::kIsE4M3) {
      RowQuantizer<Element, Config::kTokens, Config::kProducers, typename Config::Queue> rows(
          params_.input, shared_.tile_rows, shared_.queue, num_tokens, column(begin_),
          end_ - begin_);
      for (int stage = 0; stage < Config::kStages; ++stage) {
        rows.clear_rest(shared_.rows[stage], scales(stage));
      }
      produce_units(
          thread, [](int, int) {},
          [&](int, int stage) { rows.fill(shared_.rows[stage], scales(stage)); });
    } else {
      RowCopier<Element, Config::kTokens, Config::kProducers> rows(params_.input, shared_.tile_rows,
                                                                   thread);
      rows.load_norm(column(begin_));
      produce_units(
          thread,
          [&](int unit, int stage) {
            if (unit < end_) {
              rows.copy(shared_.rows[stage], column(unit));
            }
            cute::cp_async_fence();  // a group for each unit, also an empty one
          },
          [&](int unit, int stage) {
            cute::cp_async_wait<Config::kAhead>();
            rows.norm(shared_.rows[stage], column(unit));
            rows.load_norm(column(min(unit + 1, end_ - 1)));
          });
    }
  }

  // Calls start(unit, stage) for each unit when its stage is free, and finish(unit, stage), which
  // is to leave the rows there, kAhead units later. After the last unit start() is called kAhead
  // times more.
  template <class Start, class Finish>
  CUTLASS_DEVICE void produce_units(int thread, Start const& start, Finish const& finish) {
    Ring started;
    Ring ready;
#pragma unroll 1
    for (int unit = begin_; unit < end_ + Config::kAhead; ++unit) {
      if (unit < end_) {
        // Passes in the first round.
        Barrier::wait(&shared_.is_empty[started.stage], started.parity ^ 1);
        if (thread == 0 && unit - begin_ >= Config::kStages) {
          load_weight(unit, started.stage);
        }
      }
      start(unit, started.stage);
      started.advance();
      int const started_unit = unit - Config::kAhead;
      if (started_unit >= begin_) {
        finish(started_unit, ready.stage);
        cutlass::arch::fence_view_async_shared();  // wgmma will read what this thread has written
        __syncwarp();
        if (thread % kWarpSize == 0) {
          Barrier::arrive(&shared_.has_rows[ready.stage]);
        }
        ready.advance();
      }
    }
  }

  CUTLASS_DEVICE void consume(int num_tokens) {
    int const warpgroup = threadIdx.x / cutlass::NumThreadsPerWarpGroup;
    int const first_vec = swizzled_vec(warpgroup * (WideTile::kRows / 2), 0);
    Ring ring;
    int unit = begin_;
#pragma unroll 1
    while (unit < end_) {
      int const tile = unit / partition_.tile_blocks;
      int const tile_end = min(end_, (tile + 1) * partition_.tile_blocks);
      Product acc;
      acc.clear();
#pragma unroll 1
      for (; unit < tile_end; ++unit) {
        CopyBarrier::wait(&shared_.has_weight[ring.stage], ring.parity);
        Barrier::wait(&shared_.has_rows[ring.stage], ring.parity);
        Vec16 const* const weight = shared_.weight[ring.stage].vecs + first_vec;
        Vec16 const* const rows = shared_.rows[ring.stage].vecs;
        if constexpr (Config::kIsE4M3) {
          multiply_scaled_block(acc, weight, rows, scales(ring.stage), num_tokens);
          __syncwarp();  // all lanes have read the scales
        } else {
          multiply_block<Element>(acc, weight, rows);
        }
        if (threadIdx.x % kWarpSize == 0) {
          Barrier::arrive(&shared_.is_empty[ring.stage]);
        }
        ring.advance();
      }
      finish(tile, num_tokens, acc);
    }
  }

  // Ends the CTA's part of a tile, and hands the tile to the epilogue if that completes it.
  CUTLASS_DEVICE void finish(int tile, int num_tokens, Product& acc) {
    TileParts<Config> const parts(params_.workspace, partition_);
    bool const is_cut = partition_.is_cut(tile, begin_, end_);
    bool const begins_tile = begin_ <= tile * partition_.tile_blocks;
    int const num_octets = (num_tokens + 7) / 8;
    if (is_cut && !parts.leave(tile, begins_tile, acc, num_octets, shared_.is_last)) {
      return;
    }
    int const group = EpilogueConfig::group();
    int const epilogue_tile = tile * Shared::kEpilogues + group;
    if (epilogue_tile >= Epilogue::num_tiles(params_)) {
      return;
    }
#pragma unroll 1
    for (int first = 0; first < num_tokens; first += EpilogueConfig::kTokens) {
      auto some = is_cut ? parts.template sum<EpilogueConfig::kTokens>(tile, first / 8)
                         : tokens_from(acc, first);
      Epilogue::template apply<EpilogueConfig>(params_, shared_.epilogues[group],
                                               shared_.tile_rows.source_row + first, epilogue_tile,
                                               first_row_ + first, some);
      EpilogueConfig::sync();  // the epilogue's shared memory is free again
    }
  }

  // Of a product, whose registers have no addresses, the part for the tokens from `first` on. Where
  // its values are fenced there must be a branch: selecting them one by one takes many registers.
  CUTLASS_DEVICE static typename EpilogueConfig::Accumulator tokens_from(Product const& acc,
                                                                         int first) {
    constexpr int kOctets = EpilogueConfig::Accumulator::kOctets;
    typename EpilogueConfig::Accumulator found;
    CUTLASS_PRAGMA_UNROLL
    for (int begin = 0; begin < Product::kOctets; begin += kOctets) {
      if (begin * 8 == first) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kOctets * 4; ++i) {
          float value = acc.values[begin + i / 4][i % 4];
          cute::warpgroup_fence_operand(value);
          found.values[i / 4][i % 4] = value;
        }
      }
    }
    return found;
  }

  Params const& params_;
  CUtensorMap const& weight_map_;
  Shared& shared_;
  LinearPartition partition_;
  int begin_;  // the CTA's units
  int end_;
  int first_row_;
};

// Only sm_90a has wgmma and TMA; launch_wide() asks for no other device.
template <class Config, class Epilogue>
__global__ void __launch_bounds__(Config::kTile.threads(), Config::kTile.kernels_per_sm)
    wide_kernel(__grid_constant__ typename Epilogue::Params const params,
                __grid_constant__ CUtensorMap const weight_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char wide_shared_bytes[];
  auto& shared = *reinterpret_cast<WideStorage<Config, Epilogue>*>(wide_shared_bytes);
  WideCta<Config, Epilogue>(params, weight_map, shared).run();
#endif
}

}  // namespace p_eagle
