// The two kernels of verification, and how they are launched: see kernels/verify.cu.
#pragma once

#include <cutlass/cutlass.h>

#include <cfloat>
#include <climits>
#include <cstdint>

#include "common/launch.h"
#include "head/order.cuh"
#include "ops.h"
#include "verification/choice.cuh"
#include "verification/layout.h"
#include "verification/logits.cuh"
#include "verification/walk.cuh"

namespace p_eagle {

// The rows of a request that have nodes; none where it says nothing sensible.
struct VerifiedRows {
  int first = 0;
  int num_rows = 0;
  int num_nodes = 0;

  CUTLASS_DEVICE VerifiedRows(VerifyParams const& params, int request) {
    int64_t const begin = params.row_start[request];
    int64_t const end = params.row_start[request + 1];
    int64_t const nodes = min(end - begin, int64_t(params.max_nodes));
    if (nodes >= 1 && begin >= 0 && begin + nodes <= params.num_rows) {
      first = int(begin);
      num_rows = int(end - begin);
      num_nodes = int(nodes);
    }
  }
};

CUTLASS_DEVICE int token_of(VerifyParams const& params, int request, int node) {
  int64_t const token = params.candidates[int64_t(request) * params.max_nodes + node];
  return 0 <= token && token < params.vocab_size ? int(token) : -1;
}

// ---- Tiles --------------------------------------------------------------------------------------

struct VerifyTileStorage {
  int request;
  uint64_t keys[kVerifyWarps];
  float sums[kVerifyWarps];
};

// The lowest request that may visit a row; INT_MAX: none.
CUTLASS_DEVICE int find_visitor(VerifyParams const& params, int row, VerifyTileStorage& shared) {
  if (threadIdx.x == 0) {
    shared.request = INT_MAX;
  }
  __syncthreads();
  for (int request = threadIdx.x; request < params.num_requests; request += kVerifyThreads) {
    VerifiedRows const rows(params, request);
    int const node = row - rows.first;
    if (0 <= node && node < rows.num_nodes && (node == 0 || token_of(params, request, node) >= 0)) {
      atomicMin(&shared.request, request);
    }
  }
  __syncthreads();
  return shared.request;
}

template <class Config>
__global__ void __launch_bounds__(kVerifyThreads, Config::kWidth > 1 ? 4 : 2)
    verify_tiles_kernel(__grid_constant__ VerifyParams const params) {
  __shared__ VerifyTileStorage shared;
  int const row = blockIdx.x;
  int const tile = blockIdx.y;
  int const thread = threadIdx.x;
  int const warp = thread / kWarpSize;
  int const lane = thread % kWarpSize;

  wait_for_previous_kernel();
  let_next_kernel_start();

  int const request = find_visitor(params, row, shared);
  if (request == INT_MAX) {
    return;
  }
  RowSoftmax const softmax(params, request, row);
  float logits[Config::kVectors][Config::kWidth];
  uint64_t best = kNoCandidate;
  CUTLASS_PRAGMA_UNROLL
  for (int v = 0; v < Config::kVectors; ++v) {
    int const first = tile * kVerifyTile + (v * kVerifyThreads + thread) * Config::kWidth;
    load_vector<Config>(params, row, first, logits[v]);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Config::kWidth; ++i) {
      uint64_t const key = candidate_key(logits[v][i], first + i);
      best = key > best && first + i < params.vocab_size ? key : best;
    }
  }
  best = warp_max(best);
  if (lane == 0) {
    shared.keys[warp] = best;
  }
  __syncthreads();
  best = warp_max(shared.keys[lane % kVerifyWarps]);
  float const largest = from_ordered_bits(uint32_t(best >> 32));
  float sum = 0.0f;
  if (softmax.is_random && fabsf(largest) <= FLT_MAX) {
    CUTLASS_PRAGMA_UNROLL
    for (int v = 0; v < Config::kVectors; ++v) {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Config::kWidth; ++i) {
        sum += softmax.weight(logits[v][i], largest);
      }
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) {
    shared.sums[warp] = sum;
  }
  __syncthreads();
  sum = warp_sum(lane < kVerifyWarps ? shared.sums[lane] : 0.0f);
  if (thread == 0) {
    TileFindings const findings(params, row);
    findings.key(tile) = best;
    findings.sum(tile) = sum;
  }
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
  constexpr int kVectorLogits = 16 / int(sizeof(Element));
  bool const is_wide = params.vocab_size % kVectorLogits == 0 &&
                       reinterpret_cast<uintptr_t>(params.logits) % 16 == 0;
  if (params.num_rows > 0) {
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
