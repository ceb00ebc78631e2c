// Running sums over the threads of a block.
#pragma once

#include <cutlass/cutlass.h>

#include <cstdint>

#include "common/reduce.cuh"

namespace p_eagle {

// The sum of `value` over the lanes up to and including this one.
CUTLASS_DEVICE int64_t warp_inclusive_sum(int64_t value, int lane) {
  CUTLASS_PRAGMA_UNROLL
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    int64_t const below = __shfl_up_sync(0xffffffffu, value, offset);
    value += lane >= offset ? below : 0;
  }
  return value;
}

template <int kThreads>
struct BlockScan {
  static_assert(kThreads % kWarpSize == 0 && kThreads / kWarpSize <= kWarpSize);
  static constexpr int kWarps = kThreads / kWarpSize;

  struct SharedStorage {
    int64_t warp_sums[kWarps];
  };

  struct Sums {
    int64_t before;  // over the threads below this one
    int64_t total;   // over all
  };

  // Contains one __syncthreads(); another must come before the next call with the same storage.
  CUTLASS_DEVICE static Sums sum(SharedStorage& shared, int64_t value, int thread) {
    int const warp = thread / kWarpSize;
    int const lane = thread % kWarpSize;
    int64_t const inclusive = warp_inclusive_sum(value, lane);
    if (lane == kWarpSize - 1) {
      shared.warp_sums[warp] = inclusive;
    }
    __syncthreads();
    Sums sums{inclusive - value, 0};
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kWarps; ++i) {
      int64_t const warp_sum = shared.warp_sums[i];
      sums.before += i < warp ? warp_sum : 0;
      sums.total += warp_sum;
    }
    return sums;
  }
};

}  // namespace p_eagle
