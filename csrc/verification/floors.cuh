// The smallest logit of each row that its request's filters let through: see
// kernels/logit_floors.cu.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>
#include <cutlass/numeric_types.h>

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/launch.h"
#include "common/reduce.cuh"
#include "common/scan.cuh"
#include "head/order.cuh"
#include "ops.h"
#include "verification/layout.h"
#include "verification/logits.cuh"
#include "verification/rows.cuh"

namespace p_eagle {

inline constexpr int kFloorThreads = 512;
inline constexpr int kFloorVectors = 8;  // that a thread has under way
inline constexpr int kDigitBits = 8;     // of a key, that a pass over the row decides
inline constexpr int kBins = 1 << kDigitBits;

// How many digits of ordered_bits differ among the logits of a type.
template <class Element>
inline constexpr int kKeyDigits = sizeof(Element) == 4 ? 4 : 2;
template <>
inline constexpr int kKeyDigits<cutlass::half_t> = 3;

// A weight of at most 1 is an integer of 37 bits in two pieces, so that sums depend on no order. A
// bin of a lane has at most 2^18 / 32 = 2^13 of them, and does not overflow.
inline constexpr int kHighBits = 18;
inline constexpr int kLowBits = 19;
static_assert(kMaxFilteredVocab / kWarpSize <= 1 << (32 - kLowBits));

struct FloorStorage {
  uint32_t high[kBins][kWarpSize];  // a lane adds to its own column, without bank conflicts
  uint32_t low[kBins][kWarpSize];
  uint64_t totals[kBins];
  uint32_t warp_largest[kFloorThreads / kWarpSize];
  int request;
};

// What a request wants of its rows; nothing where its temperature is not above zero.
struct Filters {
  int top_k = 0;       // 0: all
  float top_p = 1.0f;  // 1 or more: all
  float min_p = 0.0f;  // not above 0: all
  float temperature;

  CUTLASS_DEVICE Filters(LogitFloorsParams const& params, int request)
      : temperature(params.temperature[request]) {
    if (temperature > 0.0f) {
      int const k = params.top_k ? params.top_k[request] : 0;
      top_k = 0 < k && k < params.vocab_size ? k : 0;
      top_p = params.top_p ? params.top_p[request] : 1.0f;
      min_p = params.min_p ? params.min_p[request] : 0.0f;
    }
  }

  CUTLASS_DEVICE bool has_top_p() const { return top_p < 1.0f; }

  CUTLASS_DEVICE bool has_any() const { return top_k > 0 || has_top_p() || min_p > 0.0f; }
};

// What the logits of a row weigh: all alike for top-k; for top-p those of at least a key, by their
// probability.
struct LogitWeights {
  bool are_alike = true;
  uint32_t floor_key = 0;
  float largest = 0.0f;
  float inverse_temperature = 0.0f;

  CUTLASS_DEVICE void add(FloorStorage& shared, int bin, uint32_t key, float logit) const {
    int const lane = threadIdx.x % kWarpSize;
    if (are_alike) {
      atomicAdd(&shared.low[bin][lane], 1u);
    } else if (key >= floor_key && logit > -INFINITY) {
      float const scaled = __expf((logit - largest) * inverse_temperature) * (1 << kHighBits);
      uint32_t const high = uint32_t(scaled);
      uint32_t const low = uint32_t((scaled - float(high)) * (1 << kLowBits));
      if (high > 0) {
        atomicAdd(&shared.high[bin][lane], high);
      }
      if (low > 0) {
        atomicAdd(&shared.low[bin][lane], low);
      }
    }
  }
};

// A row, for a whole block. Every pass over it reads it once.
template <class Config>
class FilteredRow {
 public:
  CUTLASS_DEVICE FilteredRow(LogitFloorsParams const& params, int row, FloorStorage& shared)
      : vectors_(reinterpret_cast<Vec const*>(static_cast<Element const*>(params.logits) +
                                              int64_t(row) * params.vocab_size)),
        num_vectors_(params.vocab_size / Config::kWidth),
        shared_(shared) {}

  CUTLASS_DEVICE float floor(Filters const& filters) {
    if (filters.top_k == 0) {
      find_largest();
    }
    LogitWeights weights;
    float largest = 0.0f;
#pragma unroll 1
    for (int filter = 0; filter < 2; ++filter) {
      bool const is_top_p = filter == 1;
      if (is_top_p) {
        largest = from_ordered_bits(largest_);
        if (!(fabsf(largest) <= FLT_MAX)) {
          return -INFINITY;
        }
        weights.are_alike = false;
        weights.largest = largest;
        weights.inverse_temperature = inverse(filters.temperature);
      }
      if (is_top_p ? filters.has_top_p() : filters.top_k > 0) {
        weights.floor_key = lowest_kept(weights, filters);
      }
    }
    float floor = weights.floor_key > 0 ? from_ordered_bits(weights.floor_key) : -INFINITY;
    if (filters.min_p > 0.0f) {
      double const share = fmin(double(filters.min_p), 1.0);
      floor = fmaxf(floor, float(double(largest) + double(filters.temperature) * log(share)));
    }
    return floor;
  }

 private:
  using Element = typename Config::Element;
  using Vec = cutlass::AlignedArray<Element, Config::kWidth>;

  template <class Use>
  CUTLASS_DEVICE void for_each_logit(Use const& use) {
#pragma unroll 1
    for (int first = threadIdx.x; first < num_vectors_; first += kFloorVectors * kFloorThreads) {
      Vec vecs[kFloorVectors];
      CUTLASS_PRAGMA_UNROLL
      for (int v = 0; v < kFloorVectors; ++v) {
        if (first + v * kFloorThreads < num_vectors_) {
          vecs[v] = vectors_[first + v * kFloorThreads];
        }
      }
      CUTLASS_PRAGMA_UNROLL
      for (int v = 0; v < kFloorVectors; ++v) {
        if (first + v * kFloorThreads < num_vectors_) {
          auto const values =
              cutlass::NumericArrayConverter<float, Element, Config::kWidth>::convert(vecs[v]);
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < Config::kWidth; ++i) {
            float const logit = clean(values[i]);
            uint32_t const key = ordered_bits(logit);
            largest_ = key > largest_ ? key : largest_;
            use(key, logit);
          }
        }
      }
    }
  }

  // Contains one __syncthreads().
  CUTLASS_DEVICE void share_largest() {
    largest_ = __reduce_max_sync(kAllLanes, largest_);
    if (threadIdx.x % kWarpSize == 0) {
      shared_.warp_largest[threadIdx.x / kWarpSize] = largest_;
    }
    __syncthreads();
    int const warp = threadIdx.x % kWarpSize % (kFloorThreads / kWarpSize);
    largest_ = __reduce_max_sync(kAllLanes, shared_.warp_largest[warp]);
  }

  CUTLASS_DEVICE void find_largest() {
    for_each_logit([](uint32_t, float) {});
    share_largest();
  }

  // The lowest key of a logit that weighs anything, above which there is less than the goal of
  // top-k or top-p. Finds it digit by digit.
  CUTLASS_DEVICE uint32_t lowest_kept(LogitWeights const& weights, Filters const& filters) {
    int const lane = threadIdx.x % kWarpSize;
    uint32_t prefix = 0;
    uint32_t known = 0;  // bits of it
    uint64_t above = 0;
    uint64_t goal = 0;
#pragma unroll 1
    for (int digit = 0; digit < kKeyDigits<Element>; ++digit) {
      int const shift = 32 - kDigitBits * (digit + 1);
      clear_bins();
      __syncthreads();
      for_each_logit([&](uint32_t key, float logit) {
        if ((key & known) == prefix) {
          weights.add(shared_, key >> shift & (kBins - 1), key, logit);
        }
      });
      __syncthreads();
      add_up_bins();
      share_largest();

      constexpr int kLaneBins = kBins / kWarpSize;
      int const top = kBins - 1 - lane * kLaneBins;  // a lane's bins go down from here
      uint64_t own = 0;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kLaneBins; ++i) {
        own += shared_.totals[top - i];
      }
      uint64_t const inclusive = uint64_t(warp_inclusive_sum(int64_t(own), lane));
      if (digit == 0) {
        uint64_t const total = __shfl_sync(kAllLanes, inclusive, kWarpSize - 1);
        goal = weights.are_alike ? filters.top_k
                                 : uint64_t(fmax(ceil(double(filters.top_p) * double(total)), 1.0));
      }
      uint64_t reached = above + inclusive - own;
      uint64_t above_found = 0;
      int found = -1;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kLaneBins; ++i) {
        uint64_t const weight = shared_.totals[top - i];
        if (weight > 0 && reached < goal) {
          found = top - i;
          above_found = reached;
        }
        reached += weight;
      }
      int const owner = kWarpSize - 1 - __clz(__ballot_sync(kAllLanes, found >= 0));
      prefix |= uint32_t(__shfl_sync(kAllLanes, found, owner)) << shift;
      above = __shfl_sync(kAllLanes, above_found, owner);
      known |= uint32_t(kBins - 1) << shift;
    }
    // What a narrow type leaves of a float is zeros, in the keys of negative ones turned over.
    return prefix >> 31 ? prefix : prefix | ~known;
  }

  CUTLASS_DEVICE void clear_bins() {
    static_assert(offsetof(FloorStorage, low) == sizeof(FloorStorage::high));
    auto* const bins = reinterpret_cast<uint4*>(shared_.high);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < int(2 * sizeof(shared_.high) / sizeof(uint4)) / kFloorThreads; ++i) {
      bins[i * kFloorThreads + threadIdx.x] = uint4{};
    }
  }

  // Some threads to a bin, each of which starts with another column.
  CUTLASS_DEVICE void add_up_bins() {
    constexpr int kBinThreads = kFloorThreads / kBins;
    constexpr int kColumns = kWarpSize / kBinThreads;
    int const bin = threadIdx.x / kBinThreads;
    int const first = threadIdx.x % kBinThreads * kColumns;
    uint64_t high = 0;
    uint64_t low = 0;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kColumns; ++i) {
      int const column = first + (i + bin) % kColumns;
      high += shared_.high[bin][column];
      low += shared_.low[bin][column];
    }
    uint64_t total = (high << kLowBits) + low;
    CUTLASS_PRAGMA_UNROLL
    for (int offset = 1; offset < kBinThreads; offset *= 2) {
      total += __shfl_xor_sync(kAllLanes, total, offset);
    }
    if (threadIdx.x % kBinThreads == 0) {
      shared_.totals[bin] = total;
    }
  }

  Vec const* vectors_;
  int num_vectors_;
  FloorStorage& shared_;
  uint32_t largest_ = 0;
};

template <class Config>
__global__ void __launch_bounds__(kFloorThreads, 1)
    logit_floors_kernel(__grid_constant__ LogitFloorsParams const params) {
  extern __shared__ __align__(16) unsigned char smem[];
  auto& shared = *reinterpret_cast<FloorStorage*>(smem);
  int const row = blockIdx.x;

  wait_for_previous_kernel();
  let_next_kernel_start();

  int const request = lowest_request(params.num_requests, shared.request, [&](int request) {
    return params.row_start[request] <= row && row < params.row_start[request + 1];
  });
  float floor = -INFINITY;
  if (request != kNoRequest) {
    Filters const filters(params, request);
    if (filters.has_any()) {
      floor = FilteredRow<Config>(params, row, shared).floor(filters);
    }
  }
  if (threadIdx.x == 0) {
    params.floors[row] = floor;
  }
}

template <class Element>
cudaError_t launch_logit_floors_with(LogitFloorsParams const& params, cudaStream_t stream) {
  LaunchPlan const plan{.grid = dim3(params.num_rows),
                        .block = dim3(kFloorThreads),
                        .smem_bytes = sizeof(FloorStorage),
                        .stream = stream};
  return has_wide_rows<Element>(params.logits, params.vocab_size)
             ? launch(&logit_floors_kernel<LogitsConfig<Element, true>>, plan, params)
             : launch(&logit_floors_kernel<LogitsConfig<Element, false>>, plan, params);
}

}  // namespace p_eagle
