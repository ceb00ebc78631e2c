// The order of candidates, best first: the larger score, of equals the lower id. A candidate's key
// is an integer in that order, all keys differ, and so the best are the same whoever finds them
// when.
#pragma once

#include <cutlass/cutlass.h>

#include <cstdint>

#include "common/reduce.cuh"

namespace p_eagle {

inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr uint64_t kNoCandidate = 0;  // below every key, also of -inf

// An integer in the order of floats, of which none is NaN. 0 and -0 are equal.
CUTLASS_DEVICE uint32_t ordered_bits(float value) {
  uint32_t const bits = __float_as_uint(value + 0.0f);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

CUTLASS_DEVICE float from_ordered_bits(uint32_t bits) {
  return __uint_as_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu));
}

CUTLASS_DEVICE uint64_t candidate_key(float score, int id) {
  return uint64_t(ordered_bits(score)) << 32 | ~uint32_t(id);
}

CUTLASS_DEVICE int candidate_id(uint64_t key) { return int(~uint32_t(key)); }

CUTLASS_DEVICE float warp_max(float value) {
  return from_ordered_bits(__reduce_max_sync(kAllLanes, ordered_bits(value)));
}

CUTLASS_DEVICE uint64_t warp_max(uint64_t key) {
  uint32_t const high = __reduce_max_sync(kAllLanes, uint32_t(key >> 32));
  uint32_t const low = uint32_t(key >> 32) == high ? uint32_t(key) : 0u;
  return uint64_t(high) << 32 | __reduce_max_sync(kAllLanes, low);
}

// Some candidates of each lane, with a value each, from which a warp takes the best, one by one.
template <class Value, int kCount>
struct LaneCandidates {
  uint64_t keys[kCount];
  Value values[kCount];

  // Takes the best of the warp's: its key, and through `value` what it has. kNoCandidate if none is
  // left, or none above `floor`.
  CUTLASS_DEVICE uint64_t take_best(Value& value, uint64_t floor = kNoCandidate) {
    uint64_t lane_best = keys[0];
    Value lane_value = values[0];
    CUTLASS_PRAGMA_UNROLL
    for (int i = 1; i < kCount; ++i) {
      if (keys[i] > lane_best) {
        lane_best = keys[i];
        lane_value = values[i];
      }
    }
    uint64_t const best = warp_max(lane_best);
    if (best <= floor) {
      return kNoCandidate;
    }
    int const owner = __ffs(__ballot_sync(kAllLanes, lane_best == best)) - 1;
    value = __shfl_sync(kAllLanes, lane_value, owner);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (keys[i] == best) {
        keys[i] = kNoCandidate;
      }
    }
    return best;
  }
};

// The best so far, the i-th of them in lane i.
struct WarpList {
  uint64_t key;
  float value;

  // Lets in those of the candidates that are among the best `top_k`, best first: at most that many,
  // and as few as can be.
  template <int kCount>
  CUTLASS_DEVICE void insert(LaneCandidates<float, kCount>& candidates, int top_k) {
    int const lane = threadIdx.x % kWarpSize;
#pragma unroll 1
    while (true) {
      uint64_t const worst = __shfl_sync(kAllLanes, key, top_k - 1);
      float candidate_value;
      uint64_t const candidate = candidates.take_best(candidate_value, worst);
      if (candidate == kNoCandidate) {
        return;
      }
      int const place = __popc(__ballot_sync(kAllLanes, key > candidate));
      uint64_t const key_before = __shfl_up_sync(kAllLanes, key, 1);
      float const value_before = __shfl_up_sync(kAllLanes, value, 1);
      if (lane >= place) {
        key = lane == place ? candidate : key_before;
        value = lane == place ? candidate_value : value_before;
      }
    }
  }
};

}  // namespace p_eagle
