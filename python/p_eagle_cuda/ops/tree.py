"""From the drafter's marginals to a tree of drafts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from p_eagle_cuda import tree
from p_eagle_cuda._registry import (
    CpuBody,
    check,
    check_cache_layout,
    check_matrix,
    check_tensor,
    define,
)
from p_eagle_cuda.ops.head import MAX_TOP_K
from p_eagle_cuda.tree import MAX_NODES, Topology, Tree


def _build_tree(
    ids: Tensor,
    logits: Tensor,
    lse: Tensor,
    root_tokens: Tensor,
    root_positions: Tensor,
    shape_parents: Tensor | None,
    shape_ranks: Tensor | None,
    budgets: Tensor | None,
    noise_keys: Tensor | None,
    temperature: Tensor | None,
    step_costs: Tensor | None,
    log_discount: float,
    vocab_size: int,
    candidates: Tensor,
    parents: Tensor,
    depths: Tensor,
    next_token: Tensor,
    next_sibling: Tensor,
    retrieve_index: Tensor,
    mask: Tensor,
    positions: Tensor,
    num_nodes: Tensor,
) -> CpuBody:
    op = "build_tree"
    check_matrix(op, "ids", ids)
    check_matrix(op, "candidates", candidates)
    (rows, k), (B, N) = ids.shape, candidates.shape
    check(1 <= k <= MAX_TOP_K, f"{op}: `ids` must have 1 to {MAX_TOP_K} columns, got {k}")
    check(1 <= N <= MAX_NODES, f"{op}: `candidates` must have 1 to {MAX_NODES} columns, got {N}")
    check(
        rows % max(B, 1) == 0 and (B > 0 or rows == 0),
        f"{op}: `ids` must have K rows for each of {B} requests, got {rows}",
    )
    check(vocab_size >= 1, f"{op}: `vocab_size` must be at least 1, got {vocab_size}")
    # Above zero a child could be better than its parent, and no order would be best first.
    check(log_discount <= 0, f"{op}: `log_discount` must be at most 0, got {log_discount}")
    is_wide = logits.dtype == torch.float64 and not logits.is_cuda
    dtype = torch.float64 if is_wide else torch.float32
    check_tensor(op, "ids", ids, torch.int64, rows, k)
    check_tensor(op, "logits", logits, dtype, rows, k)
    check_tensor(op, "lse", lse, dtype, rows)
    check_tensor(op, "root_tokens", root_tokens, torch.int64, B)
    check_tensor(op, "root_positions", root_positions, torch.int64, B)
    shape = None
    if shape_parents is not None and shape_ranks is not None:
        M = shape_parents.numel()
        check(1 <= M <= MAX_NODES, f"{op}: a shape must have 1 to {MAX_NODES} nodes, got {M}")
        check_tensor(op, "shape_parents", shape_parents, torch.int32, M)
        check_tensor(op, "shape_ranks", shape_ranks, torch.int32, M)
        shape = Topology(shape_parents, shape_ranks)
    check(
        (shape_parents is None) == (shape_ranks is None),
        f"{op}: `shape_parents` and `shape_ranks` must both be given or both be None",
    )
    if budgets is not None:
        check_tensor(op, "budgets", budgets, torch.int32, B)
    check(
        (noise_keys is None) == (temperature is None),
        f"{op}: `noise_keys` and `temperature` must both be given or both be None",
    )
    if noise_keys is not None and temperature is not None:
        check(
            shape is not None,
            f"{op}: drafts that are drawn need a shape, or which of them are in the tree would "
            "depend on their law, and verification by rejection be biased",
        )
        check_tensor(op, "noise_keys", noise_keys, torch.int64, B)
        check_tensor(op, "temperature", temperature, torch.float32, B)
    if step_costs is not None:
        check_tensor(op, "step_costs", step_costs, torch.float32, N)
        check(shape is None, f"{op}: `step_costs` must be None for a tree of a given shape")
    outputs = Tree(
        candidates, parents, depths, next_token, next_sibling, retrieve_index, mask, positions,
        num_nodes,
    )  # fmt: skip
    for name, output in outputs._asdict().items():
        if name == "num_nodes":
            check_tensor(op, name, output, torch.int32, B)
        else:
            is_narrow = name in ("parents", "depths")
            check_tensor(op, name, output, torch.int32 if is_narrow else torch.int64, B, N)

    def on_cpu() -> None:
        made = tree.build_tree(
            ids, logits, lse, root_tokens, root_positions, N, vocab_size, shape, budgets,
            noise_keys, temperature, log_discount, step_costs,
        )  # fmt: skip
        for output, result in zip(outputs, made, strict=True):
            output.copy_(result)

    return on_cpu


define(
    "build_tree(Tensor ids, Tensor logits, Tensor lse, Tensor root_tokens, Tensor root_positions, "
    "Tensor? shape_parents, Tensor? shape_ranks, Tensor? budgets, Tensor? noise_keys, "
    "Tensor? temperature, Tensor? step_costs, float log_discount, int vocab_size, "
    "Tensor(a!) candidates, Tensor(b!) parents, Tensor(c!) depths, Tensor(d!) next_token, "
    "Tensor(e!) next_sibling, Tensor(f!) retrieve_index, Tensor(g!) mask, Tensor(h!) positions, "
    "Tensor(i!) num_nodes) -> ()",
    _build_tree,
)


def build_tree(
    ids: Tensor,
    logits: Tensor,
    lse: Tensor,
    root_tokens: Tensor,
    root_positions: Tensor,
    num_nodes: int,
    vocab_size: int,
    shape: Topology | None = None,
    out: Tree | None = None,
    *,
    budgets: Tensor | None = None,
    noise_keys: Tensor | None = None,
    temperature: Tensor | None = None,
    off_spine_discount: float = 1.0,
    step_costs: Tensor | None = None,
) -> Tree:
    """Choose which of the drafted tokens each request has verified: a chain, or a tree.

    The children of the root are entries of its request's first row, theirs of the second, and so
    on. An entry exists if its id is in the vocabulary and its logit finite; the ranks of a row are
    those of the entries that exist.

    With a `shape` a node has the entry of its rank; one whose entry does not exist is left out with
    all that descends from it. Without one the best nodes are chosen: the value of a node is the
    product of the probabilities ``exp(logits - lse)`` along its path, times `off_spine_discount`
    for each step that leaves a node other than the best of its depth, or a descendant of one: a
    parallel drafter cannot know which sibling was taken. Best first, of equals the child of the
    lower node, then the lower rank. All is so that a smaller budget takes the first nodes of a
    larger one.

    Args:
        ids: ``[B * K, k]`` int64 from `lm_head_topk`, k at most 16.
        logits: ``[B * K, k]`` float32 from there (on the CPU also float64).
        lse: ``[B * K]``, the same.
        root_tokens: ``[B]`` int64, the last token of each request.
        root_positions: ``[B]`` int64, where that is.
        num_nodes: N, 1 to 64, the most nodes of a tree, its root included.
        vocab_size: Of the target. Entries with other ids do not exist.
        shape: Which nodes there are, from `tree.chain` or `tree.topology`. None: the best.
        out: Where to write; allocated if None.
        budgets: ``[B]`` int32, the most nodes of a request's tree if fewer than N. 0 or less: the
            request has no tree; padding of a captured batch.
        noise_keys: ``[B]`` int64; given with `temperature` and a shape, or None.
        temperature: ``[B]`` float32. Where it is above 0 the ranks of a row are those of a sample
            without replacement of softmax(logits / temperature) over the entries that exist, as
            `verify` with the rule "rejection" or "block" needs it. Else the larger logit is first.
        off_spine_discount: In (0, 1]; about 0.3 was measured for one parallel drafter.
        step_costs: ``[N]`` float32, without a shape. ``step_costs[n - 1]`` is what a step with n
            nodes costs, in any unit. A tree then ends before the first node with which the expected
            tokens of a step, 1 and the values of the drafts, would not rise faster than its cost.

    Returns:
        `tree.Tree`. Nodes, links, masks and positions past a request's last node are -1 (masks 0).

        No content of the inputs makes an access leave its tensor. A node of a shape whose parent is
        not one of lower index, or not there, is left out.

    Numerics:
        Logarithms of values are added up in the dtype of the logits. Where two values, or two
        scores of drawn entries, are equal up to rounding, implementations may differ.

    Raises:
        ValueError: `off_spine_discount` is out of range, or an argument breaks the contract.
    """
    check(
        0 < off_spine_discount <= 1,
        f"build_tree: `off_spine_discount` must be above 0 and at most 1, got {off_spine_discount}",
    )
    if out is None:
        out = tree.empty_tree(root_tokens.numel(), num_nodes, ids.device)
    parents, ranks = (None, None) if shape is None else shape
    torch.ops.p_eagle.build_tree(
        ids, logits, lse, root_tokens, root_positions, parents, ranks, budgets, noise_keys,
        temperature, step_costs, math.log(off_spine_discount), vocab_size, *out,
    )  # fmt: skip
    return out


def _compact_cache(
    path: Tensor, row_start: Tensor, slots: Tensor, k_cache: Tensor, v_cache: Tensor
) -> CpuBody:
    op = "compact_cache"
    check_matrix(op, "path", path)
    B, N = path.shape
    check(1 <= N <= MAX_NODES, f"{op}: `path` must have 1 to {MAX_NODES} columns, got {N}")
    check(slots.ndim == 1, f"{op}: `slots` must be [R], got {slots.ndim}-D")
    check_tensor(op, "path", path, torch.int32, B, N)
    check_tensor(op, "row_start", row_start, torch.int32, B + 1)
    check_tensor(op, "slots", slots, torch.int64, slots.numel())
    check_cache_layout(op, k_cache, v_cache)

    def on_cpu() -> None:
        tree.compact_cache(path, row_start, slots, (k_cache, v_cache))

    return on_cpu


define(
    "compact_cache(Tensor path, Tensor row_start, Tensor slots, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache) -> ()",
    _compact_cache,
)


def compact_cache(
    path: Tensor, row_start: Tensor, slots: Tensor, k_cache: Tensor, v_cache: Tensor
) -> None:
    """Move the keys and values of the accepted nodes of trees to where those of a chain would be.

    Of one layer, in place: what is stored for row ``path[b, d]`` goes to the slot of row
    ``row_start[b] + d``, which the tree's node of that index has had. For a chain, whose path is
    its rows, nothing moves.

    Args:
        path: ``[B, N]`` int32 from `verify`, N at most 64.
        row_start: ``[B + 1]`` int32, as given there.
        slots: ``[R]`` int64, where the keys and values of each row are, ``block * block_size +
            offset``; all of a step differ. Rows whose slot is negative do not move.
        k_cache: ``[blocks, Nkv, block_size, D]`` of any dtype, the last dimension contiguous; the
            target's or the drafter's.
        v_cache: The same.

    Numerics:
        Bytes. All of a request is read before any of it is overwritten. A path ends where its rows
        do not ascend from the request's first; slots outside of the cache do not move.
    """
    torch.ops.p_eagle.compact_cache(path, row_start, slots, k_cache, v_cache)
