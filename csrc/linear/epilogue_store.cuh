// The epilogue that stores the product: out[r] = W x[r].
#pragma once

#include "linear/epilogue.cuh"
#include "ops.h"

namespace p_eagle {

template <class Element>
struct Store {
  using Params = ProjectTapsParams;
  static constexpr int kTileRows = 64;
  using Rows = AdjacentRows<kTileRows>;

  template <class Config>
  struct SharedStorage {};

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
  CUTLASS_DEVICE static void apply(Params const& params, SharedStorage<Config>&,
                                   int const* source_row, int tile, int first_row,
                                   typename Config::Accumulator& acc) {
    int const column = Rows::thread_row(tile, Config::thread());
    if (column >= params.weight.rows) {
      return;
    }
    float const scale[2] = {weight_scale(params.weight, column),
                            weight_scale(params.weight, column + 1)};
    for_each_token<Config>(source_row, acc, [&](int, int token, float upper, float lower) {
      int64_t const offset = int64_t(first_row + token) * params.weight.rows + column;
      store_pair(static_cast<Element*>(params.out) + offset, upper * scale[0], lower * scale[1]);
    });
  }
};

}  // namespace p_eagle
