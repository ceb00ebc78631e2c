// The epilogue that makes queries, keys and values of the product and stores them.
#pragma once

#include "common/heads.cuh"
#include "linear/epilogue.cuh"
#include "ops.h"

namespace p_eagle {

template <class Element, int kHeadDim>
struct StoreHeads {
  using Params = QkvRopeCacheParams;
  static constexpr int kTileRows = kHeadDim;
  static constexpr int kHalf = kHeadDim / 2;
  using Rows = PairedHalves;

  template <class Config>
  using SharedStorage = TokenSums<Config>;

  CUTLASS_HOST_DEVICE static int num_tiles(Params const& params) {
    return params.num_heads + 2 * params.num_kv_heads;
  }

  CUTLASS_DEVICE static int weight_row(Params const&, int tile, int row) {
    return tile * kHeadDim + Rows::half(row) * kHalf + Rows::index(row);
  }

  CUTLASS_HOST_DEVICE static WeightRows weight_rows(Params const& params) {
    return {.step = 1,
            .half_step = kHalf,
            .group_step = 8,
            .num_groups = kHalf / 8,
            .head_step = kHeadDim,
            .num_heads = num_tiles(params)};
  }

  template <class Config>
  CUTLASS_DEVICE static void apply(Params const& params, TokenSums<Config>& shared,
                                   int const* source_row, int tile, int first_row,
                                   typename Config::Accumulator& acc) {
    bool const is_query = tile < params.num_heads;
    bool const is_key = !is_query && tile < params.num_heads + params.num_kv_heads;
    int const index = Rows::thread_index(Config::thread());
    int const first = tile * kHeadDim + index;  // the thread's rows of the weight
    int const second = first + kHalf;

    float2 const scale{weight_scale(params.weight, first), weight_scale(params.weight, second)};
    float2 const bias{optional_element<Element>(params.bias, first, 0.0f),
                      optional_element<Element>(params.bias, second, 0.0f)};
    float squares[Config::kThreadTokens] = {};
    for_each_row<Config>(source_row, acc, [&](int i, int token, float& upper, float& lower) {
      if (source_row[token] == kMaskRow) {
        upper = params.mask_heads[first];
        lower = params.mask_heads[second];
      } else {
        upper = upper * scale.x + bias.x;
        lower = lower * scale.y + bias.y;
      }
      squares[i] = upper * upper + lower * lower;
    });
    void const* const norm = is_query ? params.q_norm : is_key ? params.k_norm : nullptr;
    float2 norm_weight{};
    if (norm) {
      shared.gather(squares);
      norm_weight = {float(static_cast<Element const*>(norm)[index]),
                     float(static_cast<Element const*>(norm)[index + kHalf])};
    }

    for_each_row<Config>(source_row, acc, [&](int, int token, float upper, float lower) {
      int const row = first_row + token;
      float2 values{upper, lower};
      if (norm) {
        float const sum = shared.template sum<Config::kWarps>(token, 0);
        float const rstd = rsqrtf(sum / float(kHeadDim) + params.input.eps);
        values = {values.x * rstd * norm_weight.x, values.y * rstd * norm_weight.y};
      }
      if (is_query || is_key) {
        int64_t const position = rope_row(params.positions[row], params.num_positions);
        float const* const angles = params.rope + position * kHeadDim + index;
        values = rotated(values, angles[0], angles[kHalf]);
      }
      if (is_query) {
        auto* place = static_cast<Element*>(params.q) +
                      (int64_t(row) * params.num_heads + tile) * kHeadDim + index;
        place[0] = Element(values.x);
        place[kHalf] = Element(values.y);
        return;
      }
      int64_t const slot = params.slots[row];
      if (slot < 0) {
        return;
      }
      PagedCache const& cache = is_key ? params.k_cache : params.v_cache;
      int const head = tile - params.num_heads - (is_key ? 0 : params.num_kv_heads);
      int64_t const place = cache_place(cache, slot, params.block_size, head) + index;
      store_to_cache<Element>(cache, params.cache_type, place, values.x);
      store_to_cache<Element>(cache, params.cache_type, place + kHalf, values.y);
    });
  }
};

template <class Element>
using StoreHeads64 = StoreHeads<Element, 64>;
template <class Element>
using StoreHeads128 = StoreHeads<Element, 128>;

}  // namespace p_eagle
