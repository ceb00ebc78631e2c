// The rows that a linear layer multiplies, on their way to the tensor cores: each thread loads a few
// 16-byte vectors of a block of 64 columns ahead of time, norms them while it stores them to shared
// memory, and every warp multiplies them from there. So the norm costs no pass over memory and no
// launch, and is rounded as the norm by itself would be.
#pragma once

#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>
#include <cutlass/numeric_types.h>

#include <cstdint>

#include "common/reduce.cuh"
#include "linear/quantize.cuh"
#include "linear/weights.cuh"
#include "ops.h"

namespace p_eagle {

// In the place of a row's number.
inline constexpr int kNoRow = -1;
inline constexpr int kMaskRow = -2;  // the row exists, and nothing is multiplied for it

// What is known of the rows of a token tile once the previous kernel has ended.
template <int kTokens>
struct TileRows {
  static constexpr int kParts = 4;  // of a sum of squares; not more where tokens are fewer, or bits
                                    // would depend on that

  int source_row[kTokens];  // or kNoRow or kMaskRow, which are negative
  float rstd[kMaxTaps][kTokens];
  float partial[kParts][kTokens];

  // Fills source_row. The caller synchronises.
  CUTLASS_DEVICE void find_rows(LinearInput const& input, int first_row) {
    int const token = threadIdx.x;
    if (token < kTokens) {
      int const row = first_row + token;
      int source = kNoRow;
      if (row < *input.num_rows) {
        source = input.source_row ? input.source_row[row] : row;
        source = source < 0 ? kMaskRow : input.is_in_place ? row : source;
      }
      source_row[token] = source;
    }
  }

  // Fills rstd from sums of squares that the kernel before has left. Contains a __syncthreads().
  CUTLASS_DEVICE void norms_from_sums(LinearInput const& input, int columns) {
    int const groups = (columns + kStatisticColumns - 1) / kStatisticColumns;
    for (int i = threadIdx.x; i < kParts * kTokens; i += blockDim.x) {
      int const token = i % kTokens;
      int const part = i / kTokens;
      int const source = source_row[token];
      float sum = 0.0f;
      if (source >= 0) {
        for (int group = part; group < groups; group += kParts) {
          sum += input.sum_squares[int64_t(group) * input.max_rows + source];
        }
      }
      partial[part][token] = sum;
    }
    __syncthreads();
    int const token = threadIdx.x;
    if (token < kTokens) {
      float const sum =
          (partial[0][token] + partial[1][token]) + (partial[2][token] + partial[3][token]);
      rstd[0][token] = rsqrtf(sum / float(columns) + input.eps);
    }
  }

  // Fills rstd from the rows themselves, a warp for each row.
  template <class Element, int kThreads>
  CUTLASS_DEVICE void norms_from_rows(LinearInput const& input, int columns) {
    int const groups = input.norms_each_tap ? input.num_taps : 1;
    int const width = columns / groups;
    for (int i = threadIdx.x / kWarpSize; i < groups * kTokens; i += kThreads / kWarpSize) {
      int const group = i / kTokens;
      int const source = source_row[i % kTokens];
      float sum = 0.0f;
      if (source >= 0) {
#pragma unroll 1
        for (int column = threadIdx.x % kWarpSize * kVecElems; column < width;
             column += kWarpSize * kVecElems) {
          auto const values = load_values<Element>(input, source, group * width + column);
          CUTLASS_PRAGMA_UNROLL
          for (int j = 0; j < kVecElems; ++j) {
            sum += values[j] * values[j];
          }
        }
      }
      sum = warp_sum(sum);
      if (threadIdx.x % kWarpSize == 0) {
        rstd[group][i % kTokens] = rsqrtf(sum / float(width) + input.eps);
      }
    }
  }

 private:
  template <class Element>
  CUTLASS_DEVICE static cutlass::Array<float, kVecElems> load_values(LinearInput const& input,
                                                                     int source, int column) {
    using Vec = cutlass::AlignedArray<Element, kVecElems>;
    auto const* tap = static_cast<Element const*>(input.taps[column / input.tap_width]);
    int64_t const offset = int64_t(source) * input.tap_width + column % input.tap_width;
    return cutlass::NumericArrayConverter<float, Element, kVecElems>::convert(
        *reinterpret_cast<Vec const*>(tap + offset));
  }
};

// A block of 64 columns of the rows, in shared memory.
template <int kTokens>
struct RowBlock {
  Vec16 vecs[kTokens * kBlockVecs];

  // The fragments of MMA steps 2 * half and 2 * half + 1, for the eight rows from `first_token` on.
  CUTLASS_DEVICE Vec16 fragments(int first_token, int half, int lane) const {
    return vecs[swizzled_vec(first_token + lane / 4, 2 * (lane % 4) + half)];
  }
};

// A thread's share of the blocks of kTokens rows, which are all of a tile's or the ones from
// `first_token` on: vector threadIdx.x % 8 of some tokens. To quantise them it also reads the other
// block that has the same scale.
template <class Element, int kTokens, int kThreads, int kTileTokens = kTokens,
          bool kMayQuantize = false>
class RowLoader {
 public:
  using Elements = cutlass::Array<Element, kVecElems>;
  using Vec = cutlass::AlignedArray<Element, kVecElems>;
  using Values = cutlass::Array<float, kVecElems>;
  using ToFloat = cutlass::NumericArrayConverter<float, Element, kVecElems>;
  using ToElement = cutlass::NumericArrayConverter<Element, float, kVecElems>;

  static constexpr int kVecs = kTokens * kBlockVecs;
  static constexpr int kThreadVecs = (kVecs + kThreads - 1) / kThreads;

  CUTLASS_DEVICE RowLoader(LinearInput const& input, TileRows<kTileTokens> const& rows,
                           int first_token = 0)
      : input_(input), rows_(rows), first_token_(first_token) {}

  // Starts to read the block at `column`.
  CUTLASS_DEVICE void load(int column) {
    load_block(block_, column);
    if constexpr (kMayQuantize) {
      if (input_.is_e4m3) {
        load_block(other_, column ^ kBlockColumns);
      }
    }
  }

  // Norms and rounds what load() has read, and stores it.
  CUTLASS_DEVICE void store(RowBlock<kTileTokens>& block) {
    Values scale;
    if (input_.norm_weight) {
      scale = ToFloat::convert(block_.norm_weight);
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kThreadVecs; ++i) {
      if (!has_token(i)) {  // then no lane of the warp has
        continue;
      }
      Vec vec = block_.vecs[i];
      if (kMayQuantize && input_.is_e4m3) {
        static_cast<Elements&>(vec) = ToElement::convert(quantized(i));
      } else if (input_.norm_weight) {
        Values values = ToFloat::convert(vec);
        float const rstd = rows_.rstd[block_.norm_group][token(i)];
        CUTLASS_PRAGMA_UNROLL
        for (int j = 0; j < kVecElems; ++j) {
          values[j] *= rstd * scale[j];
        }
        static_cast<Elements&>(vec) = ToElement::convert(values);
      }
      auto& place = block.vecs[swizzled_vec(token(i), threadIdx.x % kBlockVecs)];
      place = reinterpret_cast<Vec16 const&>(vec);
    }
  }

 private:
  struct Block {
    Vec vecs[kThreadVecs];
    Vec norm_weight;
    int norm_group = 0;
  };

  // Zeros where there is no such column.
  CUTLASS_DEVICE void load_block(Block& block, int column) const {
    // Only the second block of a scale may be past the end; where none is read, checking would spill.
    bool const exists = !kMayQuantize || column < input_.num_taps * input_.tap_width;
    int const tap = exists ? column / input_.tap_width : 0;
    auto const* base = static_cast<Element const*>(input_.taps[tap]);
    int const offset = column % input_.tap_width + threadIdx.x % kBlockVecs * kVecElems;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kThreadVecs; ++i) {
      block.vecs[i].clear();
      int const source = source_row(i);
      if (exists && source >= 0) {
        block.vecs[i] =
            *reinterpret_cast<Vec const*>(base + int64_t(source) * input_.tap_width + offset);
      }
    }
    block.norm_group = input_.norms_each_tap ? tap : 0;
    if (input_.norm_weight && exists) {
      auto const* weight = static_cast<Element const*>(input_.norm_weight);
      block.norm_weight =
          *reinterpret_cast<Vec const*>(weight + column + threadIdx.x % kBlockVecs * kVecElems);
    }
  }

  // The i-th vector as it is after rounding to e4m3, times its scale.
  CUTLASS_DEVICE Values quantized(int i) const {
    Values const others = weighted(other_, i);
    Values values = weighted(block_, i);
    float const rstd = this->rstd(block_, i);
    float const largest =
        fmaxf(rstd * largest_of(values), this->rstd(other_, i) * largest_of(others));
    RowScale const scale = RowScale::of(max_of_row_lanes(largest));
    float const factor = rstd * scale.inverse;
    CUTLASS_PRAGMA_UNROLL
    for (int j = 0; j < kVecElems; ++j) {
      values[j] = round_to_e4m3(__fmul_rn(values[j], factor)) * scale.scale;
    }
    return values;
  }

  // The i-th vector times the norm's weights, if there is a norm.
  CUTLASS_DEVICE Values weighted(Block const& block, int i) const {
    Values values = ToFloat::convert(block.vecs[i]);
    if (input_.norm_weight) {
      auto const scale = ToFloat::convert(block.norm_weight);
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < kVecElems; ++j) {
        values[j] *= scale[j];
      }
    }
    return values;
  }

  CUTLASS_DEVICE float rstd(Block const& block, int i) const {
    return input_.norm_weight ? rows_.rstd[block.norm_group][token(i)] : 1.0f;
  }

  CUTLASS_DEVICE static bool has_token(int i) { return threadIdx.x + i * kThreads < kVecs; }

  CUTLASS_DEVICE int token(int i) const {
    return first_token_ + (threadIdx.x + i * kThreads) / kBlockVecs;
  }

  CUTLASS_DEVICE int source_row(int i) const {
    return has_token(i) ? rows_.source_row[token(i)] : -1;
  }

  LinearInput const& input_;
  TileRows<kTileTokens> const& rows_;
  int first_token_;
  Block block_;
  Block other_;  // only to quantise
};

}  // namespace p_eagle
