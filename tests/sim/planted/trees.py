"""Bugs in the kernels of trees and verification."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_tree = partial(Bug, "build_tree")
_compact = partial(Bug, "compact_cache")
_kernels = partial(Bug, "verify", file="kernel.cuh")
_tiles = partial(Bug, "verify", file="tiles.cuh")
_choice = partial(Bug, "verify", file="choice.cuh")
_walk = partial(Bug, "verify", file="walk.cuh")

BUGS = (
    _tree(
        "no wait for the previous kernel",
        "  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _tree(
        "entries ranked before all have a score",
        "  score_entries(params, request, depths, shared, lane);\n  __syncwarp();\n",
        "  score_entries(params, request, depths, shared, lane);\n",
        finds="race",
    ),
    _tree(
        "a node read before it is written",
        "      nodes.last_child[parent] = n;\n    }\n  }\n  __syncwarp();\n",
        "      nodes.last_child[parent] = n;\n    }\n  }\n",
        finds="race",
    ),
    _tree(
        "entries whose logit is NaN",
        "is_there && is_before",
        "is_before",
        benign="no comparison with NaN holds, and NaN scores are the lowest, which come last",
    ),
    _tree(
        "ids outside of the vocabulary",
        "id < params.vocab_size &&",
        "id <= params.vocab_size &&",
        finds=WRONG_RESULT,
    ),
    _tree(
        "equal scores: the later entry first",
        "shared.scores[other] == score && j < entry",
        "shared.scores[other] == score && j > entry",
        finds=WRONG_RESULT,
    ),
    _tree(
        "all depths drawn with the same noise",
        "salt_at(kOrderNoise, depth)",
        "salt_at(kOrderNoise, 0)",
        finds=WRONG_RESULT,
    ),
    _tree(
        "temperature not applied",
        "(score - largest) / temperature",
        "(score - largest)",
        finds=WRONG_RESULT,
    ),
    _tree(
        "discount of a node's own rank",
        "shared.nodes.is_off_spine[parent] ? params.log_discount",
        "shared.nodes.is_off_spine[parent] || rank > 0 ? params.log_discount",
        finds=WRONG_RESULT,
    ),
    _tree(
        "a child of an off-spine node is on the spine",
        "nodes.is_off_spine[parent] || rank > 0;",
        "rank > 0;",
        finds=WRONG_RESULT,
    ),
    _tree(
        "no sibling competes",
        "places[i] == best ? sibling : places[i]",
        "places[i] == best ? kNoCandidate : places[i]",
        finds=WRONG_RESULT,
    ),
    _tree(
        "children of nodes from the 32nd on do not compete",
        "node == i * kWarpSize + lane ?",
        "i == 0 && node == lane ?",
        finds=WRONG_RESULT,
    ),
    _tree(
        "a tree that never stops",
        "      if (!(better * shared.step_costs[num_nodes - 1] >",
        "      if (false && !(better * shared.step_costs[num_nodes - 1] >",
        finds=WRONG_RESULT,
    ),
    _tree(
        "a mask without the node itself",
        "nodes.mask[parent] | uint64_t(1) << n",
        "nodes.mask[parent]",
        finds=WRONG_RESULT,
    ),
    _tree(
        "a mask of 32 bits",
        "uint64_t(1) << n",
        "uint64_t(1u << (n & 31))",
        finds=WRONG_RESULT,
    ),
    _tree(
        "a budget above N",
        "min(budget, params.max_nodes)",
        "budget",
        finds=WRONG_RESULT,
    ),
    _tree(
        "what does not exist is not written",
        "  for (int node = lane; node < params.max_nodes; node += kWarpSize) {\n    write_node",
        "  for (int node = lane; node < num_nodes; node += kWarpSize) {\n    write_node",
        finds=WRONG_RESULT,
    ),
    _compact(
        "no wait for the previous kernel",
        "  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _compact(
        "moves read before they are there",
        "    shared.to[depth] = to;\n  }\n  __syncthreads();\n",
        "    shared.to[depth] = to;\n  }\n",
        finds="race",
    ),
    _compact(
        "the path's length read before it is there",
        "      shared.num_depths = count;\n    }\n  }\n  __syncthreads();\n",
        "      shared.num_depths = count;\n    }\n  }\n",
        finds="race",
    ),
    _compact(
        "values stay",
        "blockIdx.y == 0 ? params.k_cache : params.v_cache",
        "params.k_cache",
        finds=WRONG_RESULT,
    ),
    _compact(
        "a path that goes on past its end",
        "path[depth] > path[depth - 1]",
        "true",
        finds="memory",
    ),
    _compact(
        "slots that are nowhere",
        "0 <= to && to < num_slots",
        "to < num_slots",
        finds="memory",
    ),
    _kernels(
        "no wait for the previous kernel",
        "  wait_for_previous_kernel();\n  let_next_kernel_start();\n\n  int const request",
        "  let_next_kernel_start();\n\n  int const request",
        finds="pdl",
    ),
    _kernels(
        "no wait for the tiles",
        "  wait_for_previous_kernel();\n  let_next_kernel_start();\n\n  VerifiedRows",
        "  let_next_kernel_start();\n\n  VerifiedRows",
        finds="pdl",
    ),
    _tiles(
        "warps' keys read before they are there",
        "      shared.keys[warp] = best;\n    }\n    __syncthreads();\n",
        "      shared.keys[warp] = best;\n    }\n",
        finds="race",
    ),
    _kernels(
        "a path read before it is there",
        "  __syncthreads();  // the path\n",
        finds="race",
    ),
    _tiles(
        "a lazy walk reads what is found before it is there",
        "    }\n  }\n  __syncthreads();\n}\n",
        "    }\n  }\n}\n",
        finds="race",
    ),
    _choice(
        "tiles' sums not relative to the same maximum",
        "weight = double(findings_.sum(tile)) * scale;",
        "weight = double(findings_.sum(tile));",
        finds=WRONG_RESULT,
    ),
    _choice(
        "the entries are not taken out of a tile",
        "weights[i] = place == i ? 0.0f : weights[i];",
        "",
        finds=WRONG_RESULT,
    ),
    _choice(
        "a choice read before it is made",
        "      atomicMax(&shared.token, token);\n    }\n    __syncthreads();\n",
        "      atomicMax(&shared.token, token);\n    }\n",
        finds="race",
    ),
    _walk(
        "the token after the accepted ones drawn at their position",
        "params_.root_positions[request_] + depth,",
        "params_.root_positions[request_] + depth - 1,",
        finds=WRONG_RESULT,
    ),
    _walk(
        "no residual between siblings",
        "        reject(residual, owner);\n",
        finds=WRONG_RESULT,
    ),
    _walk(
        "q does not lose what was rejected",
        "residual.q = lane_ == owner ? 0.0 : residual.q;",
        "",
        finds=WRONG_RESULT,
    ),
    _walk(
        "block verification with the residual of p alone",
        "residual_of(p, depth + 1, joint)",
        "residual_of(p, depth + 1, 1.0)",
        finds=WRONG_RESULT,
    ),
    _walk(
        "block verification that takes the first rejection for the last word",
        "    if (depth == 0 || accepts(chance, node)) {\n",
        "    if (depth != 0 && !accepts(chance, node)) return -1;\n    {\n",
        finds=WRONG_RESULT,
    ),
)
