// What is found of a row of the target's logits, a tile at a time.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/cutlass.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common/reduce.cuh"
#include "head/order.cuh"
#include "ops.h"
#include "verification/layout.h"
#include "verification/logits.cuh"

namespace p_eagle {

inline constexpr int kVerifyWarps = kVerifyThreads / kWarpSize;

struct TileStorage {
  uint64_t keys[kVerifyWarps];
  float sums[kVerifyWarps];
};

// A thread's part of a tile's logits.
template <class Config>
class Tile {
 public:
  CUTLASS_DEVICE void load(VerifyParams const& params, int64_t row, int tile) {
    vocab_size_ = params.vocab_size;
    tile_ = tile;
    CUTLASS_PRAGMA_UNROLL
    for (int v = 0; v < Config::kVectors; ++v) {
      load_vector<Config>(params, row, first(v), logits_[v]);
    }
  }

  // Leaves the tile's largest logit and sum of weights. For a whole block, with two barriers.
  CUTLASS_DEVICE void find(RowSoftmax const& softmax, TileFindings const& findings,
                           TileStorage& shared) const {
    int const warp = threadIdx.x / kWarpSize;
    int const lane = threadIdx.x % kWarpSize;
    uint64_t best = kNoCandidate;
    CUTLASS_PRAGMA_UNROLL
    for (int v = 0; v < Config::kVectors; ++v) {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Config::kWidth; ++i) {
        uint64_t const key = candidate_key(logits_[v][i], first(v) + i);
        best = key > best && first(v) + i < vocab_size_ ? key : best;
      }
    }
    best = warp_max(best);
    if (lane == 0) {
      shared.keys[warp] = best;
    }
    __syncthreads();
    best = warp_max(shared.keys[lane % kVerifyWarps]);
    float const largest = from_ordered_bits(uint32_t(best >> 32));
    float sum = 0.0f;
    if (softmax.is_random && fabsf(largest) <= FLT_MAX) {
      CUTLASS_PRAGMA_UNROLL
      for (int v = 0; v < Config::kVectors; ++v) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < Config::kWidth; ++i) {
          sum += softmax.weight(logits_[v][i], largest);
        }
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      shared.sums[warp] = sum;
    }
    __syncthreads();
    sum = warp_sum(lane < kVerifyWarps ? shared.sums[lane] : 0.0f);
    if (threadIdx.x == 0) {
      findings.key(tile_) = best;
      findings.sum(tile_) = sum;
    }
  }

 private:
  CUTLASS_DEVICE int first(int vector) const {
    return tile_ * kVerifyTile + (vector * kVerifyThreads + int(threadIdx.x)) * Config::kWidth;
  }

  int vocab_size_;
  int tile_;
  float logits_[Config::kVectors][Config::kWidth];
};

// All tiles of a row, for a block by itself and with the bits that a block for each of them would
// leave. Ends with a barrier, after which all threads may read what was found.
template <class Config>
CUTLASS_DEVICE void find_tiles(VerifyParams const& params, int64_t row, RowSoftmax const& softmax,
                               TileFindings const& findings, TileStorage& shared) {
  constexpr int kTiles = Config::kWidth > 1 ? 4 : 1;  // on their way together
#pragma unroll 1
  for (int first = 0; first < findings.num_tiles(); first += kTiles) {
    Tile<Config> tiles[kTiles];
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      tiles[i].load(params, row, first + i);
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      if (first + i < findings.num_tiles()) {
        tiles[i].find(softmax, findings, shared);
      }
    }
  }
  __syncthreads();
}

}  // namespace p_eagle
