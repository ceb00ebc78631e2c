// The gate of an MLP, of a product that is in memory: for each row r < num_rows,
//
//   out[r] = silu(gate_up[r, :I]) * gate_up[r, I:]
//
// Mapping: a thread makes one vector of a row, a block kThreads of them. Numerics: float32 from load
// to store, one rounding. Traffic: 3I elements per row.

#include "common/launch.h"
#include "ops.h"
#include "rows/vector.cuh"

namespace p_eagle {
namespace {

constexpr int kGateThreads = 128;

template <class Row>
__global__ void __launch_bounds__(kGateThreads)
    gate_rows_kernel(__grid_constant__ GateRowsParams const params) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  int const row = blockIdx.x;
  int const num_vecs = params.width / Row::kWidth;
  int const vec = blockIdx.y * kGateThreads + threadIdx.x;
  if (row >= *params.num_rows || vec >= num_vecs) {
    return;
  }
  int64_t const first = int64_t(row) * 2 * num_vecs + vec;
  auto values = Row::to_float(Row::load(params.gate_up, first));
  auto const up = Row::to_float(Row::load(params.gate_up, first + num_vecs));
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Row::kWidth; ++i) {
    values[i] = values[i] / (1.0f + __expf(-values[i])) * up[i];
  }
  Row::store(params.out, int64_t(row) * num_vecs + vec, Row::rounded(values));
}

}  // namespace

cudaError_t launch_gate_rows(GateRowsParams const& params, DType dtype, cudaStream_t stream) {
  bool const is_wide = are_wide(params.width, {params.gate_up, params.out});
  return dispatch_rows(dtype, is_wide, [&]<class Row>() {
    int const blocks = (params.width / Row::kWidth + kGateThreads - 1) / kGateThreads;
    LaunchPlan const plan{
        .grid = dim3(params.max_rows, blocks), .block = dim3(kGateThreads), .stream = stream};
    return launch(&gate_rows_kernel<Row>, plan, params);
  });
}

}  // namespace p_eagle
