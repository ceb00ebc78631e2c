"""The backends of the linear layers whose product is one by itself, between row kernels.

`TorchLinear` leaves the product to torch, that is, cuBLAS; `CutlassLinear` to CUTLASS's
collectives. `p_eagle_cuda.linear` says what a backend is, and chooses among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p_eagle_cuda import ops
from p_eagle_cuda._registry import check_tensor
from p_eagle_cuda.buffers import BufferSpec
from p_eagle_cuda.errors import BackendError
from p_eagle_cuda.weights import DrafterWeights

FP8_NEEDS_FUSED = "fp8 weights need the fused kernels, at most 32 rows at a time"


class TorchLinear:
    """Products by torch, into buffers that are made once, with row kernels before and after.

    The products are of all R rows, because the host does not know how many exist. Numerics: what is
    between a product and its row kernel is rounded to the working dtype, as in the reference.
    cuBLAS adds parts of a long product in 16 bits where torch.backends.cuda.matmul allows that.
    """

    def __init__(self, weights: DrafterWeights, max_rows: int) -> None:
        """Make the buffers for passes of up to `max_rows` rows of a drafter."""
        self.plan = self.plan_buffers(weights, max_rows)
        device = weights.fc.device
        self._normed, self._product = (x.allocate(device) for x in self.plan.values())

    @staticmethod
    def plan_buffers(weights: DrafterWeights, max_rows: int) -> dict[str, BufferSpec]:
        """The buffers for passes of up to `max_rows` rows."""
        hidden, gathered = weights.fc.shape
        products = [w.shape[0] for layer in weights.layers for w in (layer.qkv, layer.gate_up)]
        return _plan_rows(weights, max_rows, "torch", max(hidden, gathered), max(products))

    def _multiply(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, num_rows: Tensor, out: Tensor
    ) -> None:
        """``out = x @ weight.T + bias``."""
        del num_rows
        if bias is None:
            torch.mm(x, weight.T, out=out)
        else:
            torch.addmm(bias, x, weight.T, out=out)

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
        """See `LinearBackend`."""
        _refuse_fp8("project_taps", weight_scale)
        columns = sum(tap.shape[-1] for tap in taps)
        check_tensor("project_taps", "weight", weight, out.dtype, out.shape[-1], columns)
        x = _rows(self._normed, source_row.numel(), columns)
        ops.gather_taps(taps, source_row, num_rows, input_norm, fc_norms, eps, x)
        self._multiply(x, weight, None, num_rows, out)
        return out

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
        """See `LinearBackend`."""
        del mask_heads, source_row  # the product is of all rows, mask rows among them
        _refuse_fp8("qkv_rope_cache", weight_scale)
        width = (q.shape[1] + 2 * k_cache.shape[1]) * q.shape[2]
        check_tensor("qkv_rope_cache", "weight", weight, x.dtype, width, x.shape[-1])
        if norm_weight is not None:
            x = self._norm(x, norm_weight, num_rows, eps, sum_squares)
        heads = _rows(self._product, len(x), width)
        self._multiply(x, weight, bias, num_rows, heads)
        return ops.rope_cache(
            heads, q_norm, k_norm, rope, positions, slots, num_rows, k_scale, v_scale, eps,
            k_cache, v_cache, q,
        )  # fmt: skip

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
        del num_rows, sum_squares  # the norm that follows takes its sums from the rows
        _refuse_fp8("linear_residual", weight_scale)
        check_tensor("linear_residual", "weight", weight, x.dtype, residual.shape[-1], x.shape[-1])
        if bias is not None:
            residual.add_(bias)
        residual.addmm_(x, weight.T)
        return None

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
        """See `LinearBackend`."""
        _refuse_fp8("norm_swiglu", gate_up_scale)
        check_tensor("norm_swiglu", "gate_up", gate_up, x.dtype, 2 * out.shape[-1], x.shape[-1])
        normed = self._norm(x, norm_weight, num_rows, eps, sum_squares)
        product = _rows(self._product, len(x), gate_up.shape[0])
        torch.mm(normed, gate_up.T, out=product)
        return ops.gate_rows(product, num_rows, out)

    def _norm(
        self,
        x: Tensor,
        norm_weight: Tensor,
        num_rows: Tensor,
        eps: float,
        sum_squares: Tensor | None,
    ) -> Tensor:
        out = _rows(self._normed, *x.shape)
        return ops.norm_rows(x, norm_weight, num_rows, eps, out, sum_squares=sum_squares)


class CutlassLinear(TorchLinear):
    """Products by CUTLASS's collectives, with row kernels before and after.

    They multiply the rows that exist alone, add to the residual and gate as they store, so that no
    product of gate and up is kept. Numerics: those of the ops in `p_eagle_cuda.ops.gemm`.
    """

    def __init__(self, weights: DrafterWeights, max_rows: int, workspace: Tensor) -> None:
        """Make the buffers as `TorchLinear` does; `workspace` is from `ops.linear_workspace`."""
        super().__init__(weights, max_rows)
        self._workspace = workspace

    @staticmethod
    def plan_buffers(weights: DrafterWeights, max_rows: int) -> dict[str, BufferSpec]:
        """The buffers for passes of up to `max_rows` rows."""
        hidden, gathered = weights.fc.shape
        heads = max(layer.qkv.shape[0] for layer in weights.layers)
        return _plan_rows(weights, max_rows, "cutlass", max(hidden, gathered), heads)

    def _multiply(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, num_rows: Tensor, out: Tensor
    ) -> None:
        ops.gemm(x, weight, bias, num_rows, out, workspace=self._workspace)

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
        _refuse_fp8("linear_residual", weight_scale)
        _, sums = ops.gemm_residual(
            x, weight, bias, num_rows, residual, sum_squares, workspace=self._workspace
        )
        return sums

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
        """See `LinearBackend`."""
        _refuse_fp8("norm_swiglu", gate_up_scale)
        normed = self._norm(x, norm_weight, num_rows, eps, sum_squares)
        return ops.gemm_swiglu(normed, gate_up, num_rows, out, workspace=self._workspace)


def _plan_rows(
    weights: DrafterWeights, max_rows: int, backend: str, normed: int, product: int
) -> dict[str, BufferSpec]:
    """Buffers for normed rows and for products of these widths."""

    # Zeros, so that rows that were never written are not read as NaN, which some CPUs and
    # people stumble over. What they become reaches no row that exists.
    def rows(width: int) -> BufferSpec:
        return BufferSpec((max_rows * width,), weights.norm.dtype, is_zeroed=True)

    return {f"{backend}_normed": rows(normed), f"{backend}_product": rows(product)}


def _rows(buffer: Tensor, num_rows: int, width: int) -> Tensor:
    """The start of a buffer as rows."""
    return buffer[: num_rows * width].view(num_rows, width)


def _refuse_fp8(op: str, scale: Tensor | None) -> None:
    if scale is not None:
        raise BackendError(f"{op}: {FP8_NEEDS_FUSED}")
