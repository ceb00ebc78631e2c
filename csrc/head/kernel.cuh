// The kernel of the head: see kernels/lm_head_topk.cu.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/numeric_types.h>

#include <cstdint>

#include "common/launch.h"
#include "head/column.cuh"
#include "head/merge.cuh"
#include "head/tiles.h"
#include "linear/rows.cuh"
#include "linear/weights.cuh"
#include "ops.h"

namespace p_eagle {

template <class Element_, bool kIsE4M3_, int kTokens_>
struct HeadConfig {
  using Element = Element_;
  static constexpr bool kIsE4M3 = kIsE4M3_;
  static constexpr int kTokens = kTokens_;
  static constexpr HeadTile kTile = head_tile(kTokens, kIsE4M3 ? 1 : 2);
  static constexpr int kStages = kTile.stages;
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarpSize;

  // Warps lie side by side over the rows of a tile. Many tokens take two rows of warps: each has
  // half of the tokens and twice the weight's rows, and loads less from shared memory.
  static constexpr int kTokenWarps = kTokens <= 64 ? 1 : 2;
  static constexpr int kRowWarps = kWarps / kTokenWarps;
  static constexpr int kRowGroups =
      kHeadRows / kWarpRows / kRowWarps;                     // of a warp, of 16 rows each
  static constexpr int kOctets = kTokens / 8 / kTokenWarps;  // of a warp's tokens

  static constexpr int kChunkTokens = kTokens < 32 ? kTokens : 32;  // in shared memory at a time
  static constexpr int kWarpColumns = kChunkTokens / kWarps;

  // With 256 tokens the product takes half of the registers: no more than half of the next rows are
  // in others at a time, and one column.
  static constexpr bool kIsShortOfRegisters = kTokens > 128;
  static constexpr int kRowParts = kIsShortOfRegisters ? 2 : 1;
  static constexpr int kPartTokens = kTokens / kRowParts;
  static constexpr int kColumnsAtOnce = kIsShortOfRegisters ? 1 : kWarpColumns;

  using Weight = WeightBlock<Element, kIsE4M3, kHeadRows>;
  using Rows = RowBlock<kTokens>;

  // As in linear/kernel.cuh, for each of the warp's groups of rows.
  struct Accumulator {
    float values[kRowGroups][kOctets][4] = {};
  };
};

template <class Config>
struct HeadStorage {
  typename Config::Weight weight[Config::kStages];
  typename Config::Rows rows[2];
  HeadColumn columns[Config::kChunkTokens];
  TokenState states[Config::kTokens];
  TileRows<Config::kTokens> tile_rows;
  bool is_last;
};

template <class Config>
class HeadCta {
 public:
  using Shared = HeadStorage<Config>;
  using Accumulator = typename Config::Accumulator;

  CUTLASS_DEVICE HeadCta(LmHeadTopkParams const& params, Shared& shared)
      : params_(params), shared_(shared), first_sample_(blockIdx.y * Config::kTokens) {
    HeadPartition const partition = HeadPartition::make(params.num_candidates, gridDim.x);
    first_row_ = partition.first_row(blockIdx.x);
    end_row_ = partition.first_row(blockIdx.x + 1);
    num_tokens_ = min(Config::kTokens, params.num_samples - first_sample_);
  }

  CUTLASS_DEVICE void run() {
    int const tile_blocks = params_.weight.columns / kBlockColumns;

    // Prologue: weights are constant, so they need not wait.
    uint64_t const policy = evict_first_policy();
    int to_load = (end_row_ - first_row_ + kHeadRows - 1) / kHeadRows * tile_blocks;
    int load_row = first_row_;
    int load_column = 0;
    auto const load_weight = [&](int stage) {
      if (to_load > 0) {
        shared_.weight[stage].template load<Config::kThreads>(
            params_.weight.data, params_.weight.columns, load_column,
            [&](int row) { return weight_row(load_row + row); }, policy);
        load_column += kBlockColumns;
        if (load_column == params_.weight.columns) {
          load_column = 0;
          load_row += kHeadRows;
        }
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

    if (!find_rows()) {
      end_row_ = first_row_;  // a captured pass may find that it has no request
      to_load = 0;
    }
    find_norms();
    __syncthreads();

    load_all_rows(0, shared_.rows[0]);
    int stage = 0;
    int rows_stage = 0;
#pragma unroll 1
    for (int row = first_row_; row < end_row_; row += kHeadRows) {
      Accumulator acc;
#pragma unroll 1
      for (int block = 0; block < tile_blocks; ++block) {
        cute::cp_async_wait<Config::kStages - 2>();
        __syncthreads();  // this unit is in shared memory, and all have done with the one before

        load_weight(stage == 0 ? Config::kStages - 1 : stage - 1);
        int const next_column = block + 1 == tile_blocks ? 0 : (block + 1) * kBlockColumns;
        multiply(stage, rows_stage, next_column, acc);
        stage = stage + 1 == Config::kStages ? 0 : stage + 1;
        rows_stage ^= 1;
      }
      take_tile(row, acc);
    }
    cute::cp_async_wait<0>();  // none may be underway when the CTA's shared memory is given away
    finish();
  }

 private:
  CUTLASS_DEVICE int weight_row(int row) const {
    if (row >= end_row_) {
      return -1;
    }
    return params_.vocab_subset ? params_.vocab_subset[row] : row;
  }

  // Returns whether there are any.
  CUTLASS_DEVICE bool find_rows() {
    int const token = threadIdx.x;
    int source = -1;
    if (token < num_tokens_) {
      source = params_.input.source_row[first_sample_ + token];
    }
    if (token < Config::kTokens) {
      shared_.tile_rows.source_row[token] = source;
      shared_.states[token].clear();
    }
    return __syncthreads_or(source >= 0);
  }

  CUTLASS_DEVICE void find_norms() {
    LinearInput const& input = params_.input;
    if (input.sum_squares) {
      shared_.tile_rows.norms_from_sums(input, params_.weight.columns);
    } else {
      shared_.tile_rows.template norms_from_rows<typename Config::Element, Config::kThreads>(
          input, params_.weight.columns);
    }
  }

  // The first octet of the warp's tokens, and the first of its rows of a tile.
  CUTLASS_DEVICE static int warp_octet() {
    return threadIdx.x / kWarpSize / Config::kRowWarps * Config::kOctets;
  }
  CUTLASS_DEVICE static int warp_row() {
    return threadIdx.x / kWarpSize % Config::kRowWarps * Config::kRowGroups * kWarpRows;
  }

  using RowPart =
      RowLoader<typename Config::Element, Config::kPartTokens, Config::kThreads, Config::kTokens>;

  CUTLASS_DEVICE RowPart row_part(int part) const {
    return RowPart(params_.input, shared_.tile_rows, part * Config::kPartTokens);
  }

  CUTLASS_DEVICE void load_all_rows(int column, typename Config::Rows& block) {
    CUTLASS_PRAGMA_UNROLL
    for (int part = 0; part < Config::kRowParts; ++part) {
      RowPart rows = row_part(part);
      rows.load(column);
      rows.store(block);
    }
  }

  // Multiplies a unit, and meanwhile brings the rows of the next one to shared memory.
  CUTLASS_DEVICE void multiply(int stage, int rows_stage, int next_column, Accumulator& acc) {
    typename Config::Rows& next = shared_.rows[rows_stage ^ 1];
    if constexpr (Config::kRowParts == 1) {
      RowPart rows = row_part(0);
      rows.load(next_column);
      multiply_half(0, shared_.weight[stage], shared_.rows[rows_stage], acc);
      multiply_half(1, shared_.weight[stage], shared_.rows[rows_stage], acc);
      rows.store(next);
    } else {
      static_assert(Config::kRowParts == 2);
      CUTLASS_PRAGMA_UNROLL
      for (int half = 0; half < 2; ++half) {
        RowPart rows = row_part(half);
        rows.load(next_column);
        multiply_half(half, shared_.weight[stage], shared_.rows[rows_stage], acc);
        rows.store(next);
      }
    }
  }

  CUTLASS_DEVICE static void multiply_half(int half, typename Config::Weight const& weight,
                                           typename Config::Rows const& rows, Accumulator& acc) {
    int const lane = threadIdx.x % kWarpSize;
    uint32_t a[Config::kRowGroups][2][4];
    CUTLASS_PRAGMA_UNROLL
    for (int group = 0; group < Config::kRowGroups; ++group) {
      weight.fragments(warp_row() + group * kWarpRows, half, lane, a[group]);
    }
    CUTLASS_PRAGMA_UNROLL
    for (int octet = 0; octet < Config::kOctets; ++octet) {
      Vec16 const b = rows.fragments((warp_octet() + octet) * 8, half, lane);
      CUTLASS_PRAGMA_UNROLL
      for (int group = 0; group < Config::kRowGroups; ++group) {
        float (&values)[4] = acc.values[group][octet];
        multiply_add<typename Config::Element>(values, a[group][0], b.words[0], b.words[1]);
        multiply_add<typename Config::Element>(values, a[group][1], b.words[2], b.words[3]);
      }
    }
  }

  // Takes what is wanted of the product of the rows from `row` on.
  CUTLASS_DEVICE void take_tile(int row, Accumulator const& acc) {
    int const warp = threadIdx.x / kWarpSize;
    LaneRows const rows(params_, row, end_row_);
#pragma unroll 1
    for (int first = 0; first < num_tokens_; first += Config::kChunkTokens) {
      store_columns(first, acc);
      __syncthreads();
#pragma unroll 1
      for (int column = warp; column < Config::kChunkTokens;
           column += Config::kColumnsAtOnce * Config::kWarps) {
        int const token = first + column;
        if (token < num_tokens_) {
          take_columns<Config::kColumnsAtOnce>(params_, rows, &shared_.columns[column],
                                               &shared_.states[token], first_sample_ + token,
                                               num_tokens_ - token, Config::kWarps);
        }
      }
      __syncthreads();
    }
  }

  // The columns of the tokens from `first` on, as many as there is room for.
  CUTLASS_DEVICE void store_columns(int first, Accumulator const& acc) {
    int const lane = threadIdx.x % kWarpSize;
    CUTLASS_PRAGMA_UNROLL
    for (int octet = 0; octet < Config::kOctets; ++octet) {
      int const token = (warp_octet() + octet) * 8 - first;
      if (token >= 0 && token < Config::kChunkTokens) {
        CUTLASS_PRAGMA_UNROLL
        for (int group = 0; group < Config::kRowGroups; ++group) {
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < 4; ++i) {
            int const row = warp_row() + group * kWarpRows + i / 2 * 8 + lane / 4;
            shared_.columns[token + lane % 4 * 2 + i % 2].logits[row] = acc.values[group][octet][i];
          }
        }
      }
    }
  }

  CUTLASS_DEVICE void finish() {
    HeadFindings const findings(params_, gridDim.x);
    int const warp = threadIdx.x / kWarpSize;
    for (int token = warp; token < num_tokens_; token += Config::kWarps) {
      if (shared_.tile_rows.source_row[token] >= 0) {
        findings.store(first_sample_ + token, blockIdx.x, shared_.states[token]);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      shared_.is_last = findings.arrives_last(blockIdx.y);
    }
    __syncthreads();
    if (!shared_.is_last) {
      return;
    }
    constexpr int kRowsAtOnce = Config::kWarpColumns;
#pragma unroll 1
    for (int token = warp; token < num_tokens_; token += kRowsAtOnce * Config::kWarps) {
      merge_rows<kRowsAtOnce>(params_, findings, first_sample_ + token, Config::kWarps,
                              first_sample_ + num_tokens_);
    }
  }

  LmHeadTopkParams const& params_;
  Shared& shared_;
  int first_sample_;  // of the CTA's tile of tokens
  int num_tokens_;    // in it
  int first_row_;     // of the CTA's run
  int end_row_;
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    lm_head_topk_kernel(__grid_constant__ LmHeadTopkParams const params) {
  extern __shared__ __align__(128) char shared_bytes[];
  auto& shared = *reinterpret_cast<HeadStorage<Config>*>(shared_bytes);
  HeadCta<Config>(params, shared).run();
}

template <class Config>
cudaError_t launch_head_with(LmHeadTopkParams const& params, cudaStream_t stream) {
  int num_sms = 0;
  if (cudaError_t const status = count_sms(num_sms); status != cudaSuccess) {
    return status;
  }
  int const num_ctas = HeadPartition::make(params.num_candidates, head_grid(num_sms)).num_ctas;
  int const token_tiles = (params.num_samples + Config::kTokens - 1) / Config::kTokens;
  LaunchPlan const plan{.grid = dim3(num_ctas, token_tiles),
                        .block = dim3(Config::kThreads),
                        .smem_bytes = sizeof(HeadStorage<Config>),
                        .stream = stream};
  return launch(&lm_head_topk_kernel<Config>, plan, params);
}

}  // namespace p_eagle
