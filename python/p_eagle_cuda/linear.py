"""The linear layers of a drafter, on three backends, and which of them runs at how many rows.

`FusedLinear` calls the fused ops, which stream every weight once for up to 32 rows, and on Hopper
once for up to 256, but for FP8 weights with other activations. `TorchLinear` leaves the product to
torch, that is, cuBLAS, with row kernels around it: for many rows, for sizes that the fused kernels
refuse, and as what they are measured against. `CutlassLinear` has the ops of
`p_eagle_cuda.ops.gemm` in its place, for many rows on Hopper. `LinearLayers` has them all, and
chooses for each op by the table of `p_eagle_cuda.linear_table`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from p_eagle_cuda import ops
from p_eagle_cuda.errors import BackendError
from p_eagle_cuda.linear_products import FP8_NEEDS_FUSED, CutlassLinear, TorchLinear
from p_eagle_cuda.linear_table import BACKENDS, CUTLASS_ARCHITECTURES, LINEAR_OPS, LinearTable
from p_eagle_cuda.ops.gemm import COLUMN_MULTIPLE, ROW_MULTIPLE
from p_eagle_cuda.ops.layers import CUDA_HEAD_DIMS
from p_eagle_cuda.reference import STATISTIC_COLUMNS
from p_eagle_cuda.weights import DrafterWeights


class LinearBackend(Protocol):
    """The linear layers; arguments are those of the ops that have the same names.

    Rows past `num_rows` of what a method writes may hold anything afterwards, but for caches.
    """

    def project_taps(
        self,
        taps: Sequence[Tensor],
        source_row: Tensor,
        num_rows: Tensor,
        weight: Tensor,
        input_norm: Tensor | None,
        fc_norms: Tensor | None,
        eps: float,
        out: Tensor,
        *,
        weight_scale: Tensor | None = None,
    ) -> Tensor:
        """`ops.project_taps`; returns `out`."""

    def qkv_rope_cache(
        self,
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
        q: Tensor,
        *,
        sum_squares: Tensor | None = None,
        weight_scale: Tensor | None = None,
        mask_heads: Tensor | None = None,
        source_row: Tensor | None = None,
    ) -> Tensor:
        """`ops.qkv_rope_cache`; returns `q`."""

    def linear_residual(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        num_rows: Tensor,
        residual: Tensor,
        sum_squares: Tensor,
        *,
        weight_scale: Tensor | None = None,
    ) -> Tensor | None:
        """`ops.linear_residual`; returns `sum_squares` if it has written them, None if not."""

    def norm_swiglu(
        self,
        x: Tensor,
        norm_weight: Tensor,
        gate_up: Tensor,
        num_rows: Tensor,
        eps: float,
        out: Tensor,
        *,
        sum_squares: Tensor | None = None,
        gate_up_scale: Tensor | None = None,
    ) -> Tensor:
        """`ops.norm_swiglu`; returns `out`."""


class FusedLinear:
    """The fused ops, which take turns with one workspace."""

    def __init__(self, workspace: Tensor, *, fp8_activations: bool = False) -> None:
        """Take the `workspace`, from `ops.linear_workspace`, and what all ops are called with."""
        self._shared: dict[str, Any] = {"workspace": workspace, "fp8_activations": fp8_activations}
        self.project_taps = partial(ops.project_taps, **self._shared)
        self.qkv_rope_cache = partial(ops.qkv_rope_cache, **self._shared)
        self.norm_swiglu = partial(ops.norm_swiglu, **self._shared)

    def linear_residual(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        num_rows: Tensor,
        residual: Tensor,
        sum_squares: Tensor,
        *,
        weight_scale: Tensor | None = None,
    ) -> Tensor | None:
        """See `LinearBackend`."""
        _, sums = ops.linear_residual(
            x, weight, bias, num_rows, residual, sum_squares, weight_scale=weight_scale,
            **self._shared,
        )  # fmt: skip
        return sums


@dataclass(frozen=True)
class LinearChoice:
    """Which backend runs an op."""

    op: str
    fused_rows: int | None  # the most rows that the fused kernel gets; None: any number
    reason: str
    above: str = "torch"  # what has more rows than those, or "cutlass"

    def __str__(self) -> str:
        if self.fused_rows is None:
            backend = "fused"
        elif self.fused_rows == 0:
            backend = self.above
        else:
            backend = f"fused up to {self.fused_rows} rows, {self.above} above"
        return f"{self.op}: {backend} ({self.reason})"


class LinearPass:
    """The linear layers of a pass, each method of the backend that runs it."""

    def __init__(
        self,
        project_taps: LinearBackend,
        qkv_rope_cache: LinearBackend,
        linear_residual: LinearBackend,
        norm_swiglu: LinearBackend,
    ) -> None:
        """Take each method from the backend of its name."""
        self.project_taps = project_taps.project_taps
        self.qkv_rope_cache = qkv_rope_cache.qkv_rope_cache
        self.linear_residual = linear_residual.linear_residual
        self.norm_swiglu = norm_swiglu.norm_swiglu


class LinearLayers:
    """The linear layers of a drafter, on the backend that a table says for a number of rows."""

    def __init__(
        self,
        weights: DrafterWeights,
        num_taps: int,
        max_rows: int,
        workspace: Tensor,
        backend: str | LinearTable = "auto",
        architecture: str | None = None,
    ) -> None:
        """Choose a backend for each op, and make the buffers that it needs.

        Args:
            weights: The drafter's.
            num_taps: n, tapped layers of the target.
            max_rows: Most rows of a pass.
            workspace: Of the stream, from `ops.linear_workspace`.
            backend: "fused", "torch" or "cutlass" for all ops and rows; "auto" for the table that
                comes with the package; or a table. With a table, what the fused or CUTLASS's
                kernels refuse runs on torch, and FP8 weights run fused.
            architecture: Of the device, such as "sm_90" or "cpu"; that of the weights if None.

        Raises:
            BackendError: There is no such backend, or it cannot run these weights.
        """
        if isinstance(backend, str) and backend not in BACKENDS:
            names = ", ".join(f'"{x}"' for x in BACKENDS)
            raise BackendError(f"linear must be {names} or a LinearTable, got {backend!r}")
        architecture = architecture or architecture_of(weights.fc.device)
        table = LinearTable.read() if backend == "auto" else backend
        layers = _weights_by_op(weights)
        refusals = fused_refusals(weights, num_taps) if architecture != "cpu" else {}
        on_cutlass = cutlass_refusals(weights, architecture)
        self.choices = tuple(
            choose_backend(
                op, table, architecture, layers[op][0].dtype, refusals.get(op), on_cutlass.get(op)
            )
            for op in LINEAR_OPS
        )
        self._choices = {choice.op: choice for choice in self.choices}
        self._fused = FusedLinear(workspace, fp8_activations=weights.fp8_activations)
        above = {
            x.above for x in self.choices if x.fused_rows is not None and x.fused_rows < max_rows
        }
        self._torch = TorchLinear(weights, max_rows) if "torch" in above else None
        self._cutlass = CutlassLinear(weights, max_rows, workspace) if "cutlass" in above else None
        made = [x for x in (self._torch, self._cutlass) if x is not None]
        self.plan = {name: spec for x in made for name, spec in x.plan.items()}  # made here

    def for_rows(self, num_rows: int) -> LinearPass:
        """The layers for passes whose buffers have so many rows."""
        return LinearPass(**{op: self._backend(op, num_rows) for op in LINEAR_OPS})

    def _backend(self, op: str, num_rows: int) -> LinearBackend:
        choice = self._choices[op]
        if choice.fused_rows is None or num_rows <= choice.fused_rows:
            return self._fused
        return (self._cutlass if choice.above == "cutlass" else self._torch) or self._fused


def architecture_of(device: torch.device) -> str:
    """The name that a device has in a table: "sm_90", for example, or "cpu"."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def fused_refusals(weights: DrafterWeights, num_taps: int) -> dict[str, str]:
    """Why the fused kernels cannot run a drafter's linear layers, for the ops where it is so.

    The shapes alone decide: each reason is one that the op would give on CUDA.
    """
    hidden, gathered = weights.fc.shape
    columns = {op: {x.shape[1] for x in xs} for op, xs in _weights_by_op(weights).items()}
    columns["project_taps"] = {gathered // num_taps}
    return size_refusals(columns, hidden, weights.rope.shape[1])


def size_refusals(
    columns: Mapping[str, Collection[int]], hidden: int, head_dim: int
) -> dict[str, str]:
    """The same by the columns of each op's weights, of `project_taps` those of one tap."""
    refusals = {}
    for op in columns:
        ragged = sorted(x for x in columns[op] if x % STATISTIC_COLUMNS)
        if ragged:
            refusals[op] = (
                f"the fused kernels need columns that are a multiple of {STATISTIC_COLUMNS}, "
                f"got {ragged[0]}"
            )
        elif op == "qkv_rope_cache" and head_dim not in CUDA_HEAD_DIMS:
            sizes = " or ".join(map(str, CUDA_HEAD_DIMS))
            refusals[op] = f"the fused kernels need a head size of {sizes}, got {head_dim}"
        elif op in ("project_taps", "linear_residual") and hidden % 8:
            refusals[op] = f"the fused kernels need rows that are a multiple of 8, got {hidden}"
    return refusals


def cutlass_refusals(weights: DrafterWeights, architecture: str) -> dict[str, str]:
    """Why CUTLASS's kernels cannot run a drafter's linear layers, for the ops where it is so.

    Each reason is one that the op would give there; a CPU runs all.
    """
    sizes = {
        op: [(x.shape[0], x.shape[1]) for x in xs] for op, xs in _weights_by_op(weights).items()
    }
    return cutlass_size_refusals(sizes, architecture)


def cutlass_size_refusals(
    sizes: Mapping[str, Collection[tuple[int, int]]], architecture: str
) -> dict[str, str]:
    """The same by the rows and columns of each op's weights."""
    if architecture == "cpu":
        return {}
    if architecture not in CUTLASS_ARCHITECTURES:
        known = " or ".join(CUTLASS_ARCHITECTURES)
        return dict.fromkeys(LINEAR_OPS, f"CUTLASS's kernels need {known}, got {architecture}")
    refusals = {}
    for op, matrices in sizes.items():
        for what, axis, multiple in (("rows", 0, ROW_MULTIPLE), ("columns", 1, COLUMN_MULTIPLE)):
            for size in sorted(x[axis] for x in matrices if x[axis] % multiple):
                refusals[op] = (
                    f"CUTLASS's kernels need {what} that are a multiple of {multiple}, got {size}"
                )
    return refusals


def choose_backend(
    op: str,
    table: str | LinearTable,
    architecture: str,
    weight: torch.dtype,
    refusal: str | None,
    cutlass_refusal: str | None = None,
) -> LinearChoice:
    """Which backend runs an op whose weights have this dtype; see `LinearLayers`.

    Raises:
        BackendError: None can.
    """
    is_fp8 = weight == torch.float8_e4m3fn
    if table in ("torch", "cutlass"):
        if is_fp8:
            raise BackendError(f"{op}: {FP8_NEEDS_FUSED}")
        if table == "cutlass" and cutlass_refusal is not None:
            raise BackendError(f"{op}: {cutlass_refusal}")
        return LinearChoice(op, 0, "as asked for", table)
    if refusal is not None and (table == "fused" or is_fp8):
        raise BackendError(f"{op}: {refusal}" + (f"; {FP8_NEEDS_FUSED}" if is_fp8 else ""))
    if table == "fused":
        return LinearChoice(op, None, "as asked for")
    if is_fp8:
        return LinearChoice(op, None, FP8_NEEDS_FUSED)
    if refusal is not None:
        return LinearChoice(op, 0, refusal)
    assert isinstance(table, LinearTable)
    found = table.find(architecture, op, weight)
    if found.above == "cutlass" and cutlass_refusal is not None:
        return LinearChoice(op, found.fused_rows, cutlass_refusal)
    return LinearChoice(op, found.fused_rows, found.measured, found.above)


def _weights_by_op(weights: DrafterWeights) -> dict[str, list[Tensor]]:
    layers = weights.layers
    return {
        "project_taps": [weights.fc],
        "qkv_rope_cache": [x.qkv for x in layers],
        "linear_residual": [matrix for x in layers for matrix in (x.o, x.down)],
        "norm_swiglu": [x.gate_up for x in layers],
    }
