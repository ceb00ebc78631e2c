"""Calls of lm_head_topk for its tests, and what must come out."""

from __future__ import annotations

import torch
from torch import Tensor

from numerics import double
from p_eagle_cuda import _C, reference
from p_eagle_cuda.noise import Noise
from sim.emulator import FOUR
from sim.torch_ops import Arguments

NAME = "lm_head_topk"
RACE = FOUR["in-order-race"]
MAX_SMS = 8  # of the emulator, in these tests


def outputs(N: int, top_k: int) -> Arguments:
    size = _C.lm_head_workspace_bytes(MAX_SMS, N, top_k)
    return {
        "ids": torch.full((N, top_k), 7),
        "logits": torch.full((N, top_k), float("nan")),
        "lse": torch.full((N,), float("nan")),
        "workspace": torch.zeros(size, dtype=torch.uint8),
    }


def without_outputs(arguments: Arguments) -> Arguments:
    """A call of the same inputs."""
    return arguments | outputs(*arguments["ids"].shape)


def random_case(
    *,
    N: int,
    V: int,
    H: int,
    top_k: int,
    dtype: torch.dtype = torch.bfloat16,
    is_e4m3: bool = False,
    has_noise: bool = False,
    has_subset: bool = False,
) -> Arguments:
    """Random rows in random order, some twice, some absent if they are many; others are NaN."""
    generator = torch.Generator().manual_seed(N + V + H)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    R = N + 3
    x = (randn(R, H) * 2).to(dtype)
    sample_rows = torch.randint(R - 1, (N,), generator=generator, dtype=torch.int32)
    if N > 4:
        sample_rows[2] = -1
    x[R - 1] = torch.nan
    weight, scale = (randn(V, H) * 2 / H**0.5).to(dtype), None
    if is_e4m3:
        scale = weight.float().abs().amax(1) / 448
        weight = (weight.float() / scale[:, None]).to(torch.float8_e4m3fn)
    subset = torch.arange(V, dtype=torch.int32)[torch.rand(V, generator=generator) < 0.8]
    noise = {
        "noise_keys": torch.randint(-(2**62), 2**62, (N,), generator=generator),
        "noise_positions": torch.randint(2**34, (N,), generator=generator),
        "temperature": torch.tensor([1.0, 0.0, 0.5, 2.0]).repeat(N)[:N].contiguous(),
    }
    return {
        "x": x,
        "sum_squares": reference.sum_squares(x),
        "sample_rows": sample_rows,
        "norm_weight": (1 + 0.1 * randn(H)).to(dtype),
        "weight": weight,
        "weight_scale": scale,
        "vocab_subset": subset if has_subset else None,
        "draft_to_target": torch.arange(V) * 3 + 1,
        **(noise if has_noise else dict.fromkeys(noise)),
        "eps": 1e-5,
        **outputs(N, top_k),
    }


def picked_case(logits: Tensor, *, top_k: int, dtype: torch.dtype = torch.bfloat16) -> Arguments:
    """A call that has these logits [N, V], exactly, if `dtype` holds them; without extras.

    Row n is a unit vector after the norm, so its logits are column n of the weight. A logit that is
    no number or infinite makes the logits of that id NaN in all other rows.
    """
    N, V = logits.shape
    H = 64 if N <= 64 else 256  # squares of powers of two
    x = torch.zeros(N, H, dtype=dtype)
    x[torch.arange(N), torch.arange(N)] = 2.0
    weight = torch.zeros(V, H, dtype=dtype)
    weight[:, :N] = logits.T
    return {
        "x": x,
        "sum_squares": reference.sum_squares(x),
        "sample_rows": torch.arange(N, dtype=torch.int32),
        "norm_weight": torch.full((H,), H**-0.5).to(dtype),  # the norm makes it sqrt(H)
        "weight": weight,
        "weight_scale": None,
        "vocab_subset": None,
        "draft_to_target": None,
        "noise_keys": None,
        "noise_positions": None,
        "temperature": None,
        "eps": 0.0,
        **outputs(N, top_k),
    }


def reference_of(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """What the reference makes of the inputs, in their dtype."""
    a = arguments
    noise = None
    if a["temperature"] is not None:
        noise = Noise(a["noise_keys"], a["noise_positions"], a["temperature"])
    weight = reference.dequantize(a["weight"], a["weight_scale"], a["x"].dtype)
    return reference.lm_head_topk(
        a["x"], a["sample_rows"], a["norm_weight"], weight, a["draft_to_target"],
        a["ids"].shape[1], a["eps"], vocab_subset=a["vocab_subset"], noise=noise,
    )  # fmt: skip


def exact(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The exact results of a picked case, of rows that are unit vectors already."""
    H = arguments["x"].shape[1]
    rows = arguments["sample_rows"]
    a = {name: double(x) for name, x in arguments.items()}
    a |= {
        "x": torch.eye(H, dtype=torch.float64)[rows.clamp(min=0).long()] * H**0.5,
        "sample_rows": torch.where(rows >= 0, torch.arange(len(rows)), -1).int(),
        "norm_weight": torch.full((H,), H**-0.5, dtype=torch.float64),
    }
    return reference_of(a)
