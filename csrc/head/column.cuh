// What a CTA knows of the logits that it has seen: for each token the maximum, the sum of their
// exponentials, and the best. A warp takes the logits of a token, 128 at a time, from a column in
// shared memory, four to a lane; it has the token to itself, so nothing depends on who is first.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common/reduce.cuh"
#include "head/noise.cuh"
#include "head/order.cuh"
#include "head/tiles.h"
#include "ops.h"

namespace p_eagle {

inline constexpr int kLaneRows = kHeadRows / kWarpSize;

// So that the lanes of an MMA, which have rows and tokens apart, write to banks apart.
inline constexpr int kColumnFloats = kHeadRows + 4;

struct alignas(16) HeadColumn {
  float logits[kColumnFloats];
};

// The sum of exponentials is relative to the maximum, which starts at the lowest finite number:
// -inf minus -inf would be NaN.
struct LogSum {
  float max = -FLT_MAX;
  float sum = 0.0f;

  // The maximum may be infinite, and the sum NaN then.
  CUTLASS_DEVICE float log_sum_exp() const {
    return max == INFINITY ? INFINITY : sum > 0.0f ? max + logf(sum) : -INFINITY;
  }
};

struct TokenState {
  LogSum log_sum;
  uint64_t keys[kMaxTopK];
  float logits[kMaxTopK];

  CUTLASS_DEVICE void clear() {
    log_sum = LogSum();
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kMaxTopK; ++i) {
      keys[i] = kNoCandidate;
      logits[i] = -INFINITY;
    }
  }
};

// The rows of the weight that a lane has the logits of.
struct LaneRows {
  int ids[kLaneRows];  // of the draft vocabulary; -1: no row
  float scales[kLaneRows];

  CUTLASS_DEVICE LaneRows(LmHeadTopkParams const& params, int first_row, int end) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kLaneRows; ++i) {
      int const row = first_row + threadIdx.x % kWarpSize * kLaneRows + i;
      ids[i] = row >= end ? -1 : params.vocab_subset ? params.vocab_subset[row] : row;
      scales[i] = params.weight.scale && ids[i] >= 0 ? params.weight.scale[ids[i]] : 1.0f;
    }
  }
};

// How the logits of a sampled row become scores.
struct RowNoise {
  float scale = 1.0f;  // of its logits
  bool is_random = false;

  CUTLASS_DEVICE RowNoise(LmHeadTopkParams const& params, int sample) {
    float const temperature = params.temperature ? params.temperature[sample] : 0.0f;
    if (temperature > 0.0f) {
      scale = 1.0f / temperature;
      is_random = true;
    }
  }
};

// Takes the next logits of kCount tokens of the warp, which are in columns and states `stride`
// apart; the first one's sampled row is `sample`, and those from `num_tokens` on are none. Of
// states whose row does not exist the contents do not matter. All lanes take part.
template <int kCount>
CUTLASS_DEVICE void take_columns(LmHeadTopkParams const& params, LaneRows const& rows,
                                 HeadColumn const* columns, TokenState* states, int sample,
                                 int num_tokens, int stride) {
  int const lane = threadIdx.x % kWarpSize;
  float logits[kCount][kLaneRows];
  float sums[kCount];
  LogSum log_sums[kCount];
  CUTLASS_PRAGMA_UNROLL
  for (int c = 0; c < kCount; ++c) {
    int const token = c * stride;
    RowNoise const noise(params, token < num_tokens ? sample + token : sample);
    auto const column = reinterpret_cast<float4 const*>(columns[token].logits)[lane];
    float const values[kLaneRows] = {column.x, column.y, column.z, column.w};
    float lane_max = -FLT_MAX;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kLaneRows; ++i) {
      // The maximum of NaN and a number is the number.
      float const logit = fmaxf(values[i] * rows.scales[i] * noise.scale, -INFINITY);
      logits[c][i] = rows.ids[i] >= 0 ? logit : -INFINITY;
      lane_max = fmaxf(lane_max, logits[c][i]);
    }
    log_sums[c] = states[token].log_sum;
    float const max = fmaxf(log_sums[c].max, warp_max(lane_max));
    log_sums[c].sum *= __expf(log_sums[c].max - max);
    log_sums[c].max = max;
    sums[c] = 0.0f;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kLaneRows; ++i) {
      sums[c] += __expf(logits[c][i] - max);
    }
  }
  CUTLASS_PRAGMA_UNROLL
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    CUTLASS_PRAGMA_UNROLL
    for (int c = 0; c < kCount; ++c) {  // together, so that they wait for each other's shuffles
      sums[c] += __shfl_xor_sync(kAllLanes, sums[c], offset);
    }
  }
  CUTLASS_PRAGMA_UNROLL
  for (int c = 0; c < kCount; ++c) {
    int const token = c * stride;
    if (token >= num_tokens) {
      break;
    }
    TokenState& state = states[token];
    LaneCandidates<float, kLaneRows> candidates;
    float scores[kLaneRows];
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kLaneRows; ++i) {
      scores[i] = candidates.values[i] = logits[c][i];
    }
    if (RowNoise(params, sample + token).is_random) {
      add_gumbel(scores, rows.ids, params.noise_positions[sample + token],
                 params.noise_keys[sample + token]);
    }
    bool has_candidate = false;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kLaneRows; ++i) {
      candidates.keys[i] = rows.ids[i] >= 0 ? candidate_key(scores[i], rows.ids[i]) : kNoCandidate;
      has_candidate |= candidates.keys[i] > state.keys[params.top_k - 1];
    }
    bool const has_news = __any_sync(kAllLanes, has_candidate);  // rare after the first tiles
    WarpList best{kNoCandidate, -INFINITY};
    if (has_news) {
      if (lane < params.top_k) {
        best = {state.keys[lane], state.logits[lane]};
      }
      best.insert(candidates, params.top_k);
    }
    __syncwarp();  // all have read the state
    if (has_news && lane < params.top_k) {
      state.keys[lane] = best.key;
      state.logits[lane] = best.value;
    }
    if (lane == 0) {
      state.log_sum = {log_sums[c].max, log_sums[c].sum + sums[c]};
    }
  }
}

}  // namespace p_eagle
