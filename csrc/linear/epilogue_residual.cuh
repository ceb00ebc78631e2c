// The epilogue that adds the product to the residual stream, and sums the squares of what it becomes.
#pragma once

#include "linear/epilogue.cuh"
#include "ops.h"

namespace p_eagle {

template <class Element>
struct AddToResidual {
  using Params = LinearResidualParams;
  static constexpr int kTileRows = 64;
  static constexpr int kGroupWarps = kStatisticColumns / kWarpRows;
  using Rows = AdjacentRows<kTileRows>;

  template <class Config>
  using SharedStorage = TokenSums<Config>;

  CUTLASS_HOST_DEVICE static int num_tiles(Params const& params) {
    return (params.weight.rows + kTileRows - 1) / kTileRows;
  }

  CUTLASS_DEVICE static int weight_row(Params const& params, int tile, int row) {
    return Rows::weight_row(params.weight.rows, tile, row);
  }

  CUTLASS_HOST_DEVICE static WeightRows weight_rows(Params const& params) {
    return Rows::weight_rows(params.weight.rows);
  }

  template <class Config>
  CUTLASS_DEVICE static void apply(Params const& params, TokenSums<Config>& shared,
                                   int const* source_row, int tile, int first_row,
                                   typename Config::Accumulator& acc) {
    int const H = params.weight.rows;
    int const column = Rows::thread_row(tile, Config::thread());
    float squares[Config::kThreadTokens] = {};
    if (column < H) {
      float scale[2];
      float bias[2];
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < 2; ++i) {
        scale[i] = weight_scale(params.weight, column + i);
        bias[i] = optional_element<Element>(params.bias, column + i, 0.0f);
      }
      for_each_token<Config>(source_row, acc, [&](int i, int token, float upper, float lower) {
        auto* place =
            static_cast<Element*>(params.residual) + int64_t(first_row + token) * H + column;
        float2 sum = load_pair(place);
        sum.x += upper * scale[0] + bias[0];
        sum.y += lower * scale[1] + bias[1];
        float2 const rounded = store_pair(place, sum.x, sum.y);
        squares[i] = rounded.x * rounded.x + rounded.y * rounded.y;
      });
    }
    if (params.sum_squares == nullptr) {
      return;
    }
    shared.gather(squares);
    int const token = Config::thread() % Config::kTokens;
    int const group = Config::thread() / Config::kTokens;
    int const first_column = tile * kTileRows + group * kStatisticColumns;
    if (group < kTileRows / kStatisticColumns && first_column < H && source_row[token] >= 0) {
      params.sum_squares[int64_t(first_column / kStatisticColumns) * params.input.max_rows +
                         first_row + token] =
          shared.template sum<kGroupWarps>(token, group * kGroupWarps);
    }
  }
};

}  // namespace p_eagle
