// Which drafts of a request are accepted, and the token after them. All warps of a block do the same,
// with the entries of a depth in their lanes, so that nobody waits for who decides.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "head/noise.cuh"
#include "head/order.cuh"
#include "head/tiles.h"
#include "ops.h"
#include "verification/choice.cuh"

namespace p_eagle {

struct TreeNodes {
  int token[kMaxTreeNodes];  // -1: none of the vocabulary
  int next_token[kMaxTreeNodes];
  int next_sibling[kMaxTreeNodes];
  int path[kMaxTreeNodes];
};

// A link as a node after `last`, or -1.
CUTLASS_DEVICE int link_to(int target, int last, int num_nodes) {
  return last < target && target < num_nodes ? target : -1;
}

// The residual of the target's law where drafts of law q are rejected: each lane has an entry that
// could be drawn, and `outside` is what is left of the other tokens.
struct LaneResidual {
  LaneEntry entry;    // in the target's row
  double q = 0.0;     // 0: no entry
  double left = 0.0;  // of the target at the entry
  double outside = 0.0;
  double weight_outside = 0.0;  // the same in weights of the row
};

template <class Config>
class Walk {
 public:
  using Law = RowLaw<Config>;

  struct SharedStorage {
    typename Law::SharedStorage choice;
    TileStorage tiles;
    TreeNodes nodes;
  };

  CUTLASS_DEVICE Walk(VerifyParams const& params, int request, int first_row, int num_nodes,
                      SharedStorage& shared)
      : params_(params),
        shared_(shared),
        request_(request),
        first_row_(first_row),
        num_nodes_(num_nodes),
        lane_(threadIdx.x % kWarpSize) {}

  // The length of the path, which is in shared.nodes.path for all threads after a barrier, and the
  // target's token after it.
  CUTLASS_DEVICE int run(int& token) {
    float const temperature = params_.temperature ? params_.temperature[request_] : 0.0f;
    float const of_drafts = params_.draft_temperature ? params_.draft_temperature[request_] : 0.0f;
    bool const is_drawn =
        params_.rule != VerifyRule::kTarget && temperature > 0.0f && of_drafts > 0.0f;
    End end{};
    double joint = 1.0;
    int node = 0;
    int depth = 0;
#pragma unroll 1
    for (; node >= 0; ++depth) {
      if (threadIdx.x == 0) {
        shared_.nodes.path[depth] = node;
      }
      if (params_.is_lazy) {
        find_row(node);
      }
      Law const p = law(node);
      if (!is_drawn) {
        node = follow_target(p, node, depth, token);
      } else if (params_.rule == VerifyRule::kBlock) {
        node = accept_in_block(p, node, depth, joint, end);
      } else {
        node = accept_one_by_one(p, node, depth, end);
      }
    }
    if (!is_drawn) {
      return depth;
    }
    token = choose_left(law(end.node), end.residual, end.depth + 1);
    return end.depth + 1;
  }

 private:
  CUTLASS_DEVICE Law law(int node) const { return Law(params_, request_, first_row_, node); }

  // Reads a node's row, which nobody has done before.
  CUTLASS_DEVICE void find_row(int node) {
    using Element = typename Config::Element;
    int64_t const row = first_row_ + node;
    RowSoftmax const softmax(params_, request_, row);
    TileFindings const findings(params_, request_, node, row);
    if (has_wide_rows<Element>(params_.logits, params_.vocab_size)) {
      find_tiles<LogitsConfig<Element, true>>(params_, row, softmax, findings, shared_.tiles);
    } else {
      find_tiles<LogitsConfig<Element, false>>(params_, row, softmax, findings, shared_.tiles);
    }
  }

  CUTLASS_DEVICE int first_child(int node) const {
    return link_to(shared_.nodes.next_token[node], node, num_nodes_);
  }

  CUTLASS_DEVICE int next_child(int node) const {
    return link_to(shared_.nodes.next_sibling[node], node, num_nodes_);
  }

  CUTLASS_DEVICE double choice_uniform(int depth) const {
    return fine_uniform(0, params_.root_positions[request_] + depth, params_.keys[request_],
                        kChoiceNoise);
  }

  CUTLASS_DEVICE bool accepts(double probability, int node) const {
    return fine_uniform(node, params_.root_positions[request_], params_.keys[request_],
                        kAcceptNoise) < probability;
  }

  // ---- The target's own choice ------------------------------------------------------------------

  CUTLASS_DEVICE int choose(Law const& law, int depth) {
    return law.is_random() ? law.choose(choice_uniform(depth) * law.total(), {}, shared_.choice)
                           : law.argmax();
  }

  // The child that the target chooses, or -1.
  CUTLASS_DEVICE int follow_target(Law const& p, int node, int depth, int& token) {
    token = choose(p, depth + 1);
    int child = first_child(node);
    while (child >= 0 && shared_.nodes.token[child] != token) {
      child = next_child(child);
    }
    return child;
  }

  // ---- Rejection --------------------------------------------------------------------------------

  // Of scale * p after a node, and q of the depth of its children.
  CUTLASS_DEVICE LaneResidual residual_of(Law const& law, int depth, double scale) const {
    LaneResidual residual;
    float const temperature = params_.draft_temperature[request_];
    float logit = -INFINITY;
    if (depth <= params_.num_depths && lane_ < params_.top_k) {
      int64_t const at =
          (int64_t(request_) * params_.num_depths + depth - 1) * params_.top_k + lane_;
      int64_t const id = params_.draft_ids[at];
      float const value = params_.draft_logits[at];
      if (0 <= id && id < params_.vocab_size && fabsf(value) <= FLT_MAX) {
        residual.entry.token = int(id);
        logit = value;
      }
    }
    float const largest = warp_max(logit);
    double const weight =
        residual.entry.token >= 0 ? double(expf((logit - largest) / temperature)) : 0.0;
    double const total = warp_sum(weight);
    residual.q = total > 0.0 ? weight / total : 0.0;
    bool const is_random = law.is_random();
    if (residual.entry.token >= 0) {
      float const own = is_random ? law.weight(residual.entry.token)
                                  : float(residual.entry.token == law.argmax());
      residual.entry.weight = own;
    }
    double const norm = is_random ? law.total() : 1.0;
    residual.left = scale * residual.entry.weight / norm;
    if (is_random) {
      residual.weight_outside = law.weight_outside(residual.entry);
      residual.outside = scale * residual.weight_outside / norm;
    } else {
      residual.outside = scale * (warp_sum(double(residual.entry.weight)) > 0.0 ? 0.0 : 1.0);
    }
    return residual;
  }

  // The lane whose entry has a node's token and can have been drawn, or -1.
  CUTLASS_DEVICE int find_entry(LaneResidual const& residual, int node) const {
    int const token = shared_.nodes.token[node];
    unsigned const found =
        __ballot_sync(kAllLanes, token >= 0 && residual.entry.token == token && residual.q > 0.0);
    return __ffs(found) - 1;
  }

  // Takes q away. Returns what is left, not normalised.
  CUTLASS_DEVICE double subtract(LaneResidual& residual) const {
    residual.left = fmax(residual.left - residual.q, 0.0);
    return warp_sum(residual.left) + residual.outside;
  }

  CUTLASS_DEVICE void reject(LaneResidual& residual, int owner) const {
    double const total = subtract(residual);
    if (total > 0.0) {
      residual.left /= total;
      residual.outside /= total;
    }
    residual.q = lane_ == owner ? 0.0 : residual.q;
    double const total_q = warp_sum(residual.q);
    residual.q = total_q > 0.0 ? residual.q / total_q : residual.q;
  }

  // Of what is left, entries in the order of lanes, then the others; of the law if nothing is.
  CUTLASS_DEVICE int choose_left(Law const& law, LaneResidual residual, int depth) {
    double of_entries = warp_sum(residual.left);
    if (!(of_entries + residual.outside > 0.0)) {
      residual = all_of(law);
      of_entries = 0.0;
    }
    double const goal = choice_uniform(depth) * (of_entries + residual.outside);
    unsigned const passed = __ballot_sync(
        kAllLanes, warp_inclusive_sum(residual.left, lane_) > goal && residual.left > 0.0);
    unsigned const weighty = __ballot_sync(kAllLanes, residual.left > 0.0);
    if (passed != 0 || !(residual.outside > 0.0)) {
      int const owner = passed != 0 ? __ffs(passed) - 1 : kWarpSize - 1 - __clz(weighty);
      return __shfl_sync(kAllLanes, residual.entry.token, owner);
    }
    if (!law.is_random()) {
      return law.argmax();
    }
    double const share = (goal - of_entries) / residual.outside;
    return law.choose(share * residual.weight_outside, residual.entry, shared_.choice);
  }

  // The law itself: no draft was rejected.
  CUTLASS_DEVICE static LaneResidual all_of(Law const& law) {
    LaneResidual residual;
    residual.outside = 1.0;
    residual.weight_outside = law.total();
    return residual;
  }

  // Where a walk ends, and of what its token is drawn.
  struct End {
    int node;
    int depth;
    LaneResidual residual;
  };

  // The first child that is accepted, or -1.
  CUTLASS_DEVICE int accept_one_by_one(Law const& p, int node, int depth, End& end) const {
    int child = first_child(node);
    if (child < 0) {
      end = {node, depth, all_of(p)};
      return child;
    }
    LaneResidual residual = residual_of(p, depth + 1, 1.0);
#pragma unroll 1
    for (; child >= 0; child = next_child(child)) {
      int const owner = find_entry(residual, child);
      if (owner >= 0) {
        double const ratio = __shfl_sync(kAllLanes, residual.left / residual.q, owner);
        if (accepts(fmin(ratio, 1.0), child)) {
          break;
        }
        reject(residual, owner);
      }
    }
    end = {node, depth, residual};
    return child;
  }

  // With M_0 = 1 and M_i = min(1, M_{i-1} p_i / q_i) at the drafts, R_i the sum of the residual of
  // M_i p: the longest i for which u_i < R_i / (R_i + 1 - M_i), or u_K < M_K. `joint` is M of the
  // node. Returns the next one whether or not this one is accepted; -1 if there is none.
  CUTLASS_DEVICE int accept_in_block(Law const& p, int node, int depth, double& joint,
                                     End& end) const {
    int const child = first_child(node);
    int owner = -1;
    LaneResidual residual = all_of(p);
    if (child >= 0) {
      LaneResidual const of_drafts = residual_of(p, depth + 1, joint);
      owner = find_entry(of_drafts, child);
      residual = owner >= 0 ? of_drafts : residual;
    }
    double chance = joint;
    double next_joint = 0.0;
    if (owner >= 0) {
      next_joint = fmin(__shfl_sync(kAllLanes, residual.left / residual.q, owner), 1.0);
      double const total = subtract(residual);
      double const norm = total + 1.0 - joint;
      chance = norm > 0.0 ? total / norm : 1.0;
    }
    if (depth == 0 || accepts(chance, node)) {
      end = {node, depth, residual};
    }
    joint = next_joint;
    return owner >= 0 ? child : -1;
  }

  VerifyParams const& params_;
  SharedStorage& shared_;
  int request_;
  int first_row_;
  int num_nodes_;
  int lane_;
};

}  // namespace p_eagle
