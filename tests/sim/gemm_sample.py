"""Matrix products of many rows as samples: two launches, the second of the first's result."""

from __future__ import annotations

import ctypes
from functools import partial

import torch
from torch import Tensor

from p_eagle_cuda import _C, reference
from sim.emulator import Settings
from sim.params import params_type
from sim.sample import BF16_ERROR, Run, Sample, randn, source

BF16 = torch.bfloat16


def gemm(
    run: Run, first: str, last: str, *, num_rows: int = 200, max_rows: int = 230, columns: int = 144
) -> None:
    """Launch `first`, gated if its name says so, and add what `last` makes of that to a residual.

    As they are: two clusters of two share one tile, of which each CTA has rows; not all exist.
    """
    n, R, C, N = num_rows, max_rows, columns, 80
    is_gated = "swiglu" in first
    x, residual = randn(R, C, dtype=BF16), randn(n, C, dtype=BF16)
    x[n:] = torch.nan
    weights = [
        (randn(rows, columns) / columns**0.5).to(BF16)
        for rows, columns in ((N * (1 + is_gated), C), (C, N))
    ]
    product = x[:n].double() @ weights[0].double().T
    if is_gated:
        product = reference.gate_rows(product)
    num_rows_given = run.given("num_rows", torch.tensor([n], dtype=torch.int32))
    empty = torch.zeros(_C.linear_workspace_bytes(Settings().num_sms), dtype=torch.uint8)
    workspace = params_type("LinearWorkspace")(data=run.state("workspace", empty))
    out = run.output("out", BF16, product, BF16_ERROR)
    total = residual.double() + product @ weights[1].double().T
    stream = run.updated("residual", residual, total, 4 * BF16_ERROR)

    def launch(
        name: str, x_pointer: ctypes.c_void_p, rows: int, weight: Tensor, **output: object
    ) -> None:
        data = run.given(f"weight of {len(weight)} rows", weight)
        params = params_type("GemmParams")(
            x=x_pointer, num_rows=num_rows_given, workspace=workspace, max_rows=rows,
            weight=params_type("LinearWeight")(
                data=data, rows=weight.shape[0], columns=weight.shape[1]
            ),
            **output,
        )  # fmt: skip
        run.launch(name, ctypes.byref(params))

    launch(first, run.given("x", x), R, weights[0], out=out)
    launch(last, out, n, weights[1], out=stream, accumulates=True)


SAMPLES = {
    "gemm": Sample(
        partial(gemm, first="launch_gemm_from_c", last="launch_gemm_from_c"), source("launch_gemm")
    ),
    "gemm_sm100": Sample(
        partial(gemm, first="launch_gemm_swiglu_sm100_from_c", last="launch_gemm_sm100_from_c"),
        source("launch_gemm_sm100"),
        architecture="100a",
    ),
}
