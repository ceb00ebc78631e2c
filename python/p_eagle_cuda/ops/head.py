"""From the residual stream to drafted tokens."""

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

MAX_TOP_K = 16  # children of a tree node; a fused epilogue keeps this many per row in registers


def _lm_head_topk(
    x: Tensor,
    sample_rows: Tensor,
    norm_weight: Tensor,
    weight: Tensor,
    draft_to_target: Tensor | None,
    eps: float,
    ids: Tensor,
    logits: Tensor,
    lse: Tensor,
) -> CpuBody:
    op = "lm_head_topk"
    check_matrix(op, "x", x)
    check_matrix(op, "weight", weight)
    check_matrix(op, "ids", ids)
    dtype = check_working_dtype(op, "x", x)
    (R, H), Vd, (N, k) = x.shape, weight.shape[0], ids.shape
    limit = min(MAX_TOP_K, Vd)
    check(1 <= k <= limit, f"{op}: top_k must be 1 to {limit}, got {k}")
    check_tensor(op, "x", x, dtype, R, H)
    check_tensor(op, "sample_rows", sample_rows, torch.int32, N)
    check_tensor(op, "norm_weight", norm_weight, dtype, H)
    check_tensor(op, "weight", weight, dtype, Vd, H)
    if draft_to_target is not None:
        check_tensor(op, "draft_to_target", draft_to_target, torch.int64, Vd)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    check_tensor(op, "ids", ids, torch.int64, N, k)
    check_tensor(op, "logits", logits, wide, N, k)
    check_tensor(op, "lse", lse, wide, N)

    def on_cpu() -> None:
        results = reference.lm_head_topk(
            x, sample_rows, norm_weight, weight, draft_to_target, ids.shape[1], eps
        )
        for output, result in zip((ids, logits, lse), results, strict=True):
            output.copy_(result)

    return on_cpu


define(
    "lm_head_topk(Tensor x, Tensor sample_rows, Tensor norm_weight, Tensor weight, "
    "Tensor? draft_to_target, float eps, Tensor(a!) ids, Tensor(b!) logits, "
    "Tensor(c!) lse) -> ()",
    _lm_head_topk,
)


def lm_head_topk(
    x: Tensor,
    sample_rows: Tensor,
    norm_weight: Tensor,
    weight: Tensor,
    draft_to_target: Tensor | None,
    top_k: int,
    eps: float,
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Final norm and head of the sampled rows; only the k best tokens and the log-sum-exp leave.

    Args:
        x: ``[R, H]``, the residual stream after the last layer.
        sample_rows: ``[N]`` int32 from `prepare_inputs`, N = B * K; -1 for no row.
        norm_weight: ``[H]``, the final norm.
        weight: ``[Vd, H]``, ``lm_head.weight``.
        draft_to_target: ``[Vd]`` int64, the target's id of each draft id; None: they are the same.
        top_k: k, 1 to 16, at most Vd.
        eps: Added to the mean square.
        out: ``(ids, logits, lse)`` as returned, written.

    Returns:
        ``ids`` ``[N, k]`` int64 in the target's vocabulary, ``logits`` ``[N, k]`` and ``lse``
        ``[N]`` float32 (float64 for float64 x). Largest logit first; of equals the lower draft id
        first. NaN logits count as -inf. Rows with ``sample_rows < 0`` give -1, -inf, -inf.

    Numerics:
        Products accumulate in float32 or wider; the log-sum-exp runs over all Vd logits.
    """
    if out is None:
        N = sample_rows.numel()
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        out = (
            torch.empty(N, top_k, dtype=torch.int64, device=x.device),
            torch.empty(N, top_k, dtype=wide, device=x.device),
            torch.empty(N, dtype=wide, device=x.device),
        )
    torch.ops.p_eagle.lm_head_topk(x, sample_rows, norm_weight, weight, draft_to_target, eps, *out)
    return out
