"""The head as a sample: launches that take turns with one workspace, the last on other rows."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from p_eagle_cuda import _C, reference
from p_eagle_cuda.noise import Noise
from sim.emulator import Settings
from sim.params import params_type
from sim.sample import FLOAT_ERROR, Run, Sample, source


def lm_head_topk(run: Run) -> None:
    """A launch, one without rows, and one whose noise is at positions that the first has written.

    Rows are unit vectors after the norm, so that logits are elements of the weight. These are few,
    so ties are many. Every CTA has two tiles, the last of them not full, and more blocks than
    stages.
    """
    N, V, H, k = 11, 740, 256, 5
    x = (torch.eye(N, H) * 2).bfloat16()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-12, 12, (V, H), generator=generator) / 4
    weight[5], weight[150] = torch.nan, 6.0  # the best is in a second tile
    weight[:, 3] -= 12  # all logits of a row are negative
    norm_weight = torch.full((H,), H**-0.5)
    subset = torch.arange(V, dtype=torch.int32)[torch.arange(V) % 16 != 3].contiguous()
    targets = torch.arange(V) * 3 + 2**33
    size = _C.lm_head_workspace_bytes(Settings().num_sms, N, k)
    constants = {
        "weight": params_type("LinearWeight")(
            data=run.given("weight", weight.bfloat16()), rows=V, columns=H
        ),
        "vocab_subset": run.given("vocab_subset", subset),
        "draft_to_target": run.given("draft_to_target", targets),
        "workspace": run.state("workspace", torch.zeros(size, dtype=torch.uint8)),
        "num_samples": N,
        "num_candidates": len(subset),
        "top_k": k,
    }
    rows = {
        "taps": (ctypes.c_void_p * 8)(run.given("x", x)),
        "norm_weight": run.given("norm_weight", norm_weight.bfloat16()),
        "sum_squares": run.given("sum_squares", reference.sum_squares(x)),
        "num_taps": 1,
        "tap_width": H,
        "max_rows": N,
    }

    def launch(
        label: str, sample_rows: Tensor, noise: Noise | None = None, **pointers: ctypes.c_void_p
    ) -> tuple[Tensor, ctypes.c_void_p]:
        """The ids, and where they are."""
        ids, logits, lse = reference.lm_head_topk(
            torch.eye(N, H, dtype=torch.float64) * H**0.5, sample_rows, norm_weight.double(),
            weight.double(), targets, k, 0.0, vocab_subset=subset, noise=noise,
        )  # fmt: skip
        written = run.updated(f"ids{label}", torch.full_like(ids, 7), ids, 0.0)
        if bool((sample_rows >= 0).all()):
            logits_pointer = run.output(f"logits{label}", torch.float32, logits, FLOAT_ERROR)
            lse_pointer = run.output(f"lse{label}", torch.float32, lse, FLOAT_ERROR)
        else:  # infinite
            logits_pointer = run.scratch(f"logits{label}", logits.shape, torch.float32)
            lse_pointer = run.scratch(f"lse{label}", lse.shape, torch.float32)
        source_row = run.given(f"sample_rows{label}", sample_rows)
        params = params_type("LmHeadTopkParams")(
            input=params_type("LinearInput")(source_row=source_row, **rows), **constants,
            **pointers, ids=written, logits=logits_pointer, lse=lse_pointer,
        )  # fmt: skip
        run.launch("launch_lm_head_topk_from_c", ctypes.byref(params))
        return ids, written

    all_rows = torch.arange(N, dtype=torch.int32)
    ids, written = launch("", all_rows)
    launch(" of the launch without rows", torch.full_like(all_rows, -1))
    keys = torch.arange(N) * 2**40 + 5
    temperature = torch.tensor([1.0, 0.0, 0.5, 2.0]).repeat(3)[:N].contiguous()
    launch(
        " of the third launch", all_rows.flip(0), Noise(keys, ids.flatten()[:N], temperature),
        noise_keys=run.given("noise_keys", keys), noise_positions=written,
        temperature=run.given("temperature", temperature),
    )  # fmt: skip


SAMPLES = {"lm_head_topk": Sample(lm_head_topk, source("launch_lm_head_topk"))}
