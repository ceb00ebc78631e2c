"""The noise of probabilistic drafts: the generator, the numbers, and the law of the drafts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from p_eagle_cuda import noise as noise_module
from p_eagle_cuda import reference
from p_eagle_cuda.noise import Noise, Stream, fine_uniform, gumbel, noise_uniform, philox

# From the known answers of Random123, the implementation of the generator's authors.
PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def one(value: int) -> Tensor:
    return torch.tensor([value])


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX)
def test_philox(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox(tuple(map(one, counter)), (one(key[0]), one(key[1])))
    assert tuple(map(int, words)) == expected


def test_which_word_an_id_has() -> None:
    key, position = -(2**62) + 5, 2**33 + 7
    ids = torch.arange(12)
    uniforms = noise_uniform(one(key), one(position), ids)
    for i in ids.tolist():
        low, high = position % 2**32, position >> 32
        words = philox(
            (one(i // 4), one(0), one(low), one(high)),
            (one(key % 2**32), one(key >> 32 & 0xFFFFFFFF)),
        )
        expected = (int(words[i % 4]) + 0.5) * 2.0**-32
        assert float(uniforms[i]) == pytest.approx(expected, rel=2**-23)


def test_streams_and_depths_have_noise_of_their_own() -> None:
    salts = [stream.salt(depth) for stream in Stream for depth in range(64)]
    assert len(set(salts)) == len(salts)
    assert Stream.HEAD.salt() == 0
    assert len({float(fine_uniform(one(1), one(2), one(3), salt)) for salt in salts}) == len(salts)


def test_uniforms_are_never_zero_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, expected in ((0, 2.0**-33), (2**32 - 1, 1 - 2.0**-24), (2**31, 0.5)):
        monkeypatch.setattr(noise_module, "philox", lambda *_, word=word: (one(word),) * 4)
        uniform = noise_uniform(one(0), one(0), one(0))
        assert uniform.dtype == torch.float32
        assert float(uniform) == expected
        assert math.isfinite(float(gumbel(one(0), one(0), one(0))))


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    noise = gumbel(one(1), torch.arange(500)[:, None], torch.arange(400)).double()
    assert float(noise.mean()) == pytest.approx(0.5772156649, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = counts.sum() * probabilities.double()
    return float(((counts - expected).square() / expected).sum())


def drafts(num_rows: int, noise: Noise, top_k: int, weight: Tensor) -> tuple[Tensor, ...]:
    """Rows that have all the same logits, those in `weight` [V, 1]."""
    rows = torch.zeros(num_rows, dtype=torch.int32)
    one_row = torch.ones(1, 1, dtype=weight.dtype)
    return reference.lm_head_topk(one_row, rows, one_row[0], weight, None, top_k, 0.0, noise=noise)


def test_drafts_are_a_sample_without_replacement() -> None:
    """Of pairs of ids, in order: p_i p_j / (1 - p_i), at temperature 2."""
    n, temperature = 20_000, 2.0
    weight = torch.tensor([0.0, 1.0, 2.5, -1.0, 0.5])[:, None]
    noise = Noise(torch.full((n,), 77), torch.arange(n), torch.full((n,), temperature))
    ids, logits, lse = drafts(n, noise, 2, weight)
    p = (weight[:, 0].double() / temperature).softmax(0)
    pairs = p[:, None] * p / (1 - p[:, None])
    distinct = ~torch.eye(5, dtype=torch.bool)
    counts = torch.bincount(ids[:, 0] * 5 + ids[:, 1], minlength=25).view(5, 5)
    assert (counts[~distinct] == 0).all()
    # 19 degrees of freedom: one in a thousand is above 43.8, and the numbers are always the same.
    assert chi_square(counts[distinct], pairs[distinct]) < 43.8
    torch.testing.assert_close((logits - lse[:, None]).exp().double(), p[ids])


def test_requests_and_positions_have_noise_of_their_own() -> None:
    """Two rows that share one of the two draw the same pair of ids as often as chance has it."""
    n = 20_000
    weight = torch.tensor([0.0, 1.0, 2.5, -1.0, 0.5])[:, None]
    p = weight[:, 0].double().softmax(0)
    warm = torch.ones(n)
    first, *_ = drafts(n, Noise(torch.full((n,), 77), torch.arange(n), warm), 1, weight)
    for keys, positions in (
        (torch.full((n,), 77), torch.arange(n) + 2**32),
        (torch.full((n,), 77 + 2**32), torch.arange(n)),
    ):
        second, *_ = drafts(n, Noise(keys, positions, warm), 1, weight)
        counts = torch.bincount(first[:, 0] * 5 + second[:, 0], minlength=25)
        assert chi_square(counts, torch.outer(p, p).flatten()) < 51.2  # 24 degrees of freedom


def test_noise_does_not_depend_on_the_batch_or_the_subset() -> None:
    torch.manual_seed(0)
    x, norm, weight = torch.randn(6, 8), torch.ones(8), torch.randn(40, 8)
    rows = torch.arange(6, dtype=torch.int32)
    noise = Noise(torch.arange(6) * 2**40, torch.arange(6), torch.full((6,), 0.7))
    ids, *_ = reference.lm_head_topk(x, rows, norm, weight, None, 40, 0.0, noise=noise)
    for i in range(6):
        alone = reference.lm_head_topk(
            x,
            rows[i : i + 1],
            norm,
            weight,
            None,
            40,
            0.0,
            noise=Noise(*(t[i : i + 1] for t in noise)),
        )
        assert torch.equal(alone[0][0], ids[i])
    subset = torch.tensor([1, 2, 7, 30, 39], dtype=torch.int32)
    chosen, *_ = reference.lm_head_topk(
        x, rows, norm, weight, None, 5, 0.0, vocab_subset=subset, noise=noise
    )
    expected = torch.stack([row[torch.isin(row, subset)] for row in ids])
    assert torch.equal(chosen, expected)


def test_temperature_zero_is_greedy_without_noise() -> None:
    torch.manual_seed(0)
    x, norm, weight = torch.randn(2, 8), torch.ones(8), torch.randn(40, 8)
    rows = torch.arange(2, dtype=torch.int32)
    noise = Noise(torch.arange(2), torch.arange(2), torch.zeros(2))
    arguments = (x, rows, norm, weight, None, 3, 0.0)
    for a, b in zip(
        reference.lm_head_topk(*arguments), reference.lm_head_topk(*arguments, noise=noise),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(a, b)
