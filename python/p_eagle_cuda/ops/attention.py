"""Attention of the drafter's rows over the paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from p_eagle_cuda import reference
from p_eagle_cuda._registry import (
    CpuBody,
    check,
    check_cache,
    check_matrix,
    check_tensor,
    check_working_dtype,
    count_rows,
    define,
)


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
    softmax_scale: float,
    out: Tensor,
) -> CpuBody:
    op = "paged_attention"
    check(q.ndim == 3, f"{op}: `q` must be [R, Nq, D], got {q.ndim}-D")
    dtype = check_working_dtype(op, "q", q)
    R, Nq, D = q.shape
    check_tensor(op, "q", q, dtype, R, Nq, D)
    check_cache(op, k_cache, v_cache, k_scale, v_scale, dtype)
    Nkv = k_cache.shape[1]
    check(k_cache.shape[3] == D, f"{op}: `k_cache` must have head size {D}, got {k_cache.shape[3]}")
    check(Nq % Nkv == 0, f"{op}: Nq must be a multiple of Nkv = {Nkv}, got {Nq}")
    check_matrix(op, "block_table", block_table)
    B = block_table.shape[0]
    check_tensor(op, "block_table", block_table, torch.int32, B, block_table.shape[1])
    check_tensor(op, "row_start", row_start, torch.int32, B + 1)
    check_tensor(op, "seq_lens", seq_lens, torch.int32, B)
    check_tensor(op, "positions", positions, torch.int64, R)
    check_tensor(op, "out", out, dtype, R, Nq * D)

    def on_cpu() -> None:
        n = count_rows(op, row_start[-1:], len(q))
        out[:n] = reference.paged_attention(
            q[:n], k_cache, v_cache, k_scale, v_scale, block_table, row_start, seq_lens,
            positions[:n], softmax_scale,
        )  # fmt: skip

    return on_cpu


define(
    "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor k_scale, Tensor v_scale, "
    "Tensor block_table, Tensor row_start, Tensor seq_lens, Tensor positions, "
    "float softmax_scale, Tensor(a!) out) -> ()",
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
    softmax_scale: float,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention by absolute position over each request's cached keys and values.

    A row sees the keys of its request at positions up to its own, below ``seq_lens``. Real and mask
    rows have stored theirs before, so this is P-EAGLE's parallel mask: a mask row sees the context,
    the accepted rows and the earlier mask rows of its request.

    Args:
        q: ``[R, Nq, D]``, rotated.
        k_cache: ``[blocks, Nkv, block_size, D]``, any strides with a contiguous last dimension.
        v_cache: Like `k_cache`.
        k_scale: ``[1]`` float32, multiplies the keys of an FP8 cache.
        v_scale: ``[1]`` float32, multiplies the values of an FP8 cache.
        block_table: ``[B, max_blocks]`` int32.
        row_start: ``[B + 1]`` int32 from `prepare_inputs`; rows past ``row_start[B]`` are not
            written.
        seq_lens: ``[B]`` int32, keys that may be seen; with none a row gets zeros.
        positions: ``[R]`` int64, absolute.
        softmax_scale: Multiplies the scores, usually ``D ** -0.5``.
        out: ``[R, Nq * D]``, written.

    Returns:
        `out`.

    Numerics:
        Scores, softmax and sums in float32 or wider; one rounding per element of `out`.
    """
    if out is None:
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
    torch.ops.p_eagle.paged_attention(
        q, k_cache, v_cache, k_scale, v_scale, block_table, row_start, seq_lens, positions,
        softmax_scale, out,
    )  # fmt: skip
    return out
