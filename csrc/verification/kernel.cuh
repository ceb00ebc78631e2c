// The two kernels of verification, and how they are launched: see kernels/verify.cu.
#pragma once

#include <cutlass/cutlass.h>

#include <cfloat>
#include <cstdint>

#include "common/launch.h"
#include "head/order.cuh"
#include "ops.h"
#include "verification/choice.cuh"
#include "verification/layout.h"
#include "verification/logits.cuh"
#include "verification/rows.cuh"
#include "verification/tiles.cuh"
#include "verification/walk.cuh"

namespace p_eagle {

// ---- Tiles --------------------------------------------------------------------------------------

// The lowest request that may visit a row; kNoRequest: none.
CUTLASS_DEVICE int find_visitor(VerifyParams const& params, int row, int& shared) {
  return lowest_request(params.num_requests, shared, [&](int request) {
    VerifiedRows const rows(params, request);
    int const node = row - rows.first;
    return 0 <= node && node < rows.num_nodes &&
           (node == 0 || token_of(params, request, node) >= 0);
  });
}

template <class Config>
__global__ void __launch_bounds__(kVerifyThreads, Config::kWidth > 1 ? 4 : 2)
    verify_tiles_kernel(__grid_constant__ VerifyParams const params) {
  __shared__ TileStorage shared;
  __shared__ int visitor;
  int const row = blockIdx.x;

  wait_for_previous_kernel();
  let_next_kernel_start();

  int const request = find_visitor(params, row, visitor);
  if (request == kNoRequest) {
    return;
  }
  TileFindings const findings(params, request, 0, row);
  Tile<Config> tile;
  tile.load(params, row, blockIdx.y);
  tile.find(RowSoftmax(params, request, row), findings, shared);
}

// ---- Requests -----------------------------------------------------------------------------------

template <class Config>
__global__ void __launch_bounds__(kVerifyThreads, 1)
    verify_walk_kernel(__grid_constant__ VerifyParams const params) {
  __shared__ typename Walk<Config>::SharedStorage shared;
  int const request = blockIdx.x;
  int const thread = threadIdx.x;

  wait_for_previous_kernel();
  let_next_kernel_start();

  VerifiedRows const rows(params, request);
  int64_t const base = int64_t(request) * params.max_nodes;
  for (int node = thread; node < rows.num_nodes; node += kVerifyThreads) {
    shared.nodes.token[node] = token_of(params, request, node);
    auto const link = [&](int64_t const* links, int64_t of_chain) {
      int64_t const target = links ? links[base + node] : of_chain;
      return 0 <= target && target < kMaxTreeNodes ? int(target) : -1;
    };
    shared.nodes.next_token[node] = link(params.next_token, node + 1);
    shared.nodes.next_sibling[node] = link(params.next_sibling, -1);
  }
  __syncthreads();
  int length = 0;
  int token = -1;
  if (rows.num_nodes > 0) {
    length = Walk<Config>(params, request, rows.first, rows.num_nodes, shared).run(token);
  }
  __syncthreads();  // the path
  for (int i = thread; i < params.max_nodes; i += kVerifyThreads) {
    bool const is_draft = i + 1 < length;
    params.tokens[base + i] = is_draft          ? shared.nodes.token[shared.nodes.path[i + 1]]
                              : i + 1 == length ? token
                                                : -1;
    params.path[base + i] = i < length ? rows.first + shared.nodes.path[i] : -1;
  }
  if (thread == 0) {
    params.num_accepted[request] = length > 0 ? length - 1 : 0;
    params.num_rejected[request] = rows.num_rows - length;
    params.last_row[request] = length > 0 ? rows.first + shared.nodes.path[length - 1] : -1;
    if (length > 0) {
      params.next_tokens[request] = token;
    }
  }
}

// ---- Dispatch -----------------------------------------------------------------------------------

template <class Element>
cudaError_t launch_verify_with(VerifyParams const& params, cudaStream_t stream) {
  bool const is_wide = has_wide_rows<Element>(params.logits, params.vocab_size);
  if (params.num_rows > 0 && !params.is_lazy) {
    VerifyWorkspaceLayout const layout{params.num_rows, params.vocab_size};
    LaunchPlan const tiles{.grid = dim3(params.num_rows, unsigned(layout.num_tiles())),
                           .block = dim3(kVerifyThreads),
                           .stream = stream};
    auto* const kernel = is_wide ? &verify_tiles_kernel<LogitsConfig<Element, true>>
                                 : &verify_tiles_kernel<LogitsConfig<Element, false>>;
    if (cudaError_t const status = launch(kernel, tiles, params); status != cudaSuccess) {
      return status;
    }
  }
  LaunchPlan const walks{
      .grid = dim3(params.num_requests), .block = dim3(kVerifyThreads), .stream = stream};
  return launch(&verify_walk_kernel<LogitsConfig<Element, false>>, walks, params);
}

}  // namespace p_eagle
