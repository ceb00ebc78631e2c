"""Matrix products of many rows, for prompts and large batches: on CUDA CUTLASS's collectives.

Compute capability 9.0 has them, and 10.0 in a library that is built for 100a.

They are what the fused linear layers are between their norms and caches, for rows that something
else has normed. Unlike a product of torch's they know the number of rows on the device: tiles of
rows that do not exist cost nothing, and no such row is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from p_eagle_cuda import reference
from p_eagle_cuda._registry import (
    CpuBody,
    check,
    check_matrix,
    check_num_rows,
    check_sum_squares,
    check_tensor,
    check_working_dtype,
    check_workspace,
    count_rows,
    define,
    linear_workspace,
    wide_dtype,
)

ROW_MULTIPLE = 16  # of the rows of a weight on CUDA
COLUMN_MULTIPLE = 8


def _check_product(
    op: str, x: Tensor, name: str, weight: Tensor, num_rows: Tensor, workspace: Tensor
) -> torch.dtype:
    """Raise unless the product of x and a weight is one that runs; the working dtype."""
    check_matrix(op, "x", x)
    check_matrix(op, name, weight)
    dtype = check_working_dtype(op, "x", x)
    (R, C), N = x.shape, weight.shape[0]
    check_tensor(op, "x", x, dtype, R, C)
    check_tensor(op, name, weight, dtype, N, C)
    for what, size, multiple in (("columns", C, COLUMN_MULTIPLE), ("rows", N, ROW_MULTIPLE)):
        check(
            not x.is_cuda or size % multiple == 0,
            f"{op}: the {what} of `{name}` must be a multiple of {multiple} on CUDA, got {size}",
        )
    check_num_rows(op, num_rows)
    check_workspace(op, workspace)
    return dtype


def _gemm(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_rows: Tensor, out: Tensor, workspace: Tensor
) -> CpuBody:
    op = "gemm"
    dtype = _check_product(op, x, "weight", weight, num_rows, workspace)
    R, N = x.shape[0], weight.shape[0]
    if bias is not None:
        check_tensor(op, "bias", bias, dtype, N)
    check_tensor(op, "out", out, dtype, R, N)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, R)
        out[:n] = torch.nn.functional.linear(x[:n], weight, bias)

    return on_cpu


define(
    "gemm(Tensor x, Tensor weight, Tensor? bias, Tensor num_rows, Tensor(a!) out, "
    "Tensor(b!) workspace) -> ()",
    _gemm,
)


def gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_rows: Tensor,
    out: Tensor | None = None,
    *,
    workspace: Tensor | None = None,
) -> Tensor:
    """Multiply rows by a weight: ``out = x @ weight.T + bias``.

    Args:
        x: ``[R, C]``. On CUDA C is a multiple of 8, N of 16. Rows past `num_rows` may be read, but
            nothing depends on them.
        weight: ``[N, C]``.
        bias: ``[N]`` or None.
        num_rows: ``[1]`` int32.
        out: ``[R, N]``, written.
        workspace: Zeroed memory of this stream from `linear_workspace`; allocated if None.

    Returns:
        `out`.

    Numerics:
        Products accumulate in float32 or wider, the bias is added to that, one rounding. On CUDA
        the order of the sums depends on R and on how many rows exist: so do a row's last bits.

    Raises:
        RuntimeError: On CUDA, of another compute capability than 9.0.
    """
    if out is None:
        out = x.new_empty(x.shape[0], weight.shape[0])
    if workspace is None:
        workspace = linear_workspace(x.device)
    torch.ops.p_eagle.gemm(x, weight, bias, num_rows, out, workspace)
    return out


def _gemm_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_rows: Tensor,
    residual: Tensor,
    sum_squares: Tensor,
    workspace: Tensor,
) -> CpuBody:
    op = "gemm_residual"
    dtype = _check_product(op, x, "weight", weight, num_rows, workspace)
    R, H = x.shape[0], weight.shape[0]
    if bias is not None:
        check_tensor(op, "bias", bias, dtype, H)
    check_tensor(op, "residual", residual, dtype, R, H)
    check_sum_squares(op, sum_squares, dtype, R, H)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, R)
        residual[:n] = reference.linear_residual(x[:n], weight, bias, residual[:n])
        sum_squares[:, :n] = reference.sum_squares(residual[:n])

    return on_cpu


define(
    "gemm_residual(Tensor x, Tensor weight, Tensor? bias, Tensor num_rows, Tensor(a!) residual, "
    "Tensor(b!) sum_squares, Tensor(c!) workspace) -> ()",
    _gemm_residual,
)


def gemm_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_rows: Tensor,
    residual: Tensor,
    sum_squares: Tensor | None = None,
    *,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a projection to the residual stream: ``residual += x @ weight.T + bias``.

    Args:
        x: ``[R, Hin]``, as in `gemm`.
        weight: ``[H, Hin]``.
        bias: ``[H]`` or None.
        num_rows: ``[1]`` int32.
        residual: ``[R, H]``, read and written.
        sum_squares: ``[ceil(H / 64), R]`` float32 (float64 for float64), written, as in
            `linear_residual`.
        workspace: Zeroed memory of this stream from `linear_workspace`; allocated if None.

    Returns:
        ``(residual, sum_squares)``.

    Numerics:
        As `gemm`; the residual is added before the one rounding.

    Raises:
        RuntimeError: On CUDA, of another compute capability than 9.0.
    """
    if sum_squares is None:
        groups = -(-residual.shape[1] // reference.STATISTIC_COLUMNS)
        sum_squares = x.new_empty(groups, residual.shape[0], dtype=wide_dtype(x.dtype))
    if workspace is None:
        workspace = linear_workspace(x.device)
    torch.ops.p_eagle.gemm_residual(x, weight, bias, num_rows, residual, sum_squares, workspace)
    return residual, sum_squares


def _gemm_swiglu(
    x: Tensor, gate_up: Tensor, num_rows: Tensor, out: Tensor, workspace: Tensor
) -> CpuBody:
    op = "gemm_swiglu"
    dtype = _check_product(op, x, "gate_up", gate_up, num_rows, workspace)
    R, rows = x.shape[0], gate_up.shape[0]
    check(rows % 2 == 0, f"{op}: `gate_up` must have an even number of rows, got {rows}")
    check_tensor(op, "out", out, dtype, R, rows // 2)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, R)
        out[:n] = reference.gate_rows(torch.nn.functional.linear(x[:n], gate_up))

    return on_cpu


define(
    "gemm_swiglu(Tensor x, Tensor gate_up, Tensor num_rows, Tensor(a!) out, Tensor(b!) workspace) "
    "-> ()",
    _gemm_swiglu,
)


def gemm_swiglu(
    x: Tensor,
    gate_up: Tensor,
    num_rows: Tensor,
    out: Tensor | None = None,
    *,
    workspace: Tensor | None = None,
) -> Tensor:
    """Project to gate and up, and gate: ``out = silu(gate) * up``. Neither of the two is stored.

    Args:
        x: ``[R, C]``, as in `gemm`.
        gate_up: ``[2I, C]``, the gate's rows, then the up projection's. On CUDA I is a multiple
            of 8.
        num_rows: ``[1]`` int32.
        out: ``[R, I]``, written.
        workspace: Zeroed memory of this stream from `linear_workspace`; allocated if None.

    Returns:
        `out`.

    Numerics:
        As `gemm`; SiLU and the product with `up` are float32, before the one rounding. The
        reference on the CPU rounds gate and up first.

    Raises:
        RuntimeError: On CUDA, of another compute capability than 9.0.
    """
    if out is None:
        out = x.new_empty(x.shape[0], gate_up.shape[0] // 2)
    if workspace is None:
        workspace = linear_workspace(x.device)
    torch.ops.p_eagle.gemm_swiglu(x, gate_up, num_rows, out, workspace)
    return out
