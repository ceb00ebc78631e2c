// Rows that go on in the last layer: it takes keys and values of all, and what follows attention of
// none but those that are sampled. Request b with rows keeps its last K. With c = K * (requests
// before b that have rows), for i < K:
//
//   out[c + i]              = x[row_start[b + 1] - K + i]
//   pruned_positions[c + i] = positions of that row
//   pruned_sample_rows[b, i] = sample_rows[b, i] < 0 ? -1 : c + i
//   pruned_row_start[b + 1] = c + K
//
// A request without rows: pruned_sample_rows -1, pruned_row_start[b + 1] = c. Rows from
// pruned_row_start[B] on are not written. And, where it is wanted, how the attention of the kept
// rows is divided: common/attention_work.cuh.
//
// Mapping: a block for each row that may be kept. Each counts the requests before its own by itself,
// so that none waits; the last to arrive divides the attention.
// Numerics: rows are moved as they are, in 16-byte vectors where all of them are aligned.
// Garbage: a row that would be outside of x is not moved, and its position is 0.
// Traffic: each kept row read once and written once.

#include "common/attention_work.cuh"
#include "common/launch.h"
#include "ops.h"

namespace p_eagle {
namespace {

constexpr int kThreads = 128;

using Planner = AttentionPlanner<kThreads>;

CUTLASS_DEVICE bool has_rows(PruneRowsParams const& params, int request) {
  return params.row_start[request + 1] > params.row_start[request];
}

template <class Vec>
__global__ void __launch_bounds__(kThreads)
    prune_rows_kernel(__grid_constant__ PruneRowsParams const params) {
  __shared__ typename Planner::SharedStorage scan;
  __shared__ bool is_last;

  int const thread = threadIdx.x;
  int const request = blockIdx.x / params.num_kept;
  int const index = blockIdx.x % params.num_kept;

  wait_for_previous_kernel();
  let_next_kernel_start();

  int before = 0;
  for (int base = 0; base < request; base += kThreads) {
    int const other = base + thread;
    before += __syncthreads_count(other < request && has_rows(params, other));
  }
  bool const is_kept = has_rows(params, request);
  int const kept_row = before * params.num_kept + index;
  if (is_kept) {
    int64_t const row = int64_t(params.row_start[request + 1]) - params.num_kept + index;
    bool const is_there = 0 <= row && row < params.num_rows;
    int const row_vecs = params.row_bytes / int(sizeof(Vec));
    Vec const* const from = static_cast<Vec const*>(params.x) + row * row_vecs;
    Vec* const to = static_cast<Vec*>(params.out) + int64_t(kept_row) * row_vecs;
    for (int vec = thread; is_there && vec < row_vecs; vec += kThreads) {
      to[vec] = from[vec];
    }
    if (thread == 0) {
      params.pruned_positions[kept_row] = is_there ? params.positions[row] : 0;
    }
  }
  if (thread == 0) {
    bool const is_sampled = is_kept && params.sample_rows[blockIdx.x] >= 0;
    params.pruned_sample_rows[blockIdx.x] = is_sampled ? kept_row : -1;
    if (index == 0) {
      params.pruned_row_start[request + 1] = (before + is_kept) * params.num_kept;
    }
    if (blockIdx.x == 0) {
      params.pruned_row_start[0] = 0;
    }
  }
  if (params.attention.work != nullptr) {
    Planner::plan_by_last_block(params.attention, scan, is_last, thread);
  }
}

}  // namespace

cudaError_t launch_prune_rows(PruneRowsParams const& params, cudaStream_t stream) {
  LaunchPlan const plan{.grid = dim3(params.num_requests * params.num_kept),
                        .block = dim3(kThreads),
                        .stream = stream};
  auto const bits = reinterpret_cast<uintptr_t>(params.x) |
                    reinterpret_cast<uintptr_t>(params.out) | uintptr_t(params.row_bytes);
  return bits % sizeof(uint4) == 0 ? launch(&prune_rows_kernel<uint4>, plan, params)
                                   : launch(&prune_rows_kernel<uint16_t>, plan, params);
}

}  // namespace p_eagle
