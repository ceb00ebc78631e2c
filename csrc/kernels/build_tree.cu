// The tree of drafts of each request. All nodes of a depth have the same children to choose from,
// the k entries of that depth, in the order of their ranks. Of a shape a node has the entry of its
// rank. Without one, with log_p = min(logits - lse, 0):
//
//   value(root)  = 0,  value(child) = value(parent) + log_p[depth, rank] (+ log_discount)
//
// the discount where the parent, or one before it, is not of rank 0; and the nodes are the N - 1 of
// the largest values. Neither a node's first child nor its next sibling is better than the node, so
// whoever joins the tree lets these two compete, and the best of those that compete is the next.
//
// Mapping: one warp per request. Entries are ranked by counting, an entry a lane. Those that compete
// are keys in registers, two a lane: joining frees a place, where the sibling goes, and the child of
// node n goes to place n. The next node is a maximum of a warp: no memory is touched but shared.
// Numerics: float32, added in the order above; of equal values the lower parent, then the lower rank
// comes first. NaN is not a value.
// Garbage: entries with ids outside of the vocabulary or logits that are not finite do not exist;
// what a shape says is checked against what is there.

#include <cutlass/cutlass.h>

#include <cfloat>
#include <cmath>

#include "common/launch.h"
#include "common/reduce.cuh"
#include "head/noise.cuh"
#include "head/order.cuh"
#include "head/tiles.h"
#include "ops.h"

namespace p_eagle {
namespace {

constexpr int kMaxDepths = kMaxTreeNodes - 1;
constexpr int kMaxEntries = kMaxDepths * kMaxTopK;

struct Nodes {
  uint64_t mask[kMaxTreeNodes];
  float value[kMaxTreeNodes];
  int parent[kMaxTreeNodes];
  int rank[kMaxTreeNodes];
  int depth[kMaxTreeNodes];
  int first_child[kMaxTreeNodes];
  int last_child[kMaxTreeNodes];
  int next_sibling[kMaxTreeNodes];
  bool is_off_spine[kMaxTreeNodes];
};

struct SharedStorage {
  float logits[kMaxEntries];  // NaN: no entry; all of these [depth, kMaxTopK]
  float scores[kMaxEntries];
  float log_p[kMaxEntries];   // by rank
  int8_t entry[kMaxEntries];  // by rank
  int num_entries[kMaxDepths];
  float step_costs[kMaxTreeNodes];
  int shape_parent[kMaxTreeNodes];
  int shape_rank[kMaxTreeNodes];
  int place[kMaxTreeNodes];  // of a shape's node among those that exist; -1: it does not
  Nodes nodes;
};

// ---- Entries ------------------------------------------------------------------------------------

// Where a rank's entry, or an entry, is in shared memory.
CUTLASS_DEVICE int slot_of(int depth, int i) { return depth * kMaxTopK + i; }

CUTLASS_DEVICE int64_t row_of(BuildTreeParams const& params, int request, int depth) {
  return int64_t(request) * params.num_depths + depth;
}

CUTLASS_DEVICE bool exists(float logit) { return logit == logit; }

CUTLASS_DEVICE void load_entries(BuildTreeParams const& params, int request, int depths,
                                 SharedStorage& shared, int lane) {
  for (int i = lane; i < depths * params.top_k; i += kWarpSize) {
    int const depth = i / params.top_k;
    int const entry = i % params.top_k;
    int64_t const source = row_of(params, request, depth) * params.top_k + entry;
    float const logit = params.logits[source];
    int64_t const id = params.ids[source];
    bool const is_valid = 0 <= id && id < params.vocab_size && fabsf(logit) <= FLT_MAX;
    shared.logits[slot_of(depth, entry)] = is_valid ? logit : NAN;
  }
}

// What entries are ranked by: the logit, or with noise a draw's.
CUTLASS_DEVICE void score_entries(BuildTreeParams const& params, int request, int depths,
                                  SharedStorage& shared, int lane) {
  float const temperature = params.temperature ? params.temperature[request] : 0.0f;
  bool const is_drawn = temperature > 0.0f;
  for (int i = lane; i < depths * params.top_k; i += kWarpSize) {
    int const depth = i / params.top_k;
    int const slot = slot_of(depth, i % params.top_k);
    float score = shared.logits[slot];
    if (is_drawn && exists(score)) {
      float largest = -FLT_MAX;
      for (int j = 0; j < params.top_k; ++j) {
        largest = fmaxf(largest, shared.logits[slot_of(depth, j)]);
      }
      int64_t const id =
          params.ids[row_of(params, request, depth) * params.top_k + i % params.top_k];
      PhiloxBlock const block =
          PhiloxBlock::make(uint32_t(id / kPhiloxWords), params.root_positions[request],
                            params.noise_keys[request], salt_at(kOrderNoise, depth));
      score = (score - largest) / temperature + gumbel(block.word(int(id % kPhiloxWords)));
    }
    shared.scores[slot] = fmaxf(score, -FLT_MAX);
  }
}

CUTLASS_DEVICE void rank_entries(BuildTreeParams const& params, int request, int depths,
                                 SharedStorage& shared, int lane) {
  for (int i = lane; i < depths * params.top_k; i += kWarpSize) {
    int const depth = i / params.top_k;
    int const entry = i % params.top_k;
    float const score = shared.scores[slot_of(depth, entry)];
    int rank = 0;
    int count = 0;
    for (int j = 0; j < params.top_k; ++j) {
      int const other = slot_of(depth, j);
      bool const is_there = exists(shared.logits[other]);
      bool const is_before =
          shared.scores[other] > score || (shared.scores[other] == score && j < entry);
      rank += is_there && is_before;
      count += is_there;
    }
    float const logit = shared.logits[slot_of(depth, entry)];
    if (exists(logit)) {
      float const log_p = logit - params.lse[row_of(params, request, depth)];
      shared.log_p[slot_of(depth, rank)] = log_p > 0.0f ? 0.0f : log_p;  // NaN stays
      shared.entry[slot_of(depth, rank)] = int8_t(entry);
    }
    if (entry == 0) {
      shared.num_entries[depth] = count;
    }
  }
}

// ---- Nodes --------------------------------------------------------------------------------------

// For the whole warp, which sees the node afterwards.
CUTLASS_DEVICE void add_node(Nodes& nodes, int n, int parent, int rank, float value, int lane) {
  if (lane == 0) {
    nodes.parent[n] = parent;
    nodes.rank[n] = rank;
    nodes.value[n] = value;
    nodes.first_child[n] = nodes.last_child[n] = nodes.next_sibling[n] = -1;
    if (parent < 0) {
      nodes.depth[n] = 0;
      nodes.mask[n] = 1;
      nodes.is_off_spine[n] = false;
    } else {
      nodes.depth[n] = nodes.depth[parent] + 1;
      nodes.mask[n] = nodes.mask[parent] | uint64_t(1) << n;
      nodes.is_off_spine[n] = nodes.is_off_spine[parent] || rank > 0;
      int const last = nodes.last_child[parent];
      (last < 0 ? nodes.first_child[parent] : nodes.next_sibling[last]) = n;
      nodes.last_child[parent] = n;
    }
  }
  __syncwarp();
}

CUTLASS_DEVICE bool has_entry(SharedStorage const& shared, int depths, int depth, int rank) {
  return depth < depths && 0 <= rank && rank < shared.num_entries[depth];
}

CUTLASS_DEVICE int add_shape(BuildTreeParams const& params, int depths, int limit,
                             SharedStorage& shared, int lane) {
  int num_nodes = 1;
#pragma unroll 1
  for (int i = 1; i < params.shape_nodes && num_nodes < limit; ++i) {
    int const parent = shared.shape_parent[i];
    int const place = 0 <= parent && parent < i ? shared.place[parent] : -1;
    int const rank = shared.shape_rank[i];
    bool const is_there = place >= 0 && has_entry(shared, depths, shared.nodes.depth[place], rank);
    if (lane == 0) {
      shared.place[i] = is_there ? num_nodes : -1;
    }
    if (is_there) {
      add_node(shared.nodes, num_nodes++, place, rank, 0.0f, lane);
    }
    __syncwarp();
  }
  return num_nodes;
}

// The key of what competes: its value above, and below the parent and the rank, the lower first.
CUTLASS_DEVICE uint64_t competitor(BuildTreeParams const& params, SharedStorage const& shared,
                                   int depths, int parent, int rank) {
  int const depth = shared.nodes.depth[parent];
  if (!has_entry(shared, depths, depth, rank)) {
    return kNoCandidate;
  }
  float const discount = shared.nodes.is_off_spine[parent] ? params.log_discount : 0.0f;
  float const value = shared.nodes.value[parent] + (shared.log_p[slot_of(depth, rank)] + discount);
  return value > -INFINITY ? candidate_key(value, parent * kMaxTopK + rank) : kNoCandidate;
}

CUTLASS_DEVICE int add_best(BuildTreeParams const& params, int depths, int limit,
                            SharedStorage& shared, int lane) {
  uint64_t places[2] = {kNoCandidate, kNoCandidate};  // place p is in lane p % 32
  places[0] = lane == 0 ? competitor(params, shared, depths, 0, 0) : kNoCandidate;
  float expected = 1.0f;  // tokens that a step emits in the mean
  int num_nodes = 1;
#pragma unroll 1
  while (num_nodes < limit) {
    uint64_t const best = warp_max(places[0] > places[1] ? places[0] : places[1]);
    if (best == kNoCandidate) {
      break;
    }
    int const parent = candidate_id(best) / kMaxTopK;
    int const rank = candidate_id(best) % kMaxTopK;
    float const value = from_ordered_bits(uint32_t(best >> 32));
    if (params.step_costs) {
      float const better = expected + expf(value);
      if (!(better * shared.step_costs[num_nodes - 1] > expected * shared.step_costs[num_nodes])) {
        break;
      }
      expected = better;
    }
    int const node = num_nodes++;
    add_node(shared.nodes, node, parent, rank, value, lane);
    uint64_t const sibling = competitor(params, shared, depths, parent, rank + 1);
    uint64_t const child = competitor(params, shared, depths, node, 0);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < 2; ++i) {
      places[i] = places[i] == best ? sibling : places[i];
      places[i] = node == i * kWarpSize + lane ? child : places[i];
    }
  }
  return num_nodes;
}

CUTLASS_DEVICE void write_node(BuildTreeParams const& params, SharedStorage const& shared,
                               int request, int node, bool is_there) {
  Nodes const& nodes = shared.nodes;
  int64_t const at = int64_t(request) * params.max_nodes + node;
  int64_t token = -1;
  if (is_there) {
    int const depth = nodes.depth[node] - 1;
    int64_t const* const source = node == 0
                                      ? params.root_tokens + request
                                      : params.ids + row_of(params, request, depth) * params.top_k +
                                            shared.entry[slot_of(depth, nodes.rank[node])];
    token = *source;
  }
  params.candidates[at] = token;
  params.parents[at] = is_there ? nodes.parent[node] : -1;
  params.depths[at] = is_there ? nodes.depth[node] : -1;
  params.next_token[at] = is_there ? nodes.first_child[node] : -1;
  params.next_sibling[at] = is_there ? nodes.next_sibling[node] : -1;
  params.retrieve_index[at] = is_there ? at : -1;
  params.mask[at] = is_there ? int64_t(nodes.mask[node]) : 0;
  params.positions[at] = is_there ? params.root_positions[request] + nodes.depth[node] : -1;
}

__global__ void __launch_bounds__(kWarpSize)
    build_tree_kernel(__grid_constant__ BuildTreeParams const params) {
  __shared__ SharedStorage shared;
  int const request = blockIdx.x;
  int const lane = threadIdx.x;
  int const depths = min(params.num_depths, kMaxDepths);

  wait_for_previous_kernel();
  let_next_kernel_start();

  int const budget = params.budgets ? params.budgets[request] : params.max_nodes;
  int const limit = min(budget, params.max_nodes);
  load_entries(params, request, depths, shared, lane);
  for (int i = lane; i < kMaxTreeNodes; i += kWarpSize) {
    if (params.step_costs && i < params.max_nodes) {
      shared.step_costs[i] = params.step_costs[i];
    }
    if (params.shape_parents && i < params.shape_nodes) {
      shared.shape_parent[i] = params.shape_parents[i];
      shared.shape_rank[i] = params.shape_ranks[i];
      shared.place[i] = 0;
    }
  }
  __syncwarp();
  score_entries(params, request, depths, shared, lane);
  __syncwarp();
  rank_entries(params, request, depths, shared, lane);
  __syncwarp();

  int num_nodes = 0;
  if (limit > 0) {
    add_node(shared.nodes, 0, -1, 0, 0.0f, lane);
    num_nodes = params.shape_parents ? add_shape(params, depths, limit, shared, lane)
                                     : add_best(params, depths, limit, shared, lane);
  }
  for (int node = lane; node < params.max_nodes; node += kWarpSize) {
    write_node(params, shared, request, node, node < num_nodes);
  }
  if (lane == 0) {
    params.num_nodes[request] = num_nodes;
  }
}

}  // namespace

cudaError_t launch_build_tree(BuildTreeParams const& params, cudaStream_t stream) {
  LaunchPlan const plan{
      .grid = dim3(params.num_requests), .block = dim3(kWarpSize), .stream = stream};
  return launch(&build_tree_kernel, plan, params);
}

}  // namespace p_eagle
