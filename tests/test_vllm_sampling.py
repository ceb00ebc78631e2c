"""Drafts that are drawn for vLLM, without it; `vllm/test_law.py` has its verification, too."""

from __future__ import annotations

import torch
from torch import Tensor

from p_eagle_cuda.drafter_pass import Drafts
from p_eagle_cuda.noise import gumbel
from p_eagle_cuda.vllm_plugin.sampling import CANDIDATES, KeyedSampler, sample_drafts


def test_drafts_are_drawn_from_the_law_that_is_told() -> None:
    """By chi-square; seeds repeat, and what is not drawn has one token for certain."""
    B, K, V, n = 4, 2, 9, 4000
    ids = torch.tensor([[3, 1, 8], [5, 0, -1]]).expand(B, K, 3)
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.0, -torch.inf]]).expand(B, K, 3)
    ids, logits = ids.clone(), logits.clone()
    ids[3], logits[3] = -1, -torch.inf  # nothing is drafted
    drafts = Drafts(ids[..., 0], ids, logits, torch.zeros(B, K))
    temperature = torch.tensor([0.7, 2.0, 0.0, 0.7])
    torch.manual_seed(1)
    generators = {0: torch.Generator().manual_seed(7)}
    found = [sample_drafts(drafts, temperature, generators, V) for _ in range(n)]
    law = found[0].probabilities
    assert law.shape == (B, K, V)
    torch.testing.assert_close(law.sum(dim=2), torch.ones(B, K))
    for b in (0, 1):
        expected = torch.zeros(K, V)
        for i in range(K):
            share = (logits[b, i] / temperature[b]).softmax(0)
            expected[i].index_add_(0, ids[b, i].clamp(min=0), share)
        torch.testing.assert_close(law[b], expected)
    assert law[2].nonzero().tolist() == [[0, 3], [1, 5]]
    assert law[3].nonzero().tolist() == [[0, 0], [1, 0]]
    tokens = torch.stack([x.token_ids for x in found])
    counts = torch.nn.functional.one_hot(tokens, V).sum(0)
    impossible = (counts > 0) & (law == 0)
    assert not impossible.any()
    distance = ((counts - n * law).square() / (n * law)).nan_to_num(nan=0.0).sum(dim=2)
    assert (distance < 20).all(), distance  # two degrees of freedom
    generators = {0: torch.Generator().manual_seed(7)}
    again = [sample_drafts(drafts, temperature, generators, V).token_ids for _ in range(20)]
    assert torch.equal(torch.stack(again)[:, 0], tokens[:20, 0])
    assert not torch.equal(torch.stack(again)[:, 1], tokens[:20, 1])


# ---- Noise with keys, as on the V2 runner --------------------------------------------------------


def drafts_of(ids: Tensor, logits: Tensor) -> Drafts:
    """With as many columns as there are candidates, of which those that are missing are -1."""
    B, K, n = ids.shape
    top_ids = torch.full((B, K, CANDIDATES), -1)
    top_ids[..., :n] = ids
    top_logits = torch.full((B, K, CANDIDATES), -torch.inf)
    top_logits[..., :n] = logits.masked_fill(ids < 0, -torch.inf)
    return Drafts(top_ids[..., 0], top_ids, top_logits, torch.zeros(B, K))


def gumbel_sample(
    logits: Tensor, slots: Tensor, temperature: Tensor, seeds: Tensor, keys: Tensor, *,
    apply_temperature: bool, is_drafting: bool, use_fp64: bool,
) -> Tensor:  # fmt: skip
    """As vLLM's, with our own noise."""
    assert apply_temperature
    assert is_drafting
    assert not use_fp64
    noise = gumbel(seeds[slots, None], keys[:, None], torch.arange(logits.shape[1]))
    is_greedy = (temperature[slots] == 0)[:, None]
    scaled = logits / torch.where(is_greedy, 1.0, temperature[slots, None])
    return torch.where(is_greedy, scaled, scaled + noise).argmax(dim=1)


def test_logits_for_verification_are_those_of_the_last_candidates() -> None:
    """In the place of the request, at any number of drafts; nothing of earlier ones is left."""
    slots, K, V = 5, 3, 40
    stored = torch.full((slots, K, V), -torch.inf)
    expected = stored.clone()
    sampler = KeyedSampler(stored, gumbel_sample)
    torch.manual_seed(0)
    temperature, seeds = torch.rand(slots) + 0.5, torch.arange(slots)
    for step in range(6):
        B, k = 1 + step % 3, K - step % 2
        places = torch.randperm(slots)[:B]
        ids = torch.rand(B, k, V).argsort()[..., :CANDIDATES]
        logits = torch.randn(B, k, CANDIDATES).sort(descending=True).values
        ids[0, 0, 3:] = -1  # few candidates
        ids[0, -1, :] = -1  # and none
        drafts = drafts_of(ids, logits)
        tokens = sampler.draw(
            drafts, places, torch.full((B,), 7 + step), temperature, seeds, use_fp64=False
        )
        for b, place in enumerate(places.tolist()):
            expected[place, :k] = -torch.inf
            for i in range(k):
                is_drafted = ids[b, i] >= 0
                expected[place, i, ids[b, i, is_drafted]] = logits[b, i, is_drafted]
                if not is_drafted.any():
                    expected[place, i, 0] = 0.0
        assert torch.equal(stored, expected), step
        assert tokens.shape == (B, k)
        assert (stored[places[:, None], torch.arange(k), tokens] > -torch.inf).all()
    assert tokens[0, -1] == 0


def test_noise_is_another_at_each_step_depth_and_seed() -> None:
    """And the same again for the same; with temperature 0 there is none."""
    n, K, V = 400, 2, 8
    ids = torch.arange(4).expand(n, K, 4)
    drafts = drafts_of(ids, torch.tensor([1.0, 0.5, 0.0, -0.5]).expand(n, K, 4))
    sampler = KeyedSampler(torch.full((n, K, V), -torch.inf), gumbel_sample)
    places, temperature = torch.arange(n), torch.full((n,), 0.7)

    def draw(lengths: Tensor, seeds: Tensor, temperature: Tensor = temperature) -> Tensor:
        return sampler.draw(drafts, places, lengths, temperature, seeds, use_fp64=False)

    by_seed = draw(torch.ones(n), torch.arange(n))
    by_length = draw(torch.arange(1, n + 1), torch.zeros(n, dtype=torch.int64))
    assert torch.equal(draw(torch.ones(n), torch.arange(n)), by_seed)
    assert not draw(torch.ones(n), torch.arange(n), torch.zeros(n)).any()
    law = (torch.tensor([1.0, 0.5, 0.0, -0.5]) / 0.7).softmax(0)
    for tokens in (by_seed, by_length):
        first, second = tokens.T
        pairs = torch.bincount(first * 4 + second, minlength=16) - n * law.outer(law).flatten()
        distance = (pairs.square() / (n * law.outer(law).flatten())).sum()
        assert distance < 45, distance  # fifteen degrees of freedom
    # The second draft of a step and the first of the next are of the same position.
    assert not torch.equal(by_length[:-1, 1], by_length[1:, 0])
