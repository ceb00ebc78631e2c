// The epilogue of the gated half of an MLP: silu of one half of the product times the other.
#pragma once

#include "linear/epilogue.cuh"
#include "ops.h"

namespace p_eagle {

template <class Element>
struct Gate {
  using Params = NormSwigluParams;
  static constexpr int kTileRows = 64;
  static constexpr int kTilePairs = kTileRows / 2;
  using Rows = PairedHalves;

  template <class Config>
  struct SharedStorage {};

  CUTLASS_HOST_DEVICE static int num_tiles(Params const& params) {
    return (params.weight.rows / 2 + kTilePairs - 1) / kTilePairs;
  }

  CUTLASS_DEVICE static int weight_row(Params const& params, int tile, int row) {
    int const I = params.weight.rows / 2;
    int const pair = tile * kTilePairs + Rows::index(row);
    return pair < I ? Rows::half(row) * I + pair : -1;
  }

  CUTLASS_HOST_DEVICE static WeightRows weight_rows(Params const& params) {
    int const I = params.weight.rows / 2;
    return {.step = 1, .half_step = I, .group_step = 8, .num_groups = I / 8};
  }

  template <class Config>
  CUTLASS_DEVICE static void apply(Params const& params, SharedStorage<Config>&,
                                   int const* source_row, int tile, int first_row,
                                   typename Config::Accumulator& acc) {
    int const I = params.weight.rows / 2;
    int const pair = tile * kTilePairs + Rows::thread_index(Config::thread());
    if (pair >= I) {
      return;
    }
    float const gate_scale = weight_scale(params.weight, pair);
    float const up_scale = weight_scale(params.weight, I + pair);
    for_each_token<Config>(source_row, acc, [&](int, int token, float gate, float up) {
      gate *= gate_scale;
      float const silu = gate / (1.0f + __expf(-gate));
      static_cast<Element*>(params.out)[int64_t(first_row + token) * I + pair] =
          Element(silu * (up * up_scale));
    });
  }
};

}  // namespace p_eagle
