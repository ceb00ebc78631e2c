// The target's hidden states as the drafter sees them: for each row r < num_rows with a source row,
//
//   out[r] = W x[r],  x[r] = [norm](tap_0[source_row[r]], tap_1[source_row[r]], ...)
//
// The taps are read where they lie, no concatenation is made. Linear layer by linear/kernel.cuh;
// traffic: the weight once, the tapped rows once, the result.

#include "linear/epilogue.cuh"
#include "linear/launch.cuh"
#include "ops.h"

namespace p_eagle {
namespace {

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

  template <class Config>
  CUTLASS_DEVICE static void apply(Params const& params, SharedStorage<Config>&,
                                   TileRows<Config::kTokens> const& rows, int tile, int first_row,
                                   typename Config::Accumulator& acc) {
    int const column = Rows::thread_row(tile);
    if (column >= params.weight.rows) {
      return;
    }
    float const scale[2] = {weight_scale(params.weight, column),
                            weight_scale(params.weight, column + 1)};
    for_each_token<Config>(rows, acc, [&](int, int token, float upper, float lower) {
      int64_t const offset = int64_t(first_row + token) * params.weight.rows + column;
      store_pair(static_cast<Element*>(params.out) + offset, upper * scale[0], lower * scale[1]);
    });
  }
};

}  // namespace

cudaError_t launch_project_taps(ProjectTapsParams const& params, DType dtype, cudaStream_t stream) {
  return launch_linear<Store>(params, dtype, stream);
}

}  // namespace p_eagle
