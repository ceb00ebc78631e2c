// Whose the rows of the target's logits are.
#pragma once

#include <cutlass/cutlass.h>

#include <climits>
#include <cstdint>

namespace p_eagle {

inline constexpr int kNoRequest = INT_MAX;

// The lowest of the requests that have something; kNoRequest if none. For a whole block, with two
// barriers; `shared` is its word for this.
template <class Has>
CUTLASS_DEVICE int lowest_request(int num_requests, int& shared, Has const& has) {
  if (threadIdx.x == 0) {
    shared = kNoRequest;
  }
  __syncthreads();
  for (int request = threadIdx.x; request < num_requests; request += blockDim.x) {
    if (has(request)) {
      atomicMin(&shared, request);
    }
  }
  __syncthreads();
  return shared;
}

// The rows of a request that have nodes; none where it says nothing sensible.
struct VerifiedRows {
  int first = 0;
  int num_rows = 0;
  int num_nodes = 0;

  // Params: of an op whose requests have nodes.
  template <class Params>
  CUTLASS_DEVICE VerifiedRows(Params const& params, int request) {
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

// The token of a node; -1 if it is none of the vocabulary.
template <class Params>
CUTLASS_DEVICE int token_of(Params const& params, int request, int node) {
  int64_t const token = params.candidates[int64_t(request) * params.max_nodes + node];
  return 0 <= token && token < params.vocab_size ? int(token) : -1;
}

}  // namespace p_eagle
