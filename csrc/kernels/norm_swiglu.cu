// The gated half of an MLP. For each row r < num_rows, with G and U the upper and the lower half of
// the weight's rows:
//
//   out[r] = silu(G x[r]) * (U x[r]),  x[r] = rms_norm(residual[r]) * norm_weight
//
// Row i of G and row i of U are multiplied by the same thread, so neither product leaves registers.
// Linear layer by linear/kernel.cuh; traffic: the weight once, the rows once, the result. No
// [R, 2I] intermediate exists.

#include "linear/epilogue.cuh"
#include "linear/launch.cuh"
#include "ops.h"

namespace p_eagle {
namespace {

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

  template <class Config>
  CUTLASS_DEVICE static void apply(Params const& params, SharedStorage<Config>&,
                                   TileRows<Config::kTokens> const& rows, int tile, int first_row,
                                   typename Config::Accumulator& acc) {
    int const I = params.weight.rows / 2;
    int const pair = tile * kTilePairs + Rows::thread_index();
    if (pair >= I) {
      return;
    }
    float const gate_scale = weight_scale(params.weight, pair);
    float const up_scale = weight_scale(params.weight, I + pair);
    for_each_token<Config>(rows, acc, [&](int, int token, float gate, float up) {
      gate *= gate_scale;
      float const silu = gate / (1.0f + __expf(-gate));
      static_cast<Element*>(params.out)[int64_t(first_row + token) * I + pair] =
          Element(silu * (up * up_scale));
    });
  }
};

}  // namespace

cudaError_t launch_norm_swiglu(NormSwigluParams const& params, DType dtype, cudaStream_t stream) {
  return launch_linear<Gate>(params, dtype, stream);
}

}  // namespace p_eagle
