// A projection onto the residual stream. For each row r < num_rows:
//
//   residual[r]         += W x[r] + bias
//   sum_squares[g, r]    = sum of residual[r, c]^2 over the 64 columns c of group g
//
// The sums are what the next layer's norm needs of the whole row: with them it can norm the row while
// it loads it. They are of the rounded values. Linear layer by linear/kernel.cuh; traffic: the weight
// once, x once, the residual read and written once, the sums.

#include "linear/epilogue.cuh"
#include "linear/launch.cuh"
#include "ops.h"

namespace p_eagle {
namespace {

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

  template <class Config>
  CUTLASS_DEVICE static void apply(Params const& params, TokenSums<Config>& shared,
                                   TileRows<Config::kTokens> const& rows, int tile, int first_row,
                                   typename Config::Accumulator& acc) {
    int const H = params.weight.rows;
    int const column = Rows::thread_row(tile);
    float squares[Config::kThreadTokens] = {};
    if (column < H) {
      float scale[2];
      float bias[2];
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < 2; ++i) {
        scale[i] = weight_scale(params.weight, column + i);
        bias[i] = optional_element<Element>(params.bias, column + i, 0.0f);
      }
      for_each_token<Config>(rows, acc, [&](int i, int token, float upper, float lower) {
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
    int const token = threadIdx.x % Config::kTokens;
    int const group = threadIdx.x / Config::kTokens;
    int const first_column = tile * kTileRows + group * kStatisticColumns;
    if (group < kTileRows / kStatisticColumns && first_column < H && rows.source_row[token] >= 0) {
      params.sum_squares[int64_t(first_column / kStatisticColumns) * params.input.max_rows +
                         first_row + token] =
          shared.template sum<kGroupWarps>(token, group * kGroupWarps);
    }
  }
};

}  // namespace

cudaError_t launch_linear_residual(LinearResidualParams const& params, DType dtype,
                                   cudaStream_t stream) {
  return launch_linear<AddToResidual>(params, dtype, stream);
}

}  // namespace p_eagle
