"""The policy of how many tokens to draft."""

from __future__ import annotations

import random

import pytest

from p_eagle_cuda.draft_length import DraftLengthPolicy

K = 7


def taught(shares: list[float], steps: int = 4000, **options: float) -> DraftLengthPolicy:
    """After verifications whose drafts are accepted with these shares, position by position."""
    policy, rng = DraftLengthPolicy(K, **options), random.Random(0)
    teach(policy, shares, steps, rng)
    return policy


def teach(policy: DraftLengthPolicy, shares: list[float], steps: int, rng: random.Random) -> None:
    for _ in range(steps):
        accepted = 0
        while accepted < len(shares) and rng.random() < shares[accepted]:
            accepted += 1
        policy.observe(len(shares), accepted)


def test_shares_are_those_of_the_past() -> None:
    shares = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    found = taught(shares, half_life=1000).shares()
    for i, (x, y) in enumerate(zip(found, shares, strict=True)):
        assert abs(x - y) < 0.05 + 0.02 * i, (i, x, y)


@pytest.mark.parametrize("batch_size", [1, 4, 16, 64, 256])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_the_choice_is_the_best_of_all(batch_size: int, share: float) -> None:
    """By the model written out, with the shares that the policy believes in."""
    policy = taught([share] * K, row_cost=0.01, draft_cost=0.2)
    p = policy.shares()

    def rate(k: int) -> float:
        tokens = 1.0
        for n in range(1, k + 1):
            product = 1.0
            for x in p[:n]:
                product *= x
            tokens += product
        return tokens / (1.2 + 0.01 * batch_size * (k + 1))

    assert policy.choose(batch_size) == max(range(1, K + 1), key=rate)


def test_a_busy_target_gets_fewer_drafts() -> None:
    policy = taught([0.8] * K)
    ks = [policy.choose(b) for b in (1, 8, 32, 64, 128, 256, 1024)]
    assert ks == sorted(ks, reverse=True)
    assert ks[0] == K
    assert ks[-1] <= 3


def test_it_follows_a_change_within_a_few_half_lives() -> None:
    policy, rng = DraftLengthPolicy(K, half_life=50), random.Random(1)
    teach(policy, [0.9] * K, 500, rng)
    assert policy.choose(32) >= 5
    teach(policy, [0.1] * K, 200, rng)
    assert policy.choose(32) == 1
    # Only one position is drafted now, and the later ones follow it.
    teach(policy, [0.95], 300, rng)
    assert policy.choose(32) >= 4


def test_without_experience_or_cost() -> None:
    assert DraftLengthPolicy(K).choose(1) == K
    assert DraftLengthPolicy(K, row_cost=0).choose(10**6) == K
    policy = DraftLengthPolicy(K)
    before = policy.shares()
    policy.observe(0, 0)
    assert policy.shares() == before
    assert before == pytest.approx([DraftLengthPolicy.FIRST_SHARE] * K)


def test_what_makes_no_sense_is_refused() -> None:
    for options, reason in (
        ({"max_k": 0}, "max_k must be at least 1, got 0"),
        ({"max_k": 3, "row_cost": -1}, "row_cost must be at least 0, got -1"),
        ({"max_k": 3, "draft_cost": -0.5}, "draft_cost must be at least 0, got -0.5"),
        ({"max_k": 3, "half_life": 0}, "half_life must be above 0, got 0"),
    ):
        with pytest.raises(ValueError, match=reason):
            DraftLengthPolicy(**options)
    policy = DraftLengthPolicy(3)
    for drafts, accepted in ((4, 1), (2, 3), (1, -1)):
        with pytest.raises(ValueError, match=f"got {accepted} and {drafts}"):
            policy.observe(drafts, accepted)
