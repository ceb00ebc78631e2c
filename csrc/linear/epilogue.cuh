// What the epilogues of the linear layers share: which rows of the weight meet in a tile, and which
// values of the product a thread holds.
#pragma once

#include <cutlass/numeric_types.h>

#include "common/reduce.cuh"
#include "linear/rows.cuh"
#include "linear/tiles.h"
#include "ops.h"

namespace p_eagle {

// Which rows of the weight the 16 of a group are, in numbers: row (half, i) of group n of head m is
//
//   m * head_step + n * group_step + half * half_step + i * step,  half < 2, i < 8
//
// A tile has the groups one after the other, of one head after the other.
struct WeightRows {
  int step = 0;
  int half_step = 0;
  int group_step = 0;
  int num_groups = 0;  // of a head
  int head_step = 0;
  int num_heads = 1;
};

// A thread holds rows g and g + 8 of the 16 that its warp multiplies, for each of its tokens. Which
// rows of the weight those are is free: here the 2g-th and the next, so that it writes pairs.
template <int kTileRows>
struct AdjacentRows {
  CUTLASS_DEVICE static int weight_row(int num_rows, int tile, int row) {
    int const found = tile * kTileRows + row / 16 * 16 + row % 8 * 2 + row / 8 % 2;
    return found < num_rows ? found : -1;
  }

  CUTLASS_HOST_DEVICE static WeightRows weight_rows(int num_rows) {
    return {.step = 2, .half_step = 1, .group_step = 16, .num_groups = num_rows / 16};
  }

  // The first of the two rows of a thread of the tile.
  CUTLASS_DEVICE static int thread_row(int tile, int thread) {
    int const warp = thread / kWarpSize;
    int const group = thread % kWarpSize / 4;
    return tile * kTileRows + warp * kWarpRows + group * 2;
  }
};

// Here the i-th of the upper half and the i-th of the lower half of a group of rows: what has to meet
// in one thread does, and the weight stays as it is stored.
struct PairedHalves {
  // i, and in which half, of a row of the tile.
  CUTLASS_DEVICE static int index(int row) { return row / 16 * 8 + row % 8; }
  CUTLASS_DEVICE static int half(int row) { return row / 8 % 2; }

  CUTLASS_DEVICE static int thread_index(int thread) {
    return thread / kWarpSize * 8 + thread % kWarpSize / 4;
  }
};

// The i-th of the thread's tokens, of which it has a pair of every eight.
CUTLASS_DEVICE int thread_token(int i) { return i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2; }

CUTLASS_DEVICE float weight_scale(LinearWeight const& weight, int row) {
  return weight.scale ? weight.scale[row] : 1.0f;
}

// A bias or the like, which may not be there.
template <class Element>
CUTLASS_DEVICE float optional_element(void const* data, int index, float otherwise) {
  return data ? float(static_cast<Element const*>(data)[index]) : otherwise;
}

template <class Element>
using ElementPair = cutlass::AlignedArray<Element, 2>;

template <class Element>
CUTLASS_DEVICE float2 load_pair(Element const* place) {
  auto const pair = *reinterpret_cast<ElementPair<Element> const*>(place);
  return {float(pair[0]), float(pair[1])};
}

// Returns the values as they are stored.
template <class Element>
CUTLASS_DEVICE float2 store_pair(Element* place, float first, float second) {
  ElementPair<Element> pair;
  pair[0] = Element(first);
  pair[1] = Element(second);
  *reinterpret_cast<ElementPair<Element>*>(place) = pair;
  return {float(pair[0]), float(pair[1])};
}

// Calls visit(i, token, upper, lower) for each of the thread's tokens whose row exists, the i-th of
// them, with references to its two values. source_row is that of TileRows.
template <class Config, class Visit>
CUTLASS_DEVICE void for_each_row(int const* source_row, typename Config::Accumulator& acc,
                                 Visit const& visit) {
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Config::kThreadTokens; ++i) {
    int const token = thread_token(i);
    if (source_row[token] != kNoRow) {
      float (&values)[4] = acc.values[i / 2];
      visit(i, token, values[i % 2], values[2 + i % 2]);
    }
  }
}

// The same, without mask rows.
template <class Config, class Visit>
CUTLASS_DEVICE void for_each_token(int const* source_row, typename Config::Accumulator& acc,
                                   Visit const& visit) {
  for_each_row<Config>(source_row, acc, [&](int i, int token, float& upper, float& lower) {
    if (source_row[token] != kMaskRow) {
      visit(i, token, upper, lower);
    }
  });
}

// Sums, over the rows of a tile, of one value that each thread has for each of its tokens.
template <class Config>
struct TokenSums {
  float warp_sums[Config::kWarps][Config::kTokens];

  // Of each warp's rows. Contains a barrier of the threads that share the tile.
  CUTLASS_DEVICE void gather(float const (&values)[Config::kThreadTokens]) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Config::kThreadTokens; ++i) {
      float sum = values[i];
      CUTLASS_PRAGMA_UNROLL
      for (int offset = 4; offset < kWarpSize; offset *= 2) {  // the lanes with the same tokens
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      }
      if (threadIdx.x % kWarpSize < 4) {
        warp_sums[Config::thread() / kWarpSize][thread_token(i)] = sum;
      }
    }
    Config::sync();
  }

  // Of the rows of `kWarps` warps.
  template <int kWarps>
  CUTLASS_DEVICE float sum(int token, int first_warp) const {
    float sum = 0.0f;
    CUTLASS_PRAGMA_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      sum += warp_sums[first_warp + warp][token];
    }
    return sum;
  }
};

}  // namespace p_eagle
