"""Whole passes where users run them: on a GPU, with and without graphs, against float64.

Where there is no GPU the same passes run on the CPU, so that the tests themselves are tested.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints import write_drafter
from drafter_passes import PROMPTS, SIZES, TOP_K, K, passes, propose, reference_pass
from drafter_variants import VARIANTS
from numerics import assert_as_accurate_as_torch
from p_eagle_cuda import Drafter
from p_eagle_cuda.cuda_graphs import PassShape
from pass_cases import Pass

# Columns of every weight must be multiples of 64.
EVEN_SIZES = {"hidden_size": 128, "intermediate_size": 192, "target_hidden_size": 64}
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def there(step: Pass, where: str) -> Pass:
    """The same pass with its tensors on a device."""
    tensors = {n: x.to(where) for n, x in vars(step).items() if isinstance(x, Tensor)}
    return replace(step, **tensors, taps=[tap.to(where) for tap in step.taps])


def drafted(drafter: Drafter, steps: list[Pass], where: str) -> list[tuple[Tensor, ...]]:
    """What each pass has drafted, on the CPU."""
    results = []
    for step in steps:
        drafts = propose(drafter, there(step, where))
        results.append(tuple(x.cpu() for x in drafts))
    return results


def load(path: Path, where: str, **options: Any) -> Drafter:
    return Drafter.from_pretrained(path, **{"dtype": BF16, "device": where, **SIZES, **options})


def assert_right(path: Path, steps: list[Pass], drafts: tuple[Tensor, ...], **of: Any) -> None:
    """The last pass is as accurate as the reference in the working dtype."""
    dtype = of.get("dtype", BF16)
    cache = of.get("kv_dtype")
    _, exact, exact_lse = reference_pass(path, steps, torch.float64, cache or torch.float64)
    _, unfused, unfused_lse = reference_pass(path, steps, dtype, cache or dtype)
    _, _, logits, lse = drafts
    shape = (len(PROMPTS), K, TOP_K)
    assert_as_accurate_as_torch("logits", logits, exact.view(shape), unfused.view(shape))
    assert_as_accurate_as_torch("lse", lse, exact_lse.view(shape[:2]), unfused_lse.view(shape[:2]))


@pytest.mark.parametrize("linear", ["fused", "torch", "cutlass"])
def test_graphs_change_no_bit(linear: str, where: str, tmp_path: Path) -> None:
    """A prompt and three verifications, kernel by kernel and from a graph."""
    if (
        linear == "cutlass"
        and where == "cuda"
        and torch.cuda.get_device_capability() not in ((9, 0), (10, 0))
    ):
        pytest.skip("needs compute capability 9.0 or 10.0")
    write_drafter(tmp_path, **EVEN_SIZES)
    drafter = load(tmp_path, where, linear=linear)
    steps = passes(drafter.config, BF16, num_steps=3)
    with_graphs = drafted(drafter, steps, where)
    if where == "cuda":
        assert drafter._graphs is not None
        assert drafter._graphs.shapes == [PassShape(len(PROMPTS), K)]
    without = drafted(load(tmp_path, where, linear=linear, cuda_graphs=False), steps, where)
    for step, (one, other) in enumerate(zip(with_graphs, without, strict=True)):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True)), f"pass {step}"
    assert_right(tmp_path, steps, with_graphs[-1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_checkpoint(variant: str, where: str, tmp_path: Path) -> None:
    write_drafter(tmp_path, **EVEN_SIZES, **VARIANTS[variant])
    drafter = load(tmp_path, where, linear="fused")
    steps = passes(drafter.config, BF16)
    assert_right(tmp_path, steps, drafted(drafter, steps, where)[-1])


@pytest.mark.parametrize(
    "options",
    [{"dtype": torch.float16}, {"kv_dtype": E4M3}, {"batch_sizes": (5,)}],
    ids=["float16", "fp8-cache", "padded"],
)
def test_options(options: dict[str, Any], where: str, tmp_path: Path) -> None:
    write_drafter(tmp_path, **EVEN_SIZES)
    drafter = load(tmp_path, where, **options)
    steps = passes(drafter.config, options.get("dtype", BF16))
    assert_right(tmp_path, steps, drafted(drafter, steps, where)[-1], **options)
