"""From the residual stream to drafted tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from p_eagle_cuda import reference
from p_eagle_cuda._registry import (
    CpuBody,
    check,
    check_matrix,
    check_sum_squares,
    check_tensor,
    check_weight,
    check_working_dtype,
    check_workspace,
    define,
    lm_head_workspace,
    wide_dtype,
)
from p_eagle_cuda.noise import Noise

MAX_TOP_K = 16  # children of a tree node; as many as half a warp can hold, an entry a lane
MAX_SAMPLES = 256 * 256  # mirrors csrc/head/tiles.h


def _lm_head_topk(
    x: Tensor,
    sum_squares: Tensor | None,
    sample_rows: Tensor,
    norm_weight: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    vocab_subset: Tensor | None,
    draft_to_target: Tensor | None,
    noise_keys: Tensor | None,
    noise_positions: Tensor | None,
    temperature: Tensor | None,
    eps: float,
    ids: Tensor,
    logits: Tensor,
    lse: Tensor,
    workspace: Tensor,
) -> CpuBody:
    op = "lm_head_topk"
    check_matrix(op, "x", x)
    check_matrix(op, "weight", weight)
    check_matrix(op, "ids", ids)
    dtype = check_working_dtype(op, "x", x)
    (R, H), Vd, (N, k) = x.shape, weight.shape[0], ids.shape
    check_tensor(op, "x", x, dtype, R, H)
    check_sum_squares(op, sum_squares, dtype, R, H)
    check_tensor(op, "sample_rows", sample_rows, torch.int32, N)
    check_tensor(op, "norm_weight", norm_weight, dtype, H)
    check_weight(op, "weight", weight, weight_scale, dtype, Vd, H)
    num_ids = Vd
    if vocab_subset is not None:
        check_tensor(op, "vocab_subset", vocab_subset, torch.int32, vocab_subset.numel())
        num_ids = vocab_subset.numel()
        check(num_ids <= Vd, f"{op}: `vocab_subset` must have at most {Vd} ids, got {num_ids}")
    limit = min(MAX_TOP_K, num_ids)
    check(1 <= k <= limit, f"{op}: top_k must be 1 to {limit}, got {k}")
    if draft_to_target is not None:
        check_tensor(op, "draft_to_target", draft_to_target, torch.int64, Vd)
    noise = None
    if noise_keys is not None and noise_positions is not None and temperature is not None:
        check_tensor(op, "noise_keys", noise_keys, torch.int64, N)
        check_tensor(op, "noise_positions", noise_positions, torch.int64, N)
        check_tensor(op, "temperature", temperature, torch.float32, N)
        noise = Noise(noise_keys, noise_positions, temperature)
    check(
        noise is not None or noise_keys is noise_positions is temperature is None,
        f"{op}: `noise_keys`, `noise_positions` and `temperature` must all be given or all be None",
    )
    check_tensor(op, "ids", ids, torch.int64, N, k)
    check_tensor(op, "logits", logits, wide_dtype(dtype), N, k)
    check_tensor(op, "lse", lse, wide_dtype(dtype), N)
    check_workspace(op, workspace)

    def on_cpu() -> None:
        results = reference.lm_head_topk(
            x, sample_rows, norm_weight, reference.dequantize(weight, weight_scale, dtype),
            draft_to_target, k, eps, sum_squares, vocab_subset, noise,
        )  # fmt: skip
        for output, result in zip((ids, logits, lse), results, strict=True):
            output.copy_(result)

    return on_cpu


define(
    "lm_head_topk(Tensor x, Tensor? sum_squares, Tensor sample_rows, Tensor norm_weight, "
    "Tensor weight, Tensor? weight_scale, Tensor? vocab_subset, Tensor? draft_to_target, "
    "Tensor? noise_keys, Tensor? noise_positions, Tensor? temperature, float eps, "
    "Tensor(a!) ids, Tensor(b!) logits, Tensor(c!) lse, Tensor(d!) workspace) -> ()",
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
    *,
    sum_squares: Tensor | None = None,
    weight_scale: Tensor | None = None,
    vocab_subset: Tensor | None = None,
    noise_keys: Tensor | None = None,
    noise_positions: Tensor | None = None,
    temperature: Tensor | None = None,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Final norm and head of the sampled rows; only the k best tokens and the log-sum-exp leave.

    Args:
        x: ``[R, H]``, the residual stream after the last layer. On CUDA H is a multiple of 64.
        sample_rows: ``[N]`` int32 from `prepare_inputs`, N = B * K; -1 for no row.
        norm_weight: ``[H]``, the final norm.
        weight: ``[Vd, H]``, ``lm_head.weight``.
        draft_to_target: ``[Vd]`` int64, the target's id of each draft id; None: they are the same.
        top_k: k, 1 to 16, at most Vd, and at most S with a `vocab_subset`.
        eps: Added to the mean square.
        out: ``(ids, logits, lse)`` as returned, written.
        sum_squares: The sums of squares of x from `linear_residual`, if there are such; the
            sampled rows are read once more if None.
        weight_scale: ``[Vd]`` float32, of the rows of a float8_e4m3fn weight; None for others.
        vocab_subset: ``[S]`` int32, ascending and distinct: the draft ids that exist, and the rows
            of `weight` that are read. None: all. Like the weights it must not change while
            kernels run.
        noise_keys: ``[N]`` int64, a key of the row's request: its seed, mixed with what tells it
            from other requests of the seed. Given together with the next two, or all None.
        noise_positions: ``[N]`` int64, the absolute position that the row drafts.
        temperature: ``[N]`` float32; 0: as without noise. Where it is above, logits are divided by
            it, and the ids are the largest sums of logits and Gumbel noise: the first is a sample
            of the softmax, the others go on without replacement. `noise.noise_uniform` says
            which noise an id has; other rows have no part in it.
        workspace: Zeroed memory of this stream from `lm_head_workspace`; allocated if None.

    Returns:
        ``ids`` ``[N, k]`` int64 in the target's vocabulary, ``logits`` ``[N, k]`` and ``lse``
        ``[N]`` float32 (float64 for float64 x). Best first; of equals the lower draft id first.
        NaN logits count as -inf. Rows with ``sample_rows < 0`` give -1, -inf, -inf. `logits` are
        without the noise, so the draft's log-probability is ``logits - lse[:, None]``.

    Numerics:
        Products accumulate in float32 or wider; the log-sum-exp runs over all logits that exist.
        On CUDA a row's result does not depend on the other rows, nor on how many there are.
    """
    N = sample_rows.numel()
    if out is None:
        wide = wide_dtype(x.dtype)
        out = (
            torch.empty(N, top_k, dtype=torch.int64, device=x.device),
            torch.empty(N, top_k, dtype=wide, device=x.device),
            torch.empty(N, dtype=wide, device=x.device),
        )
    if workspace is None:
        workspace = lm_head_workspace(x.device, N, top_k)
    torch.ops.p_eagle.lm_head_topk(
        x, sum_squares, sample_rows, norm_weight, weight, weight_scale, vocab_subset,
        draft_to_target, noise_keys, noise_positions, temperature, eps, *out, workspace,
    )  # fmt: skip
    return out
