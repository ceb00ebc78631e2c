// Penalties for the tokens that a row's request has had: see kernels/apply_penalties.cu.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/numeric_types.h>

#include <cfloat>
#include <cstdint>

#include "common/launch.h"
#include "ops.h"
#include "verification/rows.cuh"

namespace p_eagle {

inline constexpr int kPenaltyThreads = 256;

struct PenaltyStorage {
  int request;
  int length;                    // of the path
  int parents[kMaxTreeNodes];    // of nodes
  int tokens[kMaxTreeNodes];     // of nodes
  int path[kMaxTreeNodes];       // tokens
  int counts[kMaxTreeNodes];     // of the path, of a token where it comes first; 0 elsewhere
  int is_listed[kMaxTreeNodes];  // tokens of the path
};

// Of a request; what is no number that makes sense is as if it was not asked for.
struct Penalties {
  float repetition;
  float frequency;
  float presence;

  CUTLASS_DEVICE Penalties(ApplyPenaltiesParams const& params, int request)
      : repetition(params.repetition[request]),
        frequency(params.frequency[request]),
        presence(params.presence[request]) {
    repetition = repetition > 0.0f && repetition <= FLT_MAX ? repetition : 1.0f;
    frequency = fabsf(frequency) <= FLT_MAX ? frequency : 0.0f;
    presence = fabsf(presence) <= FLT_MAX ? presence : 0.0f;
  }

  CUTLASS_DEVICE bool are_none() const {
    return repetition == 1.0f && frequency == 0.0f && presence == 0.0f;
  }

  CUTLASS_DEVICE float apply(float logit, int64_t count) const {
    float const repeated =
        logit > 0.0f ? __fdiv_rn(logit, repetition) : __fmul_rn(logit, repetition);
    float const counted = __fsub_rn(repeated, __fmul_rn(frequency, float(count)));
    return count > 0 ? __fsub_rn(counted, presence) : counted;
  }
};

// The tokens of the drafts up to a node, and how often each is there.
CUTLASS_DEVICE void load_path(ApplyPenaltiesParams const& params, int request, int node,
                              PenaltyStorage& shared) {
  int const thread = threadIdx.x;
  if (thread <= node) {
    int64_t const at = int64_t(request) * params.max_nodes + thread;
    shared.parents[thread] = params.parents ? params.parents[at] : thread - 1;
    shared.tokens[thread] = token_of(params, request, thread);
  }
  __syncthreads();
  if (thread == 0) {
    int length = 0;
    for (int n = node; n > 0;) {
      if (shared.tokens[n] >= 0) {
        shared.path[length++] = shared.tokens[n];
      }
      n = shared.parents[n] < n ? shared.parents[n] : 0;
    }
    shared.length = length;
  }
  __syncthreads();
  if (thread < shared.length) {
    int count = 0;
    bool is_first = true;
    for (int i = 0; i < shared.length; ++i) {
      bool const is_same = shared.path[i] == shared.path[thread];
      count += is_same;
      is_first = is_first && (i >= thread || !is_same);
    }
    shared.counts[thread] = is_first ? count : 0;
    shared.is_listed[thread] = 0;
  }
  __syncthreads();
}

template <class Element>
__global__ void __launch_bounds__(kPenaltyThreads)
    apply_penalties_kernel(__grid_constant__ ApplyPenaltiesParams const params) {
  __shared__ PenaltyStorage shared;
  int const row = blockIdx.x;
  int const thread = threadIdx.x;

  wait_for_previous_kernel();
  let_next_kernel_start();

  int const request = lowest_request(params.num_requests, shared.request, [&](int request) {
    VerifiedRows const rows(params, request);
    return rows.first <= row && row < rows.first + rows.num_nodes;
  });
  if (request == kNoRequest) {
    return;
  }
  Penalties const penalties(params, request);
  if (penalties.are_none()) {
    return;
  }
  load_path(params, request, row - VerifiedRows(params, request).first, shared);
  auto* const logits = static_cast<Element*>(params.logits) + int64_t(row) * params.vocab_size;
  auto const apply = [&](int token, int64_t count) {
    logits[token] = Element(penalties.apply(float(logits[token]), count));
  };
  int64_t const list = int64_t(request) * params.max_tokens;
  for (int entry = thread; entry < params.max_tokens; entry += kPenaltyThreads) {
    int64_t const token = params.token_ids[list + entry];
    if (0 <= token && token < params.vocab_size) {
      int64_t count = max(params.token_counts[list + entry], 0);
      for (int i = 0; i < shared.length; ++i) {
        if (shared.path[i] == token && shared.counts[i] > 0) {
          count += shared.counts[i];
          atomicExch(&shared.is_listed[i], 1);
        }
      }
      apply(int(token), count);
    }
  }
  __syncthreads();  // is_listed
  if (thread < shared.length && shared.counts[thread] > 0 && shared.is_listed[thread] == 0) {
    apply(shared.path[thread], shared.counts[thread]);
  }
}

template <class Element>
cudaError_t launch_apply_penalties_with(ApplyPenaltiesParams const& params, cudaStream_t stream) {
  LaunchPlan const plan{
      .grid = dim3(params.num_rows), .block = dim3(kPenaltyThreads), .stream = stream};
  return launch(&apply_penalties_kernel<Element>, plan, params);
}

}  // namespace p_eagle
