"""Draft trees from one-shot marginals, as the executable specification has them.

A parallel drafter's K positions know nothing of each other's tokens, so all nodes of a depth have
the same children to choose from: the k entries of that depth. A tree is a choice among the products
of their probabilities.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from p_eagle_cuda.noise import Stream, gumbel

MAX_NODES = 64  # bits of a mask


class Tree(NamedTuple):
    """N nodes or fewer for each request, parents before children; node 0 is the root.

    The root is the last token that is known; its children are drafts of the token after it. What is
    past a request's last node is -1, a mask 0. `next_token`, `next_sibling` and `retrieve_index`
    are as SGLang's tree kernels have them.
    """

    candidates: Tensor  # [B, N] int64, token ids
    parents: Tensor  # [B, N] int32, -1 for the root
    depths: Tensor  # [B, N] int32
    next_token: Tensor  # [B, N] int64, the first child; -1: none
    next_sibling: Tensor  # [B, N] int64, the next child of the same parent; -1: none
    retrieve_index: Tensor  # [B, N] int64, b * N + node
    mask: Tensor  # [B, N] int64, bit j: the node is, or descends from, node j
    positions: Tensor  # [B, N] int64, absolute: the root's and the depth
    num_nodes: Tensor  # [B] int32


class Topology(NamedTuple):
    """A shape of trees: each node's parent, and its rank among the entries of its depth."""

    parents: Tensor  # [M] int32, of lower index; -1 for node 0, the root
    ranks: Tensor  # [M] int32, best first from 0 on


def chain(num_drafts: int) -> Topology:
    """The topology of a chain: the best entry of each depth."""
    return topology([(0,) * (depth + 1) for depth in range(num_drafts)])


def topology(paths: Sequence[Sequence[int]]) -> Topology:
    """The topology whose nodes have these paths of ranks from the root, besides the root itself.

    ``topology([(0,), (1,), (0, 0)])``: two first tokens, the better of which has a child. Nodes
    come in the order of `paths`.

    Raises:
        ValueError: A path is empty, negative, there twice, or before the path to its parent; or
            there are more than 63.
    """
    index: dict[tuple[int, ...], int] = {(): 0}
    if len(paths) >= MAX_NODES:
        raise ValueError(
            f"a tree has at most {MAX_NODES} nodes with its root, got {len(paths)} more"
        )
    for path in map(tuple, paths):
        if not path or min(path) < 0:
            raise ValueError(f"a path must be ranks of 0 or above, at least one, got {path}")
        if path in index:
            raise ValueError(f"each path must be there once, got {path} twice")
        if path[:-1] not in index:
            raise ValueError(f"the path {path[:-1]} must come before its extension {path}")
        index[path] = len(index)
    return Topology(
        torch.tensor([-1, *(index[tuple(path)[:-1]] for path in paths)], dtype=torch.int32),
        torch.tensor([0, *(path[-1] for path in paths)], dtype=torch.int32),
    )


def best_paths(accuracies: Sequence[Sequence[float]], num_drafts: int) -> list[tuple[int, ...]]:
    """The paths of the tree of so many drafts that accepts the most tokens in the mean.

    A node is accepted with the product of the accuracies along its path, if depths are independent;
    the sum of these is what is maximised, exactly: a child is never better than its parent, so the
    best nodes form a tree. For `topology`; best first, of equals the shorter path, then the lower
    ranks.

    Args:
        accuracies: For each depth and rank, how often the target's token is that entry when all
            before were right. Of a drafter's own, measured.
        num_drafts: At most 63; fewer are returned where no more have a chance.

    Raises:
        ValueError: An accuracy is not in [0, 1], or those of a depth exceed 1 together.
    """
    if not 0 <= num_drafts < MAX_NODES:
        raise ValueError(f"num_drafts must be 0 to {MAX_NODES - 1}, got {num_drafts}")
    for depth, row in enumerate(accuracies):
        if not all(0 <= a <= 1 for a in row) or math.fsum(row) > 1 + 1e-6:
            raise ValueError(f"accuracies of depth {depth} must be shares of one, got {list(row)}")

    def children(
        value: float, path: tuple[int, ...]
    ) -> Iterator[tuple[float, int, tuple[int, ...]]]:
        if len(path) < len(accuracies):
            for rank, accuracy in enumerate(accuracies[len(path)]):
                yield -value * accuracy, len(path) + 1, (*path, rank)

    frontier = list(children(1.0, ()))
    heapq.heapify(frontier)
    best: list[tuple[int, ...]] = []
    while frontier and len(best) < num_drafts and frontier[0][0] < 0:
        value, _, path = heapq.heappop(frontier)
        best.append(path)
        for child in children(-value, path):
            heapq.heappush(frontier, child)
    return best


def compact_cache(
    path: Tensor,  # [B, N] int32
    row_start: Tensor,  # [B + 1] int32
    slots: Tensor,  # [R] int64
    caches: Sequence[Tensor],  # of [blocks, Nkv, block_size, D]
) -> None:
    """Move keys and values of accepted nodes to the slots of a chain's.

    See `p_eagle_cuda.ops.compact_cache`.
    """
    num_slots, block_size = caches[0].shape[0] * caches[0].shape[2], caches[0].shape[2]
    moves: list[tuple[int, int]] = []
    for own, first in zip(path.tolist(), row_start.tolist(), strict=False):
        last = first - 1
        for depth, row in enumerate(own):
            if not (last < row < len(slots)) or first < 0 or own[0] != first:
                break
            source, target = int(slots[row]), int(slots[first + depth])
            is_in_cache = 0 <= min(source, target) <= max(source, target) < num_slots
            if row != first + depth and is_in_cache:
                moves.append((source, target))
            last = row
    if not moves:
        return
    sources, targets = torch.tensor(moves, dtype=torch.int64).unbind(1)
    for cache in caches:
        raw = cache.view(torch.uint8) if cache.dtype.itemsize == 1 else cache
        moved = raw[sources // block_size, :, sources % block_size].clone()
        raw[targets // block_size, :, targets % block_size] = moved


class _Node(NamedTuple):
    parent: int
    rank: int


def build_tree(
    ids: Tensor,  # [B * K, k] int64
    logits: Tensor,  # [B * K, k]
    lse: Tensor,  # [B * K]
    root_tokens: Tensor,  # [B] int64
    root_positions: Tensor,  # [B] int64
    num_nodes: int,  # N
    vocab_size: int,
    shape: Topology | None = None,
    budgets: Tensor | None = None,  # [B] int32
    noise_keys: Tensor | None = None,  # [B] int64
    temperature: Tensor | None = None,  # [B] float32
    log_discount: float = 0.0,
    step_costs: Tensor | None = None,  # [N] float32
) -> Tree:
    """Choose the nodes of each request's tree. See `p_eagle_cuda.ops.build_tree`."""
    B, k = root_tokens.numel(), ids.shape[1]
    K = len(ids) // max(B, 1)
    ids, logits, lse = ids.view(B, K, k), logits.view(B, K, k), lse.view(B, K)
    order = entry_order(ids, logits, vocab_size, noise_keys, root_positions, temperature)
    log_p = (logits - lse[..., None]).gather(2, order.clamp(min=0)).clamp(max=0)
    num_entries = (order >= 0).sum(dim=2)
    costs = None if step_costs is None else step_costs.to(log_p.dtype)
    tree = empty_tree(B, num_nodes, ids.device)
    for b in range(B):
        limit = num_nodes if budgets is None else min(int(budgets[b]), num_nodes)
        counts = num_entries[b].tolist()
        if limit < 1:
            continue
        if shape is not None:
            nodes = _static_nodes(shape, counts, limit)
        else:
            nodes = _best_nodes(log_p[b], counts, limit, log_discount, costs)
        _write_tree(tree, b, nodes, ids[b], order[b], int(root_tokens[b]), int(root_positions[b]))
    return tree


def entry_order(
    ids: Tensor,  # [B, K, k] int64
    logits: Tensor,  # [B, K, k]
    vocab_size: int,
    noise_keys: Tensor | None,  # [B] int64
    root_positions: Tensor,  # [B] int64
    temperature: Tensor | None,  # [B]
) -> Tensor:  # [B, K, k] int64
    """Which entry has each rank; -1 past the last that is valid.

    Without noise the larger logit is first, of equals the lower entry. With it, at a temperature
    above zero, the order is that of a sample without replacement of `draft_law`.
    """
    valid = are_valid(ids, logits, vocab_size)
    scores = logits
    if noise_keys is not None and temperature is not None:
        t = temperature[:, None, None]
        is_random = t > 0
        # The largest goes first: a tiny temperature must not turn it into infinity.
        scaled = logits - logits.masked_fill(~valid, float("-inf")).amax(dim=2, keepdim=True)
        scaled = scaled / torch.where(is_random, t, 1.0).to(logits.dtype)
        keys, positions = noise_keys[:, None], root_positions[:, None]
        added = [
            gumbel(keys, positions, ids[:, depth].clamp(min=0), Stream.ORDER.salt(depth))
            for depth in range(ids.shape[1])
        ]
        if added:
            scores = torch.where(is_random, scaled + torch.stack(added, dim=1), logits)
    lowest = torch.finfo(scores.dtype).min
    scores = scores.clamp(min=lowest).masked_fill(~valid, float("-inf"))
    order = scores.sort(dim=2, descending=True, stable=True).indices
    rank = torch.arange(ids.shape[2], device=ids.device)
    return order.masked_fill(rank >= valid.sum(dim=2, keepdim=True), -1)


def are_valid(ids: Tensor, logits: Tensor, vocab_size: int) -> Tensor:
    """Which entries exist: ids of the vocabulary whose logit is finite."""
    return (ids >= 0) & (ids < vocab_size) & logits.isfinite()


def _static_nodes(shape: Topology, counts: Sequence[int], limit: int) -> list[_Node]:
    """The nodes of a topology whose entries exist; what descends from others does not exist."""
    nodes, depths = [_Node(-1, 0)], [0]
    place = {0: 0}  # of a node of the topology among those that exist
    for i, (parent, rank) in enumerate(
        zip(shape.parents.tolist()[1:], shape.ranks.tolist()[1:], strict=True), start=1
    ):
        if len(nodes) == limit:
            break
        if parent >= i or parent not in place:
            continue
        depth = depths[place[parent]]
        if depth < len(counts) and 0 <= rank < counts[depth]:
            place[i] = len(nodes)
            nodes.append(_Node(place[parent], rank))
            depths.append(depth + 1)
    return nodes


def _best_nodes(
    log_p: Tensor,  # [K, k] by rank
    counts: Sequence[int],
    limit: int,
    log_discount: float,
    step_costs: Tensor | None,  # [N]
) -> list[_Node]:
    """Best first by what the log-probabilities add up to, in the dtype of `log_p`.

    Whoever joins the tree lets its first child and its next sibling compete: neither is better than
    it, so the nodes are the best ones there are.
    """
    zero = log_p.new_zeros(())
    discount = torch.tensor(log_discount, dtype=log_p.dtype)
    nodes, depths, log_values, is_off = [_Node(-1, 0)], [0], [zero], [False]
    expected = zero + 1  # tokens that a step emits in the mean
    frontier: list[tuple[float, int, int, Tensor]] = []

    def compete(parent: int, rank: int) -> None:
        depth = depths[parent]
        if depth < len(counts) and rank < counts[depth]:
            step = log_p[depth, rank] + (discount if is_off[parent] else zero)
            value = log_values[parent] + step
            if value > float("-inf"):
                heapq.heappush(frontier, (-float(value), parent, rank, value))

    compete(0, 0)
    while frontier and len(nodes) < limit:
        _, parent, rank, value = heapq.heappop(frontier)
        n = len(nodes)
        if step_costs is not None:
            better = expected + value.exp()
            if not better * step_costs[n - 1] > expected * step_costs[n]:
                break
            expected = better
        nodes.append(_Node(parent, rank))
        depths.append(depths[parent] + 1)
        log_values.append(value)
        is_off.append(is_off[parent] or rank > 0)
        compete(n, 0)
        compete(parent, rank + 1)
    return nodes


def empty_tree(num_requests: int, num_nodes: int, device: torch.device) -> Tree:
    """Trees without nodes."""

    def new(dtype: torch.dtype) -> Tensor:
        return torch.full((num_requests, num_nodes), -1, dtype=dtype, device=device)

    return Tree(
        candidates=new(torch.int64),
        parents=new(torch.int32),
        depths=new(torch.int32),
        next_token=new(torch.int64),
        next_sibling=new(torch.int64),
        retrieve_index=new(torch.int64),
        mask=new(torch.int64).zero_(),
        positions=new(torch.int64),
        num_nodes=torch.zeros(num_requests, dtype=torch.int32, device=device),
    )


def _write_tree(
    tree: Tree, b: int, nodes: Sequence[_Node], ids: Tensor, order: Tensor, root: int, position: int
) -> None:
    n = len(nodes)
    depths, masks, last_child = [0] * n, [0] * n, [-1] * n
    tokens, next_token, next_sibling = [root] * n, [-1] * n, [-1] * n
    for i, (parent, rank) in enumerate(nodes):
        masks[i] = 1 << i
        if parent < 0:
            continue
        depths[i] = depths[parent] + 1
        masks[i] |= masks[parent]
        tokens[i] = int(ids[depths[parent], order[depths[parent], rank]])
        if last_child[parent] < 0:
            next_token[parent] = i
        else:
            next_sibling[last_child[parent]] = i
        last_child[parent] = i
    rows: list[tuple[Tensor, list[int]]] = [
        (tree.candidates, tokens),
        (tree.parents, [node.parent for node in nodes]),
        (tree.depths, depths),
        (tree.next_token, next_token),
        (tree.next_sibling, next_sibling),
        (tree.retrieve_index, [b * tree.candidates.shape[1] + i for i in range(n)]),
        (tree.mask, [mask - (mask >> 63 << 64) for mask in masks]),
        (tree.positions, [position + depth for depth in depths]),
    ]
    for output, row in rows:
        output[b, :n] = torch.tensor(row, dtype=output.dtype)
    tree.num_nodes[b] = n
