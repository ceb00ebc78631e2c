// The rows of a wide linear layer on their way to wgmma: copied to shared memory asynchronously, a
// few blocks ahead, and normed where they lie by the threads that have copied them. So the norm
// costs no pass over memory and no launch, and is rounded as in linear/rows.cuh.
#pragma once

#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>

#include <cstdint>
#include <cute/arch/copy_sm80.hpp>

#include "linear/rows.cuh"
#include "ops.h"

namespace p_eagle {

// A thread's share of the blocks: one of the eight vectors of some tokens.
template <class Element, int kTokens, int kThreads>
class RowCopier {
 public:
  using Elements = cutlass::Array<Element, kVecElems>;
  using Vec = cutlass::AlignedArray<Element, kVecElems>;
  using ToFloat = cutlass::NumericArrayConverter<float, Element, kVecElems>;
  using ToElement = cutlass::NumericArrayConverter<Element, float, kVecElems>;
  using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;

  static constexpr int kStepTokens = kThreads / kBlockVecs;
  static constexpr int kThreadVecs = kTokens / kStepTokens;

  CUTLASS_DEVICE RowCopier(LinearInput const& input, TileRows<kTokens> const& rows, int thread)
      : input_(input), rows_(rows), vec_(thread % kBlockVecs), token_(thread / kBlockVecs) {}

  // Starts to copy the block at `column`; zeros for rows that are not there.
  CUTLASS_DEVICE void copy(RowBlock<kTokens>& block, int column) const {
    auto const* base = static_cast<Element const*>(input_.taps[column / input_.tap_width]) +
                       column % input_.tap_width + vec_ * kVecElems;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kThreadVecs; ++i) {
      int const source = rows_.source_row[token(i)];
      auto const* place = base + int64_t(max(source, 0)) * input_.tap_width;
      Copy::copy(*reinterpret_cast<cute::uint128_t const*>(place),
                 *reinterpret_cast<cute::uint128_t*>(vec(block, i)), source >= 0);
    }
  }

  // Reads the norm's weights of the block that norm() is called for next.
  CUTLASS_DEVICE void load_norm(int column) {
    if (input_.norm_weight) {
      norm_weight_ = *reinterpret_cast<Vec const*>(static_cast<Element const*>(input_.norm_weight) +
                                                   column + vec_ * kVecElems);
    }
  }

  // Norms the thread's vectors of the block at `column`, which it has copied.
  CUTLASS_DEVICE void norm(RowBlock<kTokens>& block, int column) const {
    if (input_.norm_weight == nullptr) {
      return;
    }
    int const group = input_.norms_each_tap ? column / input_.tap_width : 0;
    auto const scale = ToFloat::convert(norm_weight_);
#pragma unroll 4
    for (int i = 0; i < kThreadVecs; ++i) {
      float const rstd = rows_.rstd[group][token(i)];
      Vec* const place = vec(block, i);
      auto values = ToFloat::convert(*place);
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < kVecElems; ++j) {
        values[j] *= rstd * scale[j];
      }
      Vec normed;
      static_cast<Elements&>(normed) = ToElement::convert(values);
      *place = normed;
    }
  }

 private:
  CUTLASS_DEVICE int token(int i) const { return token_ + i * kStepTokens; }

  CUTLASS_DEVICE Vec* vec(RowBlock<kTokens>& block, int i) const {
    return reinterpret_cast<Vec*>(&block.vecs[swizzled_vec(token(i), vec_)]);
  }

  LinearInput const& input_;
  TileRows<kTokens> const& rows_;
  int vec_;
  int token_;  // the first one
  Vec norm_weight_;
};

}  // namespace p_eagle
