// The target's law after a row, and a token drawn from it: the inverse of its cumulative weights, in
// tiles first and then in a tile, which is read again. All warps of a block do the same until a tile
// is known, and share that one.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "common/reduce.cuh"
#include "head/order.cuh"
#include "head/tiles.h"
#include "ops.h"
#include "verification/layout.h"
#include "verification/logits.cuh"
#include "verification/tiles.cuh"

namespace p_eagle {

// In an order that is the same for all lanes.
CUTLASS_DEVICE double warp_sum(double value) {
  CUTLASS_PRAGMA_UNROLL
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

// Over the lanes up to and including this one.
CUTLASS_DEVICE double warp_inclusive_sum(double value, int lane) {
  CUTLASS_PRAGMA_UNROLL
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    double const below = __shfl_up_sync(kAllLanes, value, offset);
    value += lane >= offset ? below : 0.0;
  }
  return value;
}

// Tokens with weights of their own, one a lane; they are left out of the tiles' weights.
struct LaneEntry {
  int token = -1;       // -1: none
  float weight = 0.0f;  // that the token has in its tile
};

// The law after a row: weights relative to the largest logit.
template <class Config>
class RowLaw {
 public:
  CUTLASS_DEVICE RowLaw(VerifyParams const& params, int request, int first_row, int node)
      : params_(params),
        row_(first_row + node),
        softmax_(params, request, row_),
        findings_(params, request, node, row_) {
    int const lane = threadIdx.x % kWarpSize;
    tiles_per_lane_ = (findings_.num_tiles() + kWarpSize - 1) / kWarpSize;
    uint64_t best = kNoCandidate;
    for (int tile = lane; tile < findings_.num_tiles(); tile += kWarpSize) {
      uint64_t const key = findings_.key(tile);
      best = key > best ? key : best;
    }
    best = warp_max(best);
    argmax_ = candidate_id(best);
    largest_ = from_ordered_bits(uint32_t(best >> 32));
    double total = 0.0;
    if (has_weights()) {
      total = warp_sum(lane_weight({}));
    }
    total_ = total;
  }

  // Largest logit, of equals the lowest id.
  CUTLASS_DEVICE int argmax() const { return argmax_; }

  // Whether chance decides; if not, the argmax is all there is.
  CUTLASS_DEVICE bool is_random() const { return has_weights() && total_ > 0.0; }

  CUTLASS_DEVICE double total() const { return total_; }

  CUTLASS_DEVICE float weight(int token) const {
    return softmax_.weight(load_logit<Config>(params_, row_, token), largest_);
  }

  // What the tokens besides the entries weigh.
  CUTLASS_DEVICE double weight_outside(LaneEntry const& entry) const {
    return warp_sum(lane_weight(entry));
  }

  struct SharedStorage {
    double warp_sums[kVerifyWarps];
    int token;
    int last_token;
  };

  // The token outside of the entries at which the cumulative weights pass `goal`; the argmax if there
  // is none. For the whole block, all of whose threads have the same arguments and a barrier behind
  // their last use of `shared`.
  CUTLASS_DEVICE int choose(double goal, LaneEntry const& entry, SharedStorage& shared) const {
    int const lane = threadIdx.x % kWarpSize;
    double const of_lane = lane_weight(entry);
    double const inclusive = warp_inclusive_sum(of_lane, lane);
    // A lane's sum may exceed that of the lane before by rounding alone.
    unsigned const passed = __ballot_sync(kAllLanes, inclusive > goal && of_lane > 0.0);
    unsigned const weighty = __ballot_sync(kAllLanes, of_lane > 0.0);
    if (weighty == 0) {
      return argmax_;
    }
    // If rounding leaves none, the last that weighs anything.
    int const owner = passed != 0 ? __ffs(passed) - 1 : kWarpSize - 1 - __clz(weighty);
    double reached = __shfl_sync(kAllLanes, inclusive - of_lane, owner);
    int chosen = -1;
#pragma unroll 1
    for (int i = 0; i < tiles_per_lane_; ++i) {
      int const tile = owner * tiles_per_lane_ + i;
      double const weight = tile_weight(tile, entry);
      if (weight > 0.0) {
        chosen = tile;
        if (reached + weight > goal) {
          break;
        }
        reached += weight;
      }
    }
    return choose_in_tile(chosen, goal - reached, entry, shared);
  }

 private:
  CUTLASS_DEVICE bool has_weights() const {
    return softmax_.is_random && fabsf(largest_) <= FLT_MAX;
  }

  // Of a tile without its entries; 0 past the last. Every lane may ask for another tile.
  CUTLASS_DEVICE double tile_weight(int tile, LaneEntry const& entry) const {
    double weight = 0.0;
    if (tile < findings_.num_tiles()) {
      float const tile_largest = from_ordered_bits(uint32_t(findings_.key(tile) >> 32));
      float const scale = tile_largest > -INFINITY
                              ? __expf((tile_largest - largest_) * softmax_.inverse_temperature)
                              : 0.0f;
      weight = double(findings_.sum(tile)) * scale;
    }
    CUTLASS_PRAGMA_UNROLL
    for (int j = 0; j < kMaxTopK; ++j) {
      int const token = __shfl_sync(kAllLanes, entry.token, j);
      float const own = __shfl_sync(kAllLanes, entry.weight, j);
      weight -= token >= 0 && token / kVerifyTile == tile ? own : 0.0f;
    }
    return fmax(weight, 0.0);
  }

  CUTLASS_DEVICE double lane_weight(LaneEntry const& entry) const {
    int const lane = threadIdx.x % kWarpSize;
    double weight = 0.0;
#pragma unroll 1
    for (int i = 0; i < tiles_per_lane_; ++i) {
      weight += tile_weight(lane * tiles_per_lane_ + i, entry);
    }
    return weight;
  }

  CUTLASS_DEVICE int choose_in_tile(int tile, double goal, LaneEntry const& entry,
                                    SharedStorage& shared) const {
    int const thread = threadIdx.x;
    int const lane = thread % kWarpSize;
    int const first = tile * kVerifyTile + thread * kThreadLogits;
    float weights[kThreadLogits];
    double own = 0.0;
    int last = -1;
    CUTLASS_PRAGMA_UNROLL
    for (int v = 0; v < Config::kVectors; ++v) {
      float logits[Config::kWidth];
      load_vector<Config>(params_, row_, first + v * Config::kWidth, logits);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Config::kWidth; ++i) {
        weights[v * Config::kWidth + i] = softmax_.weight(logits[i], largest_);
      }
    }
    CUTLASS_PRAGMA_UNROLL
    for (int j = 0; j < kMaxTopK; ++j) {
      int const place = __shfl_sync(kAllLanes, entry.token, j) - first;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kThreadLogits; ++i) {
        weights[i] = place == i ? 0.0f : weights[i];
      }
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kThreadLogits; ++i) {
      own += weights[i];
      last = weights[i] > 0.0f ? first + i : last;
    }
    double const inclusive = warp_inclusive_sum(own, lane);
    if (lane == kWarpSize - 1) {
      shared.warp_sums[thread / kWarpSize] = inclusive;
    }
    if (thread == 0) {
      shared.token = shared.last_token = -1;
    }
    __syncthreads();
    double reached = inclusive - own;
    CUTLASS_PRAGMA_UNROLL
    for (int warp = 0; warp < kVerifyWarps; ++warp) {
      reached += warp < thread / kWarpSize ? shared.warp_sums[warp] : 0.0;
    }
    if (last >= 0) {
      atomicMax(&shared.last_token, last);
    }
    if (reached <= goal && goal < reached + own) {
      int token = -1;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kThreadLogits; ++i) {
        reached += weights[i];
        token = token < 0 && weights[i] > 0.0f && reached > goal ? first + i : token;
      }
      atomicMax(&shared.token, token);
    }
    __syncthreads();
    int const token = shared.token >= 0 ? shared.token : shared.last_token;
    __syncthreads();
    return token >= 0 ? token : argmax_;
  }

  VerifyParams const& params_;
  int64_t row_;
  RowSoftmax softmax_;
  TileFindings findings_;
  int tiles_per_lane_;
  int argmax_;
  float largest_;
  double total_;
};

}  // namespace p_eagle
