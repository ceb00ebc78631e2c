"""The linear parts of a decoder layer, each with what precedes and follows it."""

from __future__ import annotations

import torch
from torch import Tensor

from p_eagle_cuda import reference
from p_eagle_cuda._registry import (
    CpuBody,
    check,
    check_cache,
    check_matrix,
    check_num_rows,
    check_sum_squares,
    check_tensor,
    check_weight,
    check_working_dtype,
    check_workspace,
    count_rows,
    define,
    linear_workspace,
    wide_dtype,
)

CUDA_HEAD_DIMS = (64, 128)


def _qkv_rope_cache(
    x: Tensor,
    norm_weight: Tensor | None,
    sum_squares: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    fp8_activations: bool,
    bias: Tensor | None,
    mask_heads: Tensor | None,
    source_row: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    rope: Tensor,
    positions: Tensor,
    slots: Tensor,
    num_rows: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    eps: float,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    workspace: Tensor,
) -> CpuBody:
    op = "qkv_rope_cache"
    check_matrix(op, "x", x)
    dtype = check_working_dtype(op, "x", x)
    check(q.ndim == 3, f"{op}: `q` must be [R, Nq, D], got {q.ndim}-D")
    check(
        k_cache.ndim == 4, f"{op}: `k_cache` must be [blocks, Nkv, block, D], got {k_cache.ndim}-D"
    )
    (R, Hin), (_, Nq, D), Nkv = x.shape, q.shape, k_cache.shape[1]
    heads = Nq + 2 * Nkv
    check_tensor(op, "x", x, dtype, R, Hin)
    if norm_weight is not None:
        check_tensor(op, "norm_weight", norm_weight, dtype, Hin)
    check_sum_squares(op, sum_squares, dtype, R, Hin)
    check_weight(
        op, "weight", weight, weight_scale, dtype, heads * D, Hin, fp8_activations=fp8_activations
    )
    check(
        not x.is_cuda or D in CUDA_HEAD_DIMS,
        f"{op}: the head size must be one of {CUDA_HEAD_DIMS} on CUDA, got {D}",
    )
    if bias is not None:
        check_tensor(op, "bias", bias, dtype, heads * D)
    check(
        (mask_heads is None) == (source_row is None),
        f"{op}: `mask_heads` and `source_row` must both be given or both be None",
    )
    if mask_heads is not None and source_row is not None:
        check_tensor(op, "source_row", source_row, torch.int32, R)
        check_tensor(op, "mask_heads", mask_heads, wide_dtype(dtype), heads * D)
    check(
        (q_norm is None) == (k_norm is None),
        f"{op}: `q_norm` and `k_norm` must both be given or both be None",
    )
    if q_norm is not None and k_norm is not None:
        check_tensor(op, "q_norm", q_norm, dtype, D)
        check_tensor(op, "k_norm", k_norm, dtype, D)
    check_matrix(op, "rope", rope)
    check_tensor(op, "rope", rope, torch.float32, rope.shape[0], D)
    check_tensor(op, "positions", positions, torch.int64, R)
    check_tensor(op, "slots", slots, torch.int64, R)
    check_num_rows(op, num_rows)
    check_tensor(op, "q", q, dtype, R, Nq, D)
    check_cache(op, k_cache, v_cache, k_scale, v_scale, dtype)
    check(k_cache.shape[3] == D, f"{op}: `k_cache` must have head size {D}, got {k_cache.shape[3]}")
    check_workspace(op, workspace)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, len(x))
        sums = None if sum_squares is None else sum_squares[:, :n]
        q[:n], k, v = reference.qkv_rope(
            x[:n], norm_weight, reference.dequantize(weight, weight_scale, dtype), bias, q_norm,
            k_norm, rope, positions[:n], k_cache.shape[1], eps, sums, mask_heads,
            None if source_row is None else source_row[:n], fp8_activations,
        )  # fmt: skip
        reference.write_cache(k, slots[:n], k_cache, k_scale)
        reference.write_cache(v, slots[:n], v_cache, v_scale)

    return on_cpu


define(
    "qkv_rope_cache(Tensor x, Tensor? norm_weight, Tensor? sum_squares, Tensor weight, "
    "Tensor? weight_scale, bool fp8_activations, Tensor? bias, Tensor? mask_heads, "
    "Tensor? source_row, Tensor? q_norm, Tensor? k_norm, Tensor rope, Tensor positions, "
    "Tensor slots, Tensor num_rows, Tensor k_scale, Tensor v_scale, float eps, Tensor(a!) q, "
    "Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor(d!) workspace) -> ()",
    _qkv_rope_cache,
)


def qkv_rope_cache(
    x: Tensor,
    norm_weight: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    rope: Tensor,
    positions: Tensor,
    slots: Tensor,
    num_rows: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    eps: float,
    k_cache: Tensor,
    v_cache: Tensor,
    q: Tensor | None = None,
    *,
    sum_squares: Tensor | None = None,
    weight_scale: Tensor | None = None,
    fp8_activations: bool = False,
    mask_heads: Tensor | None = None,
    source_row: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """Project to query, key and value, rotate, and store key and value in the paged cache.

    Args:
        x: ``[R, Hin]``; Hin is 2H in the first layer. On CUDA it is a multiple of 64, and D is 64
            or 128.
        norm_weight: ``[Hin]`` RMSNorm applied to x first, or None if x is normed.
        weight: ``[(Nq + 2 Nkv) * D, Hin]``, rows of q, then k, then v.
        bias: ``[(Nq + 2 Nkv) * D]`` or None.
        q_norm: ``[D]`` RMSNorm of each query head, or None. Given together with `k_norm`.
        k_norm: ``[D]`` RMSNorm of each key head, or None.
        rope: ``[P, D]`` float32 from `p_eagle_cuda.rope.rope_table`.
        positions: ``[R]`` int64; past P the last row of `rope` is taken.
        slots: ``[R]`` int64, ``block * block_size + offset``; -1 stores nothing.
        num_rows: ``[1]`` int32.
        k_scale: ``[1]`` float32; an FP8 cache stores ``key / k_scale``. Not used for others.
        v_scale: ``[1]`` float32, the same for values.
        eps: Added to the mean square of the norms.
        k_cache: ``[blocks, Nkv, block_size, D]``, any strides with a contiguous last dimension;
            written. Working dtype, float8_e4m3fn or float8_e5m2.
        v_cache: Like `k_cache`; the two may be halves of one tensor.
        q: ``[R, Nq, D]``, written.
        sum_squares: The sums of squares of x from `linear_residual`, if there are such; x is read
            once more if None.
        weight_scale: ``[(Nq + 2 Nkv) * D]`` float32, of the rows of a float8_e4m3fn weight; None
            for others.
        fp8_activations: Whether the rows that are multiplied, normed ones after the norm, are
            rounded to FP8, as `precision.quantize_activations` does; only with FP8 weights.
        mask_heads: ``[(Nq + 2 Nkv) * D]`` float32 (float64 for float64), what the projection and
            its bias make of every mask row of the first layer, whose input is always the same;
            None: mask rows are multiplied like the others.
        source_row: ``[R]`` int32 from `prepare_inputs`, with `mask_heads`; negative marks a mask
            row, whose row of x is not read on CUDA.
        workspace: Zeroed memory of this stream from `linear_workspace`; allocated if None.

    Returns:
        `q`.

    Numerics:
        Products accumulate in float32 or wider; norms and rotation are float32. FP8 values
        saturate at the largest finite one.
    """
    if q is None:
        D = rope.shape[-1]
        q = x.new_empty(x.shape[0], weight.shape[0] // D - 2 * k_cache.shape[1], D)
    if workspace is None:
        workspace = linear_workspace(x.device)
    torch.ops.p_eagle.qkv_rope_cache(
        x, norm_weight, sum_squares, weight, weight_scale, fp8_activations, bias, mask_heads,
        source_row, q_norm, k_norm, rope, positions, slots, num_rows, k_scale, v_scale, eps, q,
        k_cache, v_cache, workspace,
    )  # fmt: skip
    return q


def _linear_residual(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    fp8_activations: bool,
    bias: Tensor | None,
    num_rows: Tensor,
    residual: Tensor,
    sum_squares: Tensor,
    workspace: Tensor,
) -> CpuBody:
    op = "linear_residual"
    check_matrix(op, "x", x)
    check_matrix(op, "weight", weight)
    dtype = check_working_dtype(op, "x", x)
    (R, Hin), H = x.shape, weight.shape[0]
    check_tensor(op, "x", x, dtype, R, Hin)
    check_weight(op, "weight", weight, weight_scale, dtype, H, Hin, fp8_activations=fp8_activations)
    check(not x.is_cuda or H % 8 == 0, f"{op}: H must be a multiple of 8 on CUDA, got {H}")
    if bias is not None:
        check_tensor(op, "bias", bias, dtype, H)
    check_num_rows(op, num_rows)
    check_tensor(op, "residual", residual, dtype, R, H)
    check_sum_squares(op, sum_squares, dtype, R, H)
    check_workspace(op, workspace)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, len(x))
        full_weight = reference.dequantize(weight, weight_scale, dtype)
        residual[:n] = reference.linear_residual(
            x[:n], full_weight, bias, residual[:n], fp8_activations
        )
        sum_squares[:, :n] = reference.sum_squares(residual[:n])

    return on_cpu


define(
    "linear_residual(Tensor x, Tensor weight, Tensor? weight_scale, bool fp8_activations, "
    "Tensor? bias, Tensor num_rows, Tensor(a!) residual, Tensor(b!) sum_squares, "
    "Tensor(c!) workspace) -> ()",
    _linear_residual,
)


def linear_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_rows: Tensor,
    residual: Tensor,
    sum_squares: Tensor | None = None,
    *,
    weight_scale: Tensor | None = None,
    fp8_activations: bool = False,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a projection to the residual stream: ``residual += x @ weight.T + bias``.

    Args:
        x: ``[R, Hin]``. On CUDA Hin is a multiple of 64, H of 8.
        weight: ``[H, Hin]``.
        bias: ``[H]`` or None.
        num_rows: ``[1]`` int32.
        residual: ``[R, H]``, read and written.
        sum_squares: ``[ceil(H / 64), R]`` float32 (float64 for float64), written: of each row of
            the new residual, the sum of squares of each 64 columns. The op that norms the residual
            next takes them.
        weight_scale: ``[H]`` float32, of the rows of a float8_e4m3fn weight; None for others.
        fp8_activations: Whether the rows that are multiplied, normed ones after the norm, are
            rounded to FP8, as `precision.quantize_activations` does; only with FP8 weights.
        workspace: Zeroed memory of this stream from `linear_workspace`; allocated if None.

    Returns:
        ``(residual, sum_squares)``.

    Numerics:
        Products accumulate in float32 or wider; at most two roundings per element. On CUDA a row's
        result does not depend on the other rows, nor on R as long as that is at most 32, or on
        Hopper from 33 to 256, but for FP8 weights with other activations. There products of FP8
        with FP8 accumulate on tensor cores, which keep about 13 bits, over 128 columns, and these
        sums in float32.
    """
    if sum_squares is None:
        groups = -(-residual.shape[1] // reference.STATISTIC_COLUMNS)
        sum_squares = x.new_empty(groups, residual.shape[0], dtype=wide_dtype(x.dtype))
    if workspace is None:
        workspace = linear_workspace(x.device)
    torch.ops.p_eagle.linear_residual(
        x, weight, weight_scale, fp8_activations, bias, num_rows, residual, sum_squares, workspace
    )
    return residual, sum_squares


def _norm_swiglu(
    x: Tensor,
    norm_weight: Tensor,
    sum_squares: Tensor | None,
    gate_up: Tensor,
    gate_up_scale: Tensor | None,
    fp8_activations: bool,
    num_rows: Tensor,
    eps: float,
    out: Tensor,
    workspace: Tensor,
) -> CpuBody:
    op = "norm_swiglu"
    check_matrix(op, "x", x)
    check_matrix(op, "gate_up", gate_up)
    dtype = check_working_dtype(op, "x", x)
    (R, H), rows = x.shape, gate_up.shape[0]
    check(rows % 2 == 0, f"{op}: `gate_up` must have an even number of rows, got {rows}")
    check_tensor(op, "x", x, dtype, R, H)
    check_tensor(op, "norm_weight", norm_weight, dtype, H)
    check_sum_squares(op, sum_squares, dtype, R, H)
    check_weight(
        op, "gate_up", gate_up, gate_up_scale, dtype, rows, H, fp8_activations=fp8_activations
    )
    check_num_rows(op, num_rows)
    check_tensor(op, "out", out, dtype, R, rows // 2)
    check_workspace(op, workspace)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, len(x))
        sums = None if sum_squares is None else sum_squares[:, :n]
        full_weight = reference.dequantize(gate_up, gate_up_scale, dtype)
        out[:n] = reference.norm_swiglu(x[:n], norm_weight, full_weight, eps, sums, fp8_activations)

    return on_cpu


define(
    "norm_swiglu(Tensor x, Tensor norm_weight, Tensor? sum_squares, Tensor gate_up, "
    "Tensor? gate_up_scale, bool fp8_activations, Tensor num_rows, float eps, Tensor(a!) out, "
    "Tensor(b!) workspace) -> ()",
    _norm_swiglu,
)


def norm_swiglu(
    x: Tensor,
    norm_weight: Tensor,
    gate_up: Tensor,
    num_rows: Tensor,
    eps: float,
    out: Tensor | None = None,
    *,
    sum_squares: Tensor | None = None,
    gate_up_scale: Tensor | None = None,
    fp8_activations: bool = False,
    workspace: Tensor | None = None,
) -> Tensor:
    """Norm, project to gate and up, and gate: ``out = silu(gate) * up``.

    Args:
        x: ``[R, H]``, the residual stream. On CUDA H is a multiple of 64.
        norm_weight: ``[H]``, ``post_attention_layernorm``.
        gate_up: ``[2I, H]``, the gate's rows, then the up projection's.
        num_rows: ``[1]`` int32.
        eps: Added to the mean square.
        out: ``[R, I]``, written.
        sum_squares: The sums of squares of x from `linear_residual`, if there are such; x is read
            once more if None.
        gate_up_scale: ``[2I]`` float32, of the rows of a float8_e4m3fn weight; None for others.
        fp8_activations: Whether the rows that are multiplied, normed ones after the norm, are
            rounded to FP8, as `precision.quantize_activations` does; only with FP8 weights.
        workspace: Zeroed memory of this stream from `linear_workspace`; allocated if None.

    Returns:
        `out`.

    Numerics:
        Products accumulate in float32 or wider; the norm and SiLU are float32.
    """
    if out is None:
        out = x.new_empty(x.shape[0], gate_up.shape[0] // 2)
    if workspace is None:
        workspace = linear_workspace(x.device)
    torch.ops.p_eagle.norm_swiglu(
        x, norm_weight, sum_squares, gate_up, gate_up_scale, fp8_activations, num_rows, eps, out,
        workspace,
    )  # fmt: skip
    return out
