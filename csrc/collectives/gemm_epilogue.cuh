// What becomes of the product of csrc/collectives: a warp has 16 rows of it and gets their columns a
// slice at a time, as wgmma leaves them (linear/product.cuh). It hands them on through shared memory
// of its own, 64 columns of the output at a time, so that global memory is read and written in whole
// lines.
#pragma once

#include <cutlass/numeric_types.h>

#include <cute/tensor.hpp>

#include "common/launch.h"
#include "linear/epilogue.cuh"
#include "linear/product.cuh"
#include "linear/tiles.h"
#include "ops.h"

namespace p_eagle {

// 16 rows of 64 columns. Rows are 16 bytes longer than their columns: neither vectors of a row nor
// pairs of eight rows meet in a bank.
template <class Element>
struct OutputBlock {
  static constexpr int kColumns = 64;
  static constexpr int kVecElements = 8;
  static constexpr int kRowVecs = kColumns / kVecElements;
  static constexpr int kSweepRows = kWarpSize / kRowVecs;  // that a warp moves at once
  using Vec = cutlass::AlignedArray<Element, kVecElements>;

  Vec vecs[kWarpRows][kRowVecs + 1];

  // The place of values[octet][2 * half] and the next.
  CUTLASS_DEVICE Element* pair(int octet, int half) {
    int const lane = threadIdx.x % kWarpSize;
    return vecs[lane / 4 + 8 * half][octet].data() + lane % 4 * 2;
  }

  // Calls visit(row, column, vec) for the lane's vectors.
  template <class Visit>
  CUTLASS_DEVICE void for_each_vec(Visit const& visit) {
    int const lane = threadIdx.x % kWarpSize;
    CUTLASS_PRAGMA_UNROLL
    for (int first = 0; first < kWarpRows; first += kSweepRows) {
      int const row = first + lane / kRowVecs;
      visit(row, lane % kRowVecs * kVecElements, vecs[row][lane % kRowVecs]);
    }
  }
};

// Rows of the weight from one to the next of the eight of a group's half, to the other half, and to
// the next group.
struct WeightGroups {
  int64_t row_step;
  int64_t half_step;
  int64_t group_step;
};

template <class Element>
struct GemmEpilogue {
  using SharedStorage = OutputBlock<Element>;
  using Vec = typename SharedStorage::Vec;

  // [rows, (8, 2, groups), columns, 1]
  CUTLASS_HOST_DEVICE static auto problem_shape(GemmParams const& params) {
    return cute::make_shape(params.max_rows, cute::make_shape(8, 2, params.weight.rows / 16),
                            params.weight.columns, 1);
  }

  CUTLASS_DEVICE static Vec& place(GemmParams const& params, int width, int row, int column) {
    return *reinterpret_cast<Vec*>(static_cast<Element*>(params.out) + int64_t(row) * width +
                                   column);
  }
};

// out[r] = W x[r] + bias, or out[r] += that, and the sums of squares of the result.
template <class Element>
struct GemmStore : GemmEpilogue<Element> {
  using Base = GemmEpilogue<Element>;
  using typename Base::SharedStorage;
  using typename Base::Vec;

  CUTLASS_HOST_DEVICE static WeightGroups groups(GemmParams const&) { return {1, 8, 16}; }

  template <int kSlice>
  CUTLASS_DEVICE static void apply(GemmParams const& params, SharedStorage& block, int first_row,
                                   int num_rows, int slice, Accumulator<kSlice> const& acc) {
    int const N = params.weight.rows;
    CUTLASS_PRAGMA_UNROLL
    for (int begin = 0; begin < kSlice; begin += SharedStorage::kColumns) {
      int const first_column = slice * kSlice + begin;
      if (first_column >= N) {
        return;
      }
      auto const exists = [&](int row, int column) {
        return first_row + row < num_rows && first_column + column < N;
      };
      if (params.accumulates) {
        block.for_each_vec([&](int row, int column, Vec& vec) {
          vec = exists(row, column) ? Base::place(params, N, first_row + row, first_column + column)
                                    : Vec{};
        });
        __syncwarp();
      }
      CUTLASS_PRAGMA_UNROLL
      for (int octet = 0; octet < SharedStorage::kColumns / 8; ++octet) {
        int const column = first_column + octet * 8 + threadIdx.x % 4 * 2;
        float2 const bias = params.bias && column < N
                                ? load_pair(static_cast<Element const*>(params.bias) + column)
                                : float2{};
        CUTLASS_PRAGMA_UNROLL
        for (int half = 0; half < 2; ++half) {
          Element* const pair = block.pair(octet, half);
          float2 const before = params.accumulates ? load_pair(pair) : float2{};
          float const* const values = acc.values[begin / 8 + octet] + 2 * half;
          store_pair(pair, before.x + (values[0] + bias.x), before.y + (values[1] + bias.y));
        }
      }
      __syncwarp();
      block.for_each_vec([&](int row, int column, Vec const& vec) {
        float squares = 0.0f;
        if (exists(row, column)) {
          Base::place(params, N, first_row + row, first_column + column) = vec;
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < SharedStorage::kVecElements; ++i) {
            squares += float(vec[i]) * float(vec[i]);
          }
        }
        if (params.sum_squares) {
          CUTLASS_PRAGMA_UNROLL
          for (int offset = 1; offset < SharedStorage::kRowVecs; offset *= 2) {
            squares += __shfl_xor_sync(0xffffffffu, squares, offset);
          }
          if (column == 0 && exists(row, 0)) {
            params.sum_squares[int64_t(first_column / kStatisticColumns) * params.max_rows +
                               first_row + row] = squares;
          }
        }
      });
      __syncwarp();  // the block is free again
    }
  }
};

// out[r] = silu(G x[r]) * (U x[r]): eight gates meet their eight up rows.
template <class Element>
struct GemmSwiglu : GemmEpilogue<Element> {
  using Base = GemmEpilogue<Element>;
  using typename Base::SharedStorage;
  using typename Base::Vec;

  CUTLASS_HOST_DEVICE static WeightGroups groups(GemmParams const& params) {
    return {1, params.weight.rows / 2, 8};
  }

  template <int kSlice>
  CUTLASS_DEVICE static void apply(GemmParams const& params, SharedStorage& block, int first_row,
                                   int num_rows, int slice, Accumulator<kSlice> const& acc) {
    constexpr int kPairs = kSlice / 2;
    int const I = params.weight.rows / 2;
    CUTLASS_PRAGMA_UNROLL
    for (int begin = 0; begin < kPairs; begin += SharedStorage::kColumns) {
      int const first_column = slice * kPairs + begin;
      if (first_column >= I) {
        return;
      }
      CUTLASS_PRAGMA_UNROLL
      for (int octet = 0; octet < SharedStorage::kColumns / 8; ++octet) {
        CUTLASS_PRAGMA_UNROLL
        for (int half = 0; half < 2; ++half) {
          float const* const gate = acc.values[2 * (begin / 8 + octet)] + 2 * half;
          float const* const up = acc.values[2 * (begin / 8 + octet) + 1] + 2 * half;
          store_pair(block.pair(octet, half), silu(gate[0]) * up[0], silu(gate[1]) * up[1]);
        }
      }
      __syncwarp();
      block.for_each_vec([&](int row, int column, Vec const& vec) {
        if (first_row + row < num_rows && first_column + column < I) {
          Base::place(params, I, first_row + row, first_column + column) = vec;
        }
      });
      __syncwarp();  // the block is free again
    }
  }

 private:
  CUTLASS_DEVICE static float silu(float x) { return x / (1.0f + __expf(-x)); }
};

}  // namespace p_eagle
