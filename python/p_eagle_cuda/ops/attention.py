"""Attention of the drafter's rows over the paged cache."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from p_eagle_cuda import attention_work, reference
from p_eagle_cuda._registry import (
    CpuBody,
    check,
    check_cache,
    check_matrix,
    check_tensor,
    check_working_dtype,
    compiled,
    count_rows,
    define,
)

MAX_KEYS = 2**30  # of a request, and the widest window
# Mirror csrc/bindings/attention.cpp.
CUDA_BLOCK_SIZES = (16, 32, 64, 128)
CUDA_ALIGNMENT = 16  # bytes, of the rows of a cache


class AttentionBuffers(NamedTuple):
    """What `plan_attention` and `paged_attention` need beside their inputs and outputs."""

    work: Tensor  # int32, the map, zeros at first; for a smaller pass see `slice_work`
    workspace: Tensor  # uint8, partial results; its first bytes are zero between calls


def attention_blocks(device: torch.device, head_dim: int) -> int:
    """The thread blocks that share the work on `device`; 1 on the CPU, where nobody does."""
    if device.type != "cuda":
        return 1
    gpu = torch.cuda.get_device_properties(device)
    per_sm = compiled().attention_blocks_per_sm(head_dim, gpu.shared_memory_per_multiprocessor)
    return int(gpu.multi_processor_count * per_sm)


def allocate_attention(
    num_rows: int,
    num_requests: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    device: torch.device | str = "cpu",
) -> AttentionBuffers:
    """Buffers for passes of up to `num_rows` rows and `num_requests` requests.

    Args:
        num_rows: R.
        num_requests: B.
        num_heads: Nq.
        num_kv_heads: Nkv.
        head_dim: D.
        device: Where.
    """
    device = torch.device(device)
    blocks, group = attention_blocks(device, head_dim), num_heads // num_kv_heads
    size = compiled().attention_work_size(num_rows, num_requests, group, blocks)
    workspace = compiled().attention_workspace_bytes(blocks, head_dim)
    return AttentionBuffers(
        work=torch.zeros(size, dtype=torch.int32, device=device),
        workspace=torch.zeros(
            workspace if device.type == "cuda" else 0, dtype=torch.uint8, device=device
        ),
    )


def slice_work(
    work: Tensor, num_rows: int, num_requests: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> Tensor:
    """The beginning of `work`, as large as a map for a pass of this size is."""
    blocks, group = attention_blocks(work.device, head_dim), num_heads // num_kv_heads
    return work[: compiled().attention_work_size(num_rows, num_requests, group, blocks)]


def _check_work(
    op: str, work: Tensor, num_rows: int, num_requests: int, group: int, num_kv_heads: int,
    max_keys: int,
) -> int:  # fmt: skip
    """The number of blocks that `work` is for, once it is known to be a map for this pass."""
    check(work.ndim == 1, f"{op}: `work` must be 1-D, got shape {list(work.shape)}")
    check_tensor(op, "work", work, torch.int32, work.numel())
    without_blocks = compiled().attention_work_size(num_rows, num_requests, group, 0)
    check(
        work.numel() > without_blocks,
        f"{op}: `work` must have more than {without_blocks} elements for {num_rows} rows of "
        f"{num_requests} requests with {group} query heads per KV head, got {work.numel()}",
    )
    check(
        0 <= max_keys <= MAX_KEYS,
        f"{op}: a request may have up to {MAX_KEYS} keys, the block table holds {max_keys}",
    )
    segments = compiled().attention_max_segments(num_rows, num_requests, group)
    tiles = max(-(-max_keys // attention_work.ATTENTION_TILE_KEYS), 1) * num_kv_heads
    check(
        segments * tiles < 2**31,
        f"{op}: expected less than 2**31 tiles of keys, got up to {segments} tiles of rows with "
        f"{tiles} each",
    )
    return work.numel() - int(without_blocks)


def _check_window(op: str, window: int) -> None:
    check(0 <= window <= MAX_KEYS, f"{op}: `window` must be 0 to {MAX_KEYS}, got {window}")


def plan_contract(
    op: str,
    row_start: Tensor,
    seq_lens: Tensor,
    positions: Tensor,
    num_heads: int,
    num_kv_heads: int,
    max_keys: int,
    window: int,
    is_tree: bool,
    work: Tensor,
) -> CpuBody:
    """The contract of `plan_attention`, and of ops that do it, too."""
    B, R = seq_lens.numel(), positions.numel()
    check_tensor(op, "row_start", row_start, torch.int32, B + 1)
    check_tensor(op, "seq_lens", seq_lens, torch.int32, B)
    check_tensor(op, "positions", positions, torch.int64, R)
    check(num_kv_heads > 0, f"{op}: `num_kv_heads` must be above 0, got {num_kv_heads}")
    check(
        num_heads > 0 and num_heads % num_kv_heads == 0,
        f"{op}: `num_heads` must be a multiple of num_kv_heads = {num_kv_heads}, got {num_heads}",
    )
    _check_window(op, window)
    group = num_heads // num_kv_heads
    num_blocks = _check_work(op, work, R, B, group, num_kv_heads, max_keys)

    def on_cpu() -> None:
        max_segments = compiled().attention_max_segments(R, B, group)
        plan = attention_work.plan_attention(
            row_start, seq_lens, positions, num_heads, num_kv_heads, max_keys, window, is_tree,
            num_blocks, max_segments,
        )  # fmt: skip
        work.zero_()
        header, table = work[:8], work[8 : 8 + 8 * max_segments].view(max_segments, 8)
        header[0] = len(plan.segments)
        header[1], header[2] = plan.num_tiles, plan.tiles_per_block
        table[: len(plan.segments), : plan.segments.shape[1]] = plan.segments
        work[8 + 8 * max_segments :] = torch.cat([plan.request_segment, plan.first_segment])

    return on_cpu


define(
    "plan_attention(Tensor row_start, Tensor seq_lens, Tensor positions, int num_heads, "
    "int num_kv_heads, int max_keys, int window, bool is_tree, Tensor(a!) work) -> ()",
    partial(plan_contract, "plan_attention"),
)


def plan_attention(
    row_start: Tensor,
    seq_lens: Tensor,
    positions: Tensor,
    num_heads: int,
    num_kv_heads: int,
    max_keys: int,
    window: int,
    is_tree: bool,
    work: Tensor,
) -> Tensor:
    """Divide the attention of a pass evenly among thread blocks; for every layer of the pass.

    For rows that the caller has laid out; `prepare_inputs` does it along with its own.

    The keys that the rows may see are cut into tiles of 64, and every block gets the same number of
    consecutive tiles, however ragged the requests are. Where a boundary falls depends on the whole
    batch, so the float32 sums over a request's keys are grouped differently in another batch.

    Args:
        row_start: ``[B + 1]`` int32; what is out of order or outside 0 .. R is clamped.
        seq_lens: ``[B]`` int32; clamped to 0 .. `max_keys`.
        positions: ``[R]`` int64, not decreasing within a request; with `is_tree` none below the
            request's first.
        num_heads: Nq.
        num_kv_heads: Nkv.
        max_keys: Keys that the block table has room for: ``max_blocks * block_size``.
        window: As in `paged_attention`.
        is_tree: Whether `paged_attention` will be given a `tree_mask`.
        work: ``[W]`` int32 from `allocate_attention` or `slice_work`, written. Its size says among
            how many blocks to divide: W is ``_C.attention_work_size(R, B, Nq // Nkv, blocks)``.

    Returns:
        `work`. The CPU and the kernel write the same bits.
    """
    torch.ops.p_eagle.plan_attention(
        row_start, seq_lens, positions, num_heads, num_kv_heads, max_keys, window, is_tree, work
    )
    return work


def _paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    block_table: Tensor,
    row_start: Tensor,
    seq_lens: Tensor,
    positions: Tensor,
    tree_mask: Tensor | None,
    sinks: Tensor | None,
    softmax_scale: float,
    window: int,
    work: Tensor,
    workspace: Tensor,
    out: Tensor,
) -> CpuBody:
    op = "paged_attention"
    check(q.ndim == 3, f"{op}: `q` must be [R, Nq, D], got {q.ndim}-D")
    dtype = check_working_dtype(op, "q", q)
    R, Nq, D = q.shape
    check_tensor(op, "q", q, dtype, R, Nq, D)
    check_cache(op, k_cache, v_cache, k_scale, v_scale, dtype)
    Nkv, block_size = k_cache.shape[1:3]
    check(k_cache.shape[3] == D, f"{op}: `k_cache` must have head size {D}, got {k_cache.shape[3]}")
    check(Nkv > 0 and Nq % Nkv == 0, f"{op}: Nq must be a multiple of Nkv = {Nkv}, got {Nq}")
    check_matrix(op, "block_table", block_table)
    B, max_blocks = block_table.shape
    check_tensor(op, "block_table", block_table, torch.int32, B, max_blocks)
    check_tensor(op, "row_start", row_start, torch.int32, B + 1)
    check_tensor(op, "seq_lens", seq_lens, torch.int32, B)
    check_tensor(op, "positions", positions, torch.int64, R)
    if tree_mask is not None:
        check_tensor(op, "tree_mask", tree_mask, torch.int64, R)
    if sinks is not None:
        check_tensor(op, "sinks", sinks, torch.float32, Nq)
    check(softmax_scale > 0, f"{op}: `softmax_scale` must be above 0, got {softmax_scale}")
    _check_window(op, window)
    _check_work(op, work, R, B, Nq // Nkv, Nkv, max_blocks * block_size)
    check(workspace.ndim == 1, f"{op}: `workspace` must be 1-D, got shape {list(workspace.shape)}")
    check_tensor(op, "workspace", workspace, torch.uint8, workspace.numel())
    check_tensor(op, "out", out, dtype, R, Nq * D)

    def on_cpu() -> None:
        n = count_rows(op, row_start[-1:], len(q))
        out[:n] = reference.paged_attention(
            q[:n], k_cache, v_cache, k_scale, v_scale, block_table, row_start, seq_lens,
            positions[:n], softmax_scale, tree_mask, sinks, window,
        )  # fmt: skip

    return on_cpu


define(
    "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor k_scale, Tensor v_scale, "
    "Tensor block_table, Tensor row_start, Tensor seq_lens, Tensor positions, Tensor? tree_mask, "
    "Tensor? sinks, float softmax_scale, int window, Tensor work, Tensor(a!) workspace, "
    "Tensor(b!) out) -> ()",
    _paged_attention,
)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    block_table: Tensor,
    row_start: Tensor,
    seq_lens: Tensor,
    positions: Tensor,
    tree_mask: Tensor | None = None,
    sinks: Tensor | None = None,
    softmax_scale: float | None = None,
    window: int = 0,
    work: Tensor | None = None,
    workspace: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of each row over its request's cached keys and values, causal by position.

    Without a `tree_mask` a row sees the keys of its request at positions up to its own, below
    ``seq_lens``. Real and mask rows have stored theirs before, so this is P-EAGLE's parallel mask:
    a mask row sees the context, the accepted rows and the earlier mask rows of its request.

    With one, the rows of a request are the nodes of a draft tree. The key of row j of the request,
    row ``row_start[b] + j``, stands in the cache at position ``positions[row_start[b]] + j``,
    whatever the row's own position is, and bit j of a row's mask says whether the row sees it. Keys
    before ``positions[row_start[b]]`` are visible to all, keys of rows past the 64th to none.

    A row that sees no key gets zeros.

    Args:
        q: ``[R, Nq, D]``, rotated.
        k_cache: ``[blocks, Nkv, block_size, D]``, any strides with a contiguous last dimension.
        v_cache: Like `k_cache`.
        k_scale: ``[1]`` float32 above 0, multiplies the keys of an FP8 cache.
        v_scale: ``[1]`` float32, multiplies the values of an FP8 cache.
        block_table: ``[B, max_blocks]`` int32. Entries past a request's keys are not read; the keys
            and values of a block that does not exist count as zeros in the kernel.
        row_start: ``[B + 1]`` int32 from `prepare_inputs`; rows past ``row_start[B]`` are not
            written.
        seq_lens: ``[B]`` int32, keys that may be seen, at most those of a request's blocks.
        positions: ``[R]`` int64, absolute, not decreasing within a request; with a `tree_mask`
            none below the request's first.
        tree_mask: ``[R]`` int64, a bit for each new row of the request; None: causal.
        sinks: ``[Nq]`` float32, a logit per head that joins the softmax without a value.
        softmax_scale: Multiplies the scores, above 0; ``D ** -0.5`` if None.
        window: A row at position p sees keys above ``p - window``; 0: all. With a `tree_mask` this
            is of the keys before the request's first row. What no row sees is not read.
        work: From `plan_attention` with the same arguments, for all layers of a pass; made here if
            None.
        workspace: ``[bytes]`` uint8 from `allocate_attention`, zeros when first used; no other call
            may use it at the same time. Made here if None. Not used on the CPU.
        out: ``[R, Nq * D]``, written.

    Returns:
        `out`.

    The kernel takes head sizes 64 and 128, blocks of 16, 32, 64 and 128 keys, and caches whose rows
    are 16-byte aligned.

    Numerics:
        Scores, softmax and sums in float32 or wider, one rounding per element of `out`. The kernel
        also rounds the softmax weights to 16 bits, and for an FP8 cache `q` to float16 after
        dividing each row by a power of two. Equal inputs give equal bits, whatever the order in
        which thread blocks finish; see `plan_attention` for another batch.
    """
    (_, Nq, D), (Nkv, block_size) = q.shape, k_cache.shape[1:3]
    if out is None:
        out = q.new_empty(q.shape[0], Nq * D)
    if work is None or workspace is None:
        made = allocate_attention(len(q), len(seq_lens), Nq, Nkv, D, q.device)
        workspace = made.workspace if workspace is None else workspace
        if work is None:
            work = plan_attention(
                row_start, seq_lens, positions, Nq, Nkv, block_table.shape[1] * block_size, window,
                tree_mask is not None, made.work,
            )  # fmt: skip
    torch.ops.p_eagle.paged_attention(
        q, k_cache, v_cache, k_scale, v_scale, block_table, row_start, seq_lens, positions,
        tree_mask, sinks, D**-0.5 if softmax_scale is None else softmax_scale, window, work,
        workspace, out,
    )  # fmt: skip
    return out
