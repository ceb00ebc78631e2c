"""The rows that go on in the last layer, which needs no more than keys and values of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from p_eagle_cuda import reference
from p_eagle_cuda._registry import (
    CpuBody,
    check,
    check_matrix,
    check_tensor,
    check_working_dtype,
    define,
)
from p_eagle_cuda.ops.attention import plan_contract
from p_eagle_cuda.reference import PrunedRows


def _prune_rows(
    x: Tensor,
    positions: Tensor,
    row_start: Tensor,
    sample_rows: Tensor,
    seq_lens: Tensor,
    out: Tensor,
    pruned_positions: Tensor,
    pruned_row_start: Tensor,
    pruned_sample_rows: Tensor,
    work: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    max_keys: int,
    window: int,
) -> CpuBody:
    op = "prune_rows"
    check_matrix(op, "x", x)
    dtype = check_working_dtype(op, "x", x)
    check(seq_lens.ndim == 1, f"{op}: `seq_lens` must be [B], got {seq_lens.ndim}-D")
    check(sample_rows.ndim == 1, f"{op}: `sample_rows` must be [B * K], got {sample_rows.ndim}-D")
    (R, H), B, N = x.shape, seq_lens.shape[0], sample_rows.shape[0]
    check(
        B >= 1 and N >= 1 and N % B == 0,
        f"{op}: `sample_rows` must have as many elements for each request, at least 1, got {N} "
        f"for {B} requests",
    )
    check_tensor(op, "x", x, dtype, R, H)
    check_tensor(op, "positions", positions, torch.int64, R)
    check_tensor(op, "row_start", row_start, torch.int32, B + 1)
    check_tensor(op, "sample_rows", sample_rows, torch.int32, N)
    check_tensor(op, "seq_lens", seq_lens, torch.int32, B)
    check_tensor(op, "out", out, dtype, N, H)
    check_tensor(op, "pruned_positions", pruned_positions, torch.int64, N)
    check_tensor(op, "pruned_row_start", pruned_row_start, torch.int32, B + 1)
    check_tensor(op, "pruned_sample_rows", pruned_sample_rows, torch.int32, N)
    plan = None
    if work is not None:
        plan = plan_contract(
            op, pruned_row_start, seq_lens, pruned_positions, num_heads, num_kv_heads, max_keys,
            window, False, work,
        )  # fmt: skip
    check(
        work is not None or num_heads == num_kv_heads == max_keys == window == 0,
        f"{op}: `num_heads`, `num_kv_heads`, `max_keys` and `window` are of a `work` map, got "
        f"{num_heads}, {num_kv_heads}, {max_keys} and {window} without one",
    )

    def on_cpu() -> None:
        pruned = reference.prune_rows(x, positions, row_start, sample_rows)
        n = len(pruned.x)
        out[:n], pruned_positions[:n] = pruned.x, pruned.positions
        pruned_row_start.copy_(pruned.row_start)
        pruned_sample_rows.copy_(pruned.sample_rows)
        if plan is not None:
            plan()

    return on_cpu


define(
    "prune_rows(Tensor x, Tensor positions, Tensor row_start, Tensor sample_rows, "
    "Tensor seq_lens, Tensor(a!) out, Tensor(b!) pruned_positions, Tensor(c!) pruned_row_start, "
    "Tensor(d!) pruned_sample_rows, Tensor(e!)? work, int num_heads, int num_kv_heads, "
    "int max_keys, int window) -> ()",
    _prune_rows,
)


def prune_rows(
    x: Tensor,
    positions: Tensor,
    row_start: Tensor,
    sample_rows: Tensor,
    seq_lens: Tensor,
    out: PrunedRows | None = None,
    *,
    work: Tensor | None = None,
    num_heads: int = 0,
    num_kv_heads: int = 0,
    max_keys: int = 0,
    window: int = 0,
) -> PrunedRows:
    """Take the last K rows of each request, those that drafts can be sampled from.

    In the last layer only these need more than a key and a value. A request that has rows has at
    least K of them. Kept rows are adjacent, in the order of the requests, from row 0 on.

    Args:
        x: ``[R, H]``, the residual stream.
        positions: ``[R]`` int64 from `prepare_inputs`.
        row_start: ``[B + 1]`` int32 from `prepare_inputs`.
        sample_rows: ``[B * K]`` int32 from `prepare_inputs`.
        seq_lens: ``[B]`` int32 from `prepare_inputs`.
        out: ``x`` of ``[B * K, H]``, ``positions`` of ``[B * K]``, ``row_start`` of ``[B + 1]`` and
            ``sample_rows`` of ``[B * K]``, written; the first two only as far as rows are kept.
        work: ``[W]`` int32 from `slice_work` for B * K rows, written: the map of the kept rows'
            attention, as `plan_attention` makes it; its header must be zero before the first
            call. None: not wanted.
        num_heads: Nq, with `work`.
        num_kv_heads: Nkv, with `work`.
        max_keys: As in `plan_attention`, with `work`.
        window: As in `paged_attention`, with `work`.

    Returns:
        `out`. ``sample_rows`` are -1 where they were before.

    Numerics:
        Bit-exact.
    """
    if out is None:
        N = sample_rows.numel()
        out = PrunedRows(
            x=x.new_empty(N, x.shape[1]), positions=positions.new_empty(N),
            row_start=torch.empty_like(row_start), sample_rows=torch.empty_like(sample_rows),
        )  # fmt: skip
    torch.ops.p_eagle.prune_rows(
        x, positions, row_start, sample_rows, seq_lens, *out, work, num_heads, num_kv_heads,
        max_keys, window,
    )  # fmt: skip
    return out
