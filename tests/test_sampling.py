"""The keys of requests, and that what the engine draws with them inverts the target's law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p_eagle_cuda.ops import Sampling, verify
from p_eagle_cuda.sampling import request_key


def draw(logits: Tensor, temperature: float, keys: Tensor) -> Tensor:
    """One token for each of some requests, all at position 1."""
    B = len(keys)
    sampling = Sampling(torch.full((B,), temperature), keys, torch.zeros(B, dtype=torch.int64))
    rows = torch.arange(B + 1, dtype=torch.int32)
    nodes = torch.zeros(B, 1, dtype=torch.int64)
    return verify(logits.repeat(B, 1), rows, nodes, nodes[:, 0], sampling).next_tokens


def test_keys_depend_on_both_parts() -> None:
    keys = {request_key(*key) for key in ((1, 2), (2, 1), (1, 3), (2, 2), (-1, 2), (2**70, 2))}
    assert len(keys) == 6
    assert request_key(1, 2) == request_key(1, 2)
    assert all(-(2**63) <= key < 2**63 for key in keys)


@pytest.mark.parametrize("part", [0, 1])
def test_draws_of_neighbouring_keys_follow_the_law(part: int) -> None:
    """A chi-squared test, and no correlation between neighbours, along each part of the key."""
    n, p = 2000, torch.tensor([0.2, 0.0, 0.5, 0.3])
    keys = torch.tensor([request_key(*[i if j == part else 7 for j in range(2)]) for i in range(n)])
    drawn = draw(p.log(), 1.0, keys)
    counts = torch.bincount(drawn, minlength=4)
    assert counts[1] == 0
    expected = n * p[p > 0]
    assert float(((counts[p > 0] - expected).square() / expected).sum()) < 13.8  # 2 degrees
    correlation = torch.corrcoef(torch.stack([drawn[1:], drawn[:-1]]).double())[0, 1]
    assert abs(float(correlation)) < 0.08


@pytest.mark.parametrize("temperature", [1e-9, 1e-40, 5e-324, 0.0])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.randn(50) * 5
    assert (draw(logits, temperature, torch.arange(20)) == logits.argmax()).all()


def test_temperature_sharpens() -> None:
    keys, logits = torch.arange(300), torch.tensor([0.0, 1.0])
    shares = [float(draw(logits, t, keys).double().mean()) for t in (1.0, 0.5)]
    # p(1) = 1 / (1 + e^-1) at temperature 1, 1 / (1 + e^-2) at one half.
    assert shares == pytest.approx([0.731, 0.881], abs=0.06)
