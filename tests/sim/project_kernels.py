"""The project's kernels as samples: one function each, and its entry in `SAMPLES`.

A function makes the buffers, queues launches that would show what a bug does - above all a launch
that depends on one before - and says what must come out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sim.params import params_type
from sim.sample import BF16_ERROR, CSRC, FOLDER, Run, Sample, randn, source


def embed_norm_concat(run: Run) -> None:
    """Three launches, the third of which takes the first's residual as its hidden states.

    The second has fewer rows and nothing to do with them. So the order of the first and the third
    hangs on what the second's surplus blocks do.
    """
    dtype, rows, H, V, eps = torch.bfloat16, 5, 1048, 11, 1e-2
    embedding, mask_hidden = randn(V, H, dtype=dtype), randn(1, H, dtype=dtype)[0]
    weights = 1 + randn(2, H, dtype=dtype) / 4
    token_ids = torch.tensor([3, 0, V - 1, 3, 7])
    source_row = torch.tensor([0, 1, -1, 2, -1], dtype=torch.int32)
    hidden = randn(rows, H, dtype=dtype)
    constants = {
        "token_ids": run.given("token_ids", token_ids),
        "source_row": run.given("source_row", source_row),
        "embedding": run.given("embedding", embedding),
        "mask_hidden": run.given("mask_hidden", mask_hidden),
        "embed_weight": run.given("embed_weight", weights[0]),
        "hidden_weight": run.given("hidden_weight", weights[1]),
    }
    hidden[source_row < 0] = torch.nan  # must not be read
    first_hidden = run.given("hidden", hidden)

    def launch(label: str, n: int, x: Tensor, x_pointer: ctypes.c_void_p) -> ctypes.c_void_p:
        """Returns the residual; its rows are those of `x`, except for mask rows."""
        embed_norm = _rms_norm(embedding[token_ids], weights[0], eps)
        residual = torch.where(source_row[:, None] < 0, mask_hidden, x)
        out = torch.cat([embed_norm, _rms_norm(residual, weights[1], eps)], 1)
        out_pointer = run.output(f"out{label}", dtype, out[:n], BF16_ERROR)
        residual_pointer = run.output(f"residual{label}", dtype, residual[:n], 0.0)
        count = run.given(f"num_rows{label}", torch.tensor([n], dtype=torch.int32))
        params = params_type("EmbedNormConcatParams")(
            **constants, num_rows=count, hidden=x_pointer, out=out_pointer,
            residual=residual_pointer, max_rows=rows, hidden_size=H, vocab_size=V, eps=eps,
        )  # fmt: skip
        run.launch("launch_embed_norm_concat_from_c", ctypes.byref(params), 0)
        return residual_pointer

    residual_pointer = launch("", rows, hidden, first_hidden)
    launch(" of the second launch", rows - 2, hidden, first_hidden)
    launch(" of the third launch", rows, hidden, residual_pointer)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


def _sample(run: Callable[[Run], None], common: Sequence[str]) -> Sample:
    """The kernel that has the name of `run`, and the files of csrc/common that it includes."""
    name = run.__name__
    return Sample(
        run,
        source(f"launch_{name}"),
        included=[
            CSRC / "ops.h",
            *(CSRC / "common" / file for file in common),
            CSRC / "kernels" / f"{name}.cu",
        ],
        includes=(FOLDER, CSRC),
    )


SAMPLES: dict[str, Sample] = {
    "embed_norm_concat": _sample(embed_norm_concat, ["launch.h", "reduce.cuh"]),
}
