"""Choices of the target: keyed randomness, distributions, acceptance."""

from __future__ import annotations

import pytest
import torch

from p_eagle_cuda.sampling import choose, count_accepted, keyed_uniform


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0], [2.0, 1.0, 0.0]])
    assert choose(logits, 0, []).tolist() == [1, 0]


def test_sampling_inverts_the_distribution() -> None:
    """Each token owns an interval of the uniforms as long as its probability."""
    probabilities = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64)
    logits = probabilities.log().expand(5, 4)
    uniforms = [0.0, 0.199, 0.201, 0.699, 0.701]
    assert choose(logits, 1.0, uniforms).tolist() == [0, 0, 2, 2, 3]


def test_temperature_sharpens() -> None:
    logits = torch.tensor([0.0, 1.0]).expand(2, 2)
    # p(1) = 1 / (1 + e^-1) = 0.731 at temperature 1, 1 / (1 + e^-2) = 0.881 at one half.
    assert choose(logits, 1.0, [0.26, 0.28]).tolist() == [0, 1]
    assert choose(logits, 0.5, [0.11, 0.13]).tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [1e-9, 1e-310, 5e-324])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.randn(20, 50) * 5
    assert torch.equal(choose(logits, temperature, [0.5] * 20), logits.argmax(-1))


def test_impossible_tokens_are_never_drawn() -> None:
    """Not even by the extreme uniforms, where cumulative sums end short of 1 or begin at 0."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 500, generator=g) * 8
    logits[:, :3] = logits[:, -3:] = float("-inf")
    for u in (0.0, 1 - 2.0**-53):
        drawn = choose(logits, 1.0, [u] * 200)
        assert logits.gather(1, drawn[:, None]).isfinite().all()


def test_keyed_uniform_depends_on_every_part_of_the_key() -> None:
    values = {
        keyed_uniform(*key) for key in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1))
    }
    assert len(values) == 5
    assert keyed_uniform(1, 2, 3) == keyed_uniform(1, 2, 3)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_keyed_uniform_is_uniform(part: int) -> None:
    """A chi-squared test over 64 bins, and no correlation between neighbours, along each part."""
    n = 20_000
    values = torch.tensor(
        [keyed_uniform(*[i if j == part else 7 for j in range(3)]) for i in range(n)]
    )
    assert 0 <= float(values.min())
    assert float(values.max()) < 1
    counts = torch.histc(values, 64, 0, 1)
    chi_squared = float(((counts - n / 64) ** 2 / (n / 64)).sum())
    assert chi_squared < 110  # 63 degrees of freedom: p = 2e-4
    correlation = torch.corrcoef(torch.stack([values[1:], values[:-1]]))[0, 1]
    assert abs(float(correlation)) < 0.03


def test_negative_and_huge_seeds_are_keys_too() -> None:
    assert keyed_uniform(-1, 0, 0) != keyed_uniform(1, 0, 0)
    assert 0 <= keyed_uniform(2**70, 0, 0) < 1


def test_count_accepted_stops_at_the_first_difference() -> None:
    assert count_accepted([1, 2, 3], [1, 2, 3, 4]) == 3
    assert count_accepted([1, 9, 3], [1, 2, 3, 4]) == 1
    assert count_accepted([9], [1, 2]) == 0
    assert count_accepted([], [1]) == 0
