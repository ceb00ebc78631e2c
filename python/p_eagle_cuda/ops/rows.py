"""What surrounds a matrix product that torch does: gathering, norms, the gate, heads and cache.

With them the linear parts of a drafter run on cuBLAS, for more rows than the fused ops are made for
and for sizes that those refuse. `p_eagle_cuda.linear` puts the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    check_working_dtype,
    count_rows,
    define,
)
from p_eagle_cuda.ops.inputs import MAX_TAPS

MAX_CUDA_HEAD_DIM = 256


def _gather_taps(
    taps: list[Tensor],
    source_row: Tensor,
    num_rows: Tensor,
    input_norm: Tensor | None,
    fc_norms: Tensor | None,
    eps: float,
    out: Tensor,
) -> CpuBody:
    op = "gather_taps"
    check(1 <= len(taps) <= MAX_TAPS, f"{op}: `taps` must hold 1 to {MAX_TAPS}, got {len(taps)}")
    check_matrix(op, "taps[0]", taps[0])
    dtype = check_working_dtype(op, "taps[0]", taps[0])
    (T, Ht), n = taps[0].shape, len(taps)
    for i, tap in enumerate(taps):
        check_tensor(op, f"taps[{i}]", tap, dtype, T, Ht)
    check(source_row.ndim == 1, f"{op}: `source_row` must be [R], got {source_row.ndim}-D")
    R = source_row.shape[0]
    check_tensor(op, "source_row", source_row, torch.int32, R)
    check_num_rows(op, num_rows)
    check(
        input_norm is None or fc_norms is None,
        f"{op}: at most one of `input_norm` and `fc_norms` may be given, got both",
    )
    if input_norm is not None:
        check_tensor(op, "input_norm", input_norm, dtype, n * Ht)
    if fc_norms is not None:
        check_tensor(op, "fc_norms", fc_norms, dtype, n, Ht)
    check_tensor(op, "out", out, dtype, R, n * Ht)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, len(out))
        out[:n] = reference.gather_taps(taps, source_row[:n], input_norm, fc_norms, eps)

    return on_cpu


define(
    "gather_taps(Tensor[] taps, Tensor source_row, Tensor num_rows, Tensor? input_norm, "
    "Tensor? fc_norms, float eps, Tensor(a!) out) -> ()",
    _gather_taps,
)


def gather_taps(
    taps: Sequence[Tensor],
    source_row: Tensor,
    num_rows: Tensor,
    input_norm: Tensor | None,
    fc_norms: Tensor | None,
    eps: float,
    out: Tensor | None = None,
) -> Tensor:
    """Lay the target's hidden states of each row side by side, normed as in `project_taps`.

    ``out[r] = norm(concat(tap[source_row[r]] for tap in taps))``; zeros for mask rows, with
    ``source_row < 0``.

    Args:
        taps: 1 to 8 tensors ``[T, Ht]``, the target's residual stream at its tapped layers.
        source_row: ``[R]`` int32 from `prepare_inputs`.
        num_rows: ``[1]`` int32.
        input_norm: ``[n * Ht]`` RMSNorm over the concatenation, or None.
        fc_norms: ``[n, Ht]`` RMSNorm of each tap, or None. At most one of the two.
        eps: Added to the mean square of the norms.
        out: ``[R, n * Ht]``, written.

    Returns:
        `out`.

    Numerics:
        Bit-exact without a norm; with one float32 from load to store, one rounding per element.
    """
    if out is None:
        out = taps[0].new_empty(source_row.numel(), len(taps) * taps[0].shape[-1])
    torch.ops.p_eagle.gather_taps(list(taps), source_row, num_rows, input_norm, fc_norms, eps, out)
    return out


def _norm_rows(
    x: Tensor,
    norm_weight: Tensor,
    sum_squares: Tensor | None,
    num_rows: Tensor,
    eps: float,
    out: Tensor,
) -> CpuBody:
    op = "norm_rows"
    check_matrix(op, "x", x)
    dtype = check_working_dtype(op, "x", x)
    R, C = x.shape
    check_tensor(op, "x", x, dtype, R, C)
    check_tensor(op, "norm_weight", norm_weight, dtype, C)
    check_sum_squares(op, sum_squares, dtype, R, C)
    check_num_rows(op, num_rows)
    check_tensor(op, "out", out, dtype, R, C)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, len(x))
        sums = None if sum_squares is None else sum_squares[:, :n]
        out[:n] = reference.rms_norm(x[:n], norm_weight, eps, sums)

    return on_cpu


define(
    "norm_rows(Tensor x, Tensor norm_weight, Tensor? sum_squares, Tensor num_rows, float eps, "
    "Tensor(a!) out) -> ()",
    _norm_rows,
)


def norm_rows(
    x: Tensor,
    norm_weight: Tensor,
    num_rows: Tensor,
    eps: float,
    out: Tensor | None = None,
    *,
    sum_squares: Tensor | None = None,
) -> Tensor:
    """RMSNorm of each row: ``out = x / sqrt(mean(x**2) + eps) * norm_weight``.

    Args:
        x: ``[R, C]``.
        norm_weight: ``[C]``.
        num_rows: ``[1]`` int32.
        eps: Added to the mean square.
        out: ``[R, C]``, written.
        sum_squares: ``[ceil(C / 64), R]``, the sums of squares of x from `linear_residual`, if
            there are such; they are taken from x itself if None.

    Returns:
        `out`.

    Numerics:
        float32 from load to store, one rounding per element.
    """
    if out is None:
        out = torch.empty_like(x)
    torch.ops.p_eagle.norm_rows(x, norm_weight, sum_squares, num_rows, eps, out)
    return out


def _gate_rows(gate_up: Tensor, num_rows: Tensor, out: Tensor) -> CpuBody:
    op = "gate_rows"
    check_matrix(op, "gate_up", gate_up)
    dtype = check_working_dtype(op, "gate_up", gate_up)
    R, columns = gate_up.shape
    check(columns % 2 == 0, f"{op}: `gate_up` must have an even number of columns, got {columns}")
    check_tensor(op, "gate_up", gate_up, dtype, R, columns)
    check_num_rows(op, num_rows)
    check_tensor(op, "out", out, dtype, R, columns // 2)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, len(out))
        out[:n] = reference.gate_rows(gate_up[:n])

    return on_cpu


define("gate_rows(Tensor gate_up, Tensor num_rows, Tensor(a!) out) -> ()", _gate_rows)


def gate_rows(gate_up: Tensor, num_rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Gate the rows of a product: ``out = silu(gate) * up``.

    Args:
        gate_up: ``[R, 2I]``, the gate beside the up projection.
        num_rows: ``[1]`` int32.
        out: ``[R, I]``, written.

    Returns:
        `out`.

    Numerics:
        float32 from load to store, one rounding per element.
    """
    if out is None:
        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    torch.ops.p_eagle.gate_rows(gate_up, num_rows, out)
    return out


def _rope_cache(
    heads: Tensor,
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
) -> CpuBody:
    op = "rope_cache"
    check_matrix(op, "heads", heads)
    dtype = check_working_dtype(op, "heads", heads)
    check(q.ndim == 3, f"{op}: `q` must be [R, Nq, D], got {q.ndim}-D")
    check(
        k_cache.ndim == 4, f"{op}: `k_cache` must be [blocks, Nkv, block, D], got {k_cache.ndim}-D"
    )
    R, (_, Nq, D), Nkv = heads.shape[0], q.shape, k_cache.shape[1]
    check_tensor(op, "heads", heads, dtype, R, (Nq + 2 * Nkv) * D)
    check(D % 2 == 0, f"{op}: the head size must be even, got {D}")
    check(
        not heads.is_cuda or D <= MAX_CUDA_HEAD_DIM,
        f"{op}: the head size must be at most {MAX_CUDA_HEAD_DIM} on CUDA, got {D}",
    )
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

    def on_cpu() -> None:
        n = count_rows(op, num_rows, len(heads))
        q[:n], k, v = reference.rope_heads(
            heads[:n], q_norm, k_norm, rope, positions[:n], k_cache.shape[1], eps
        )
        reference.write_cache(k, slots[:n], k_cache, k_scale)
        reference.write_cache(v, slots[:n], v_cache, v_scale)

    return on_cpu


define(
    "rope_cache(Tensor heads, Tensor? q_norm, Tensor? k_norm, Tensor rope, Tensor positions, "
    "Tensor slots, Tensor num_rows, Tensor k_scale, Tensor v_scale, float eps, Tensor(a!) q, "
    "Tensor(b!) k_cache, Tensor(c!) v_cache) -> ()",
    _rope_cache,
)


def rope_cache(
    heads: Tensor,
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
) -> Tensor:
    """Norm and rotate the heads of each row, and store key and value in the paged cache.

    It is what `qkv_rope_cache` does after its product.

    Args:
        heads: ``[R, (Nq + 2 Nkv) * D]``, query heads, then key heads, then value heads. D is
            even, on CUDA at most 256.
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

    Returns:
        `q`.

    Numerics:
        float32 from load to store, one rounding per element. Values are neither normed nor rotated:
        a cache of the working dtype gets them bit for bit. FP8 saturates at the largest finite
        value.
    """
    if q is None:
        D = rope.shape[-1]
        q = heads.new_empty(heads.shape[0], heads.shape[1] // D - 2 * k_cache.shape[1], D)
    torch.ops.p_eagle.rope_cache(
        heads, q_norm, k_norm, rope, positions, slots, num_rows, k_scale, v_scale, eps, q,
        k_cache, v_cache,
    )  # fmt: skip
    return q
