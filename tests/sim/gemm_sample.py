"""A matrix product of many rows as a sample: two launches, the second of the first's result."""

from __future__ import annotations

import ctypes

import torch

from p_eagle_cuda import _C
from sim.emulator import Settings
from sim.params import params_type
from sim.sample import BF16_ERROR, Run, Sample, randn, source


def gemm(run: Run) -> None:
    """Two clusters of two share one tile, of which each CTA has rows; of 230 rows 200 exist."""
    dtype, n, R, C, N = torch.bfloat16, 200, 230, 144, 80
    x, residual = randn(R, C, dtype=dtype), randn(n, C, dtype=dtype)
    x[n:] = torch.nan
    weights = [
        (randn(rows, columns) / columns**0.5).to(dtype) for rows, columns in ((N, C), (C, N))
    ]
    product = x[:n].double() @ weights[0].double().T
    rows = run.given("num_rows", torch.tensor([n], dtype=torch.int32))
    empty = torch.zeros(_C.linear_workspace_bytes(Settings().num_sms), dtype=torch.uint8)
    workspace = params_type("LinearWorkspace")(data=run.state("workspace", empty))
    out = run.output("out", dtype, product, BF16_ERROR)
    last = residual.double() + product @ weights[1].double().T
    stream = run.updated("residual", residual, last, 4 * BF16_ERROR)

    def launch(
        x_pointer: ctypes.c_void_p, max_rows: int, weight: torch.Tensor, **output: object
    ) -> None:
        data = run.given(f"weight of {len(weight)} rows", weight)
        params = params_type("GemmParams")(
            x=x_pointer, num_rows=rows, workspace=workspace, max_rows=max_rows,
            weight=params_type("LinearWeight")(
                data=data, rows=weight.shape[0], columns=weight.shape[1]
            ),
            **output,
        )  # fmt: skip
        run.launch("launch_gemm_from_c", ctypes.byref(params))

    launch(run.given("x", x), R, weights[0], out=out)
    launch(out, n, weights[1], out=stream, accumulates=True)


SAMPLES = {"gemm": Sample(gemm, source("launch_gemm"))}
