"""The linear layers as a sample: a chain of launches that take turns with one workspace."""

from __future__ import annotations

import ctypes
from functools import partial

import torch
from torch import Tensor

from p_eagle_cuda import _C, reference
from p_eagle_cuda.precision import quantize_rows
from sim.emulator import Settings
from sim.linear_cases import spread
from sim.params import params_type
from sim.sample import BF16_ERROR, Run, Sample, randn, source


def linear_layers(run: Run, n: int = 5, R: int = 7) -> None:
    """Projection, gate, a gate without rows, projection: each reads what one before has written.

    Every tile is cut, and every CTA has more blocks than stages. Of R rows n exist.
    """
    dtype, H, Hin, I, eps = torch.bfloat16, 192, 1280, 576, 1e-2  # noqa: E741
    x, residual = randn(R, Hin, dtype=dtype), randn(R, H, dtype=dtype)
    x[n:] = torch.nan
    weights = [
        (randn(rows, columns) / columns**0.5).to(dtype)
        for rows, columns in ((H, Hin), (2 * I, H), (H, I))
    ]
    norm_weight = 1 + randn(H, dtype=dtype) / 4

    first = residual[:n].double() + x[:n].double() @ weights[0].double().T
    gated = reference.norm_swiglu(first, norm_weight.double(), weights[1].double(), eps)
    last = first + gated @ weights[2].double().T

    count = run.given("num_rows", torch.tensor([n], dtype=torch.int32))
    no_rows = run.given("num_rows of the empty launch", torch.tensor([0], dtype=torch.int32))
    empty = torch.zeros(_C.linear_workspace_bytes(Settings().num_sms), dtype=torch.uint8)
    workspace = params_type("LinearWorkspace")(data=run.state("workspace", empty))
    sums = run.scratch("sum_squares", (H // 64, R), torch.float32)
    stream = run.updated("residual", residual[:n], last, 4 * BF16_ERROR)
    out = run.output("out", dtype, gated, 4 * BF16_ERROR)

    def projection(label: str, x_pointer: ctypes.c_void_p, weight: Tensor) -> None:
        params = params_type("LinearResidualParams")(
            input=_input(x_pointer, weight.shape[1], count, R), weight=_weight(run, label, weight),
            workspace=workspace, residual=stream, sum_squares=sums,
        )  # fmt: skip
        run.launch("launch_linear_residual_from_c", ctypes.byref(params))

    def gate(label: str, num_rows: ctypes.c_void_p) -> None:
        norm = run.given(f"norm_weight{label}", norm_weight)
        rows = _input(stream, H, num_rows, R, norm_weight=norm, sum_squares=sums, eps=eps)
        params = params_type("NormSwigluParams")(
            input=rows, weight=_weight(run, f"gate_up{label}", weights[1]), workspace=workspace,
            out=out,
        )  # fmt: skip
        run.launch("launch_norm_swiglu_from_c", ctypes.byref(params))

    projection("first weight", run.given("x", x), weights[0])
    gate("", count)
    gate(" of the empty launch", no_rows)
    projection("last weight", out, weights[2])


def fp8_layer(run: Run, n: int = 40, R: int = 48) -> None:
    """A gate whose CTAs have more blocks than stages. The last block of a row has 64 columns."""
    dtype, H, I, eps = torch.bfloat16, 1344, 256, 1e-2  # noqa: E741
    x = spread(randn(R, H, dtype=dtype), R)
    x[n:] = torch.nan
    weight, scale = quantize_rows(randn(2 * I, H) / H**0.5)
    norm_weight = 1 + randn(H, dtype=dtype) / 4
    exact = reference.dequantize(weight, scale, torch.float64)
    gated = reference.norm_swiglu(x[:n].double(), norm_weight.double(), exact, eps, None, True)

    count = run.given("num_rows", torch.tensor([n], dtype=torch.int32))
    empty = torch.zeros(_C.linear_workspace_bytes(Settings().num_sms), dtype=torch.uint8)
    rows = _input(
        run.given("x", x), H, count, R, norm_weight=run.given("norm_weight", norm_weight),
        sum_squares=run.given("sum_squares", reference.sum_squares(x)), eps=eps, is_e4m3=True,
    )  # fmt: skip
    gate_up = _weight(run, "gate_up", weight)
    gate_up.scale = run.given("gate_up_scale", scale)
    params = params_type("NormSwigluParams")(
        input=rows, weight=gate_up, out=run.output("out", dtype, gated, 4 * BF16_ERROR),
        workspace=params_type("LinearWorkspace")(data=run.state("workspace", empty)),
    )  # fmt: skip
    run.launch("launch_norm_swiglu_from_c", ctypes.byref(params))


def _input(
    rows: ctypes.c_void_p, columns: int, num_rows: ctypes.c_void_p, max_rows: int, **norm: object
) -> ctypes.Structure:
    taps = (ctypes.c_void_p * 8)(rows)
    return params_type("LinearInput")(
        taps=taps, num_rows=num_rows, num_taps=1, tap_width=columns, max_rows=max_rows, **norm
    )


def _weight(run: Run, label: str, weight: Tensor) -> ctypes.Structure:
    rows, columns = weight.shape
    return params_type("LinearWeight")(data=run.given(label, weight), rows=rows, columns=columns)


SAMPLES = {
    "linear_layers": Sample(linear_layers, source("launch_linear_layers")),
    # 40 tokens are two turns of an epilogue, and the second is not full.
    "wide_layers": Sample(partial(linear_layers, n=40, R=48), source("launch_wide_layers")),
    "wide_fp8_layers": Sample(fp8_layer, source("launch_wide_fp8_layers")),
}
