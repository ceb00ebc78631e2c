// The rows of a wide linear layer on their way to wgmma in e4m3. They come to shared memory in 16
// bits, asynchronously, to a queue of each thread; the thread takes them from there, norms and
// quantises them, and stores them as wgmma wants them, with their scales. Every CTA does that for
// itself: it costs no pass over memory and no launch.
#pragma once

#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>

#include <cstdint>
#include <cute/arch/copy_sm80.hpp>

#include "linear/quantize.cuh"
#include "linear/rows.cuh"
#include "ops.h"

namespace p_eagle {

// What waits to be quantised, in each place two vectors for each thread, 64 columns apart; and the
// scales of what has been quantised.
template <int kPlaces_, int kThreads, int kScales>
struct RowQueue {
  static constexpr int kPlaces = kPlaces_;

  Vec16 vecs[kPlaces][2][kThreads];
  float scales[kScales];
};

// Where nothing is quantised.
template <int kThreads, int kScales>
struct RowQueue<0, kThreads, kScales> {};

// A thread's share of the blocks: of some tokens, one of the eight vectors of either 64 columns.
template <class Element, int kTokens, int kThreads, class Queue>
class RowQuantizer {
 public:
  using Vec = cutlass::AlignedArray<Element, kVecElems>;
  using Values = cutlass::Array<float, kVecElems>;
  using ToFloat = cutlass::NumericArrayConverter<float, Element, kVecElems>;
  using ToE4M3 = cutlass::NumericArrayConverter<cutlass::float_e4m3_t, float, kVecElems>;
  using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;

  static constexpr int kPlaces = Queue::kPlaces;
  static constexpr int kStepTokens = kThreads / kBlockVecs;

  // For `num_blocks` blocks of rows, the first one at `column`, the one after the last of a row at
  // column 0 again. Starts to copy.
  CUTLASS_DEVICE RowQuantizer(LinearInput const& input, TileRows<kTokens> const& rows, Queue& queue,
                              int num_tokens, int column, int num_blocks)
      : input_(input),
        rows_(rows),
        queue_(queue),
        num_steps_((num_tokens + kStepTokens - 1) / kStepTokens),
        column_(column),
        copied_column_(column),
        to_copy_(num_blocks * num_steps_) {
    load_norm();
#pragma unroll 1
    for (int place = 0; place < kPlaces; ++place) {
      copy_next(place);
    }
  }

  // Fills what no step fills, once: zeros.
  CUTLASS_DEVICE void clear_rest(RowBlock<kTokens>& block, float* scales) const {
#pragma unroll 1
    for (int token = first_token() + num_steps_ * kStepTokens; token < kTokens;
         token += kStepTokens) {
      store(block, token, 0, {0, 0});
      store(block, token, 1, {0, 0});
      if (vec() == 0) {
        scales[token] = 0.0f;
      }
    }
  }

  // Quantises the next block.
  CUTLASS_DEVICE void fill(RowBlock<kTokens>& block, float* scales) {
    Values weight[2];
    int group[2];
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      int const column = column_ + half * kBlockColumns;
      group[half] = input_.norms_each_tap && column < columns() ? column / input_.tap_width : 0;
      weight[half] = ToFloat::convert(norm_weight_[half]);
    }
    column_ = next_column(column_);
    load_norm();
#pragma unroll 1
    for (int step = 0; step < num_steps_; ++step) {
      cute::cp_async_wait<kPlaces - 1>();
      quantize(block, scales, first_token() + step * kStepTokens, weight, group);
      copy_next(place_);
      place_ = place_ + 1 == kPlaces ? 0 : place_ + 1;
    }
  }

 private:
  // Not kept, for registers are few.
  CUTLASS_DEVICE static int thread() { return threadIdx.x % kThreads; }
  CUTLASS_DEVICE static int vec() { return thread() % kBlockVecs; }
  CUTLASS_DEVICE static int first_token() { return thread() / kBlockVecs; }
  CUTLASS_DEVICE int columns() const { return input_.num_taps * input_.tap_width; }

  CUTLASS_DEVICE int next_column(int column) const {
    return column + kScaleColumns < columns() ? column + kScaleColumns : 0;
  }

  // Reads the norm's weights of the block that fill() is called for next.
  CUTLASS_DEVICE void load_norm() {
    if (input_.norm_weight == nullptr) {
      return;
    }
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      int const column = column_ + half * kBlockColumns;
      norm_weight_[half].clear();
      if (column < columns()) {
        norm_weight_[half] = *reinterpret_cast<Vec const*>(
            static_cast<Element const*>(input_.norm_weight) + column + vec() * kVecElems);
      }
    }
  }

  // Starts to copy the thread's vectors of the next step to a place, if there is one; zeros for
  // rows and columns that are not there. A group for each call.
  CUTLASS_DEVICE void copy_next(int place) {
    if (to_copy_ > 0) {
      int const source = rows_.source_row[first_token() + copied_step_ * kStepTokens];
      CUTLASS_PRAGMA_UNROLL
      for (int half = 0; half < 2; ++half) {
        int const column = copied_column_ + half * kBlockColumns;
        bool const exists = column < columns();
        int const tap = exists ? column / input_.tap_width : 0;
        auto const* from = static_cast<Element const*>(input_.taps[tap]) +
                           int64_t(max(source, 0)) * input_.tap_width +
                           (exists ? column - tap * input_.tap_width : 0) + vec() * kVecElems;
        Copy::copy(*reinterpret_cast<cute::uint128_t const*>(from),
                   reinterpret_cast<cute::uint128_t&>(queue_.vecs[place][half][thread()]),
                   exists && source >= 0);
      }
      --to_copy_;
      if (++copied_step_ == num_steps_) {
        copied_step_ = 0;
        copied_column_ = next_column(copied_column_);
      }
    }
    cute::cp_async_fence();
  }

  CUTLASS_DEVICE void quantize(RowBlock<kTokens>& block, float* scales, int token,
                               Values const (&weight)[2], int const (&group)[2]) const {
    bool const has_norm = input_.norm_weight != nullptr;
    Values values[2];
    float rstd[2];
    float largest = 0.0f;
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      values[half] =
          ToFloat::convert(reinterpret_cast<Vec const&>(queue_.vecs[place_][half][thread()]));
      rstd[half] = 1.0f;
      if (has_norm) {
        rstd[half] = rows_.rstd[group[half]][token];
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kVecElems; ++i) {
          values[half][i] *= weight[half][i];
        }
      }
      largest = fmaxf(largest, rstd[half] * largest_of(values[half]));
    }
    RowScale const scale = RowScale::of(max_of_row_lanes(largest));
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      float const factor = rstd[half] * scale.inverse;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kVecElems; ++i) {
        values[half][i] *= factor;
      }
      auto const codes = ToE4M3::convert(values[half]);
      store(block, token, half, reinterpret_cast<uint2 const&>(codes));
    }
    if (vec() == 0) {
      scales[token] = scale.scale;
    }
  }

  CUTLASS_DEVICE void store(RowBlock<kTokens>& block, int token, int half, uint2 codes) const {
    auto& place = block.vecs[swizzled_vec(token, half * (kBlockVecs / 2) + vec() / 2)];
    reinterpret_cast<uint2*>(&place)[vec() % 2] = codes;
  }

  LinearInput const& input_;
  TileRows<kTokens> const& rows_;
  Queue& queue_;
  int num_steps_;
  int column_;  // of the block that is filled next
  int place_ = 0;
  int copied_column_;  // of the step that is copied next
  int copied_step_ = 0;
  int to_copy_;  // steps
  Vec norm_weight_[2];
};

}  // namespace p_eagle
