"""Verification: its exact law by enumeration, the biased rules that this finds, and its contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from exact_laws import (
    KINDS, Shape, distance, emitted_law, exact_law, likeliest, random_models, without_replacement,
)  # fmt: skip
from p_eagle_cuda import verification
from p_eagle_cuda.tree import chain, topology
from p_eagle_cuda.verification import Drafts, Residual, Rule, Verified, logit_floors, verify

EXACT = 1e-12  # total variation of laws that are added up in float64
SEEDS = range(4)

CHAIN = Shape.of(chain(2))
TREE = Shape.of(topology([(0,), (1,), (0, 0), (1, 0), (0, 1)]))
ONE_NODE = Shape.of(topology([(0,), (1,)]))


def worst_distance(
    shape: Shape, rule: Rule, draws: Callable[..., Any], kinds: list[str] = KINDS, **changes: Any
) -> float:
    V, depth = 3 if shape is TREE else 4, max(shape.depth(i) for i in range(len(shape.parents)))
    worst = 0.0
    for kind in kinds:
        for seed in SEEDS:
            is_parallel = max(shape.ranks) > 0
            models = random_models(kind, seed, V, depth, is_parallel)
            law = emitted_law(models, shape, rule, depth + 1, draws, **changes)
            worst = max(worst, distance(law, exact_law(models, depth + 1)))
    return worst


LOSSLESS: list[tuple[str, Shape, Rule, Callable[..., Any]]] = [
    ("target choice, drawn chain", CHAIN, "target", without_replacement),
    ("target choice, greedy chain", CHAIN, "target", likeliest),
    ("target choice, drawn tree", TREE, "target", without_replacement),
    ("target choice, best tree", TREE, "target", likeliest),
    ("standard rejection, drawn chain", CHAIN, "rejection", without_replacement),
    ("block verification, drawn chain", CHAIN, "block", without_replacement),
    ("rejection without replacement, tree", TREE, "rejection", without_replacement),
]


@pytest.mark.parametrize(
    ("name", "shape", "rule", "draws"), LOSSLESS, ids=[x[0].replace(" ", "-") for x in LOSSLESS]
)
def test_lossless(
    name: str, shape: Shape, rule: Rule, draws: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    worst = worst_distance(shape, rule, draws)
    with capsys.disabled():
        print(f"\n    {name}: worst total variation {worst:.1e}", end="")
    assert worst < EXACT


def test_target_choice_is_lossless_however_a_tree_is_pruned() -> None:
    assert worst_distance(
        TREE, "target", without_replacement,
        exists=lambda law, tokens, rank: float(law[tokens[rank]]) >= 0.3,
    ) < EXACT  # fmt: skip


def test_a_sibling_may_depend_on_the_draws_before_it() -> None:
    assert worst_distance(
        ONE_NODE, "rejection", without_replacement,
        exists=lambda law, tokens, rank: rank == 0 or float(law[tokens[0]]) < 0.5,
    ) < EXACT  # fmt: skip


# ---- Rules that are biased: the test of the test ---------------------------------------------------


def sorted_draws(law: Tensor, count: int) -> Any:
    for tokens, probability in without_replacement(law, count):
        yield tuple(sorted(tokens, key=lambda token: -float(law[token]))), probability


def truncated_draws(law: Tensor, count: int) -> Any:
    """From the better half of the law, renormalised."""
    yield from without_replacement(truncated(law), count)


def truncated(law: Tensor) -> Tensor:
    kept = law.masked_fill(law < law.sort(descending=True).values[len(law) // 2 - 1], 0)
    return kept / kept.sum()


BIASED: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    ("rejection of siblings that were not drawn", likeliest, {}),
    ("siblings sorted by their law", sorted_draws, {}),
    (
        "a sibling pruned by its own law",
        without_replacement,
        {"exists": lambda law, tokens, rank: rank == 0 or float(law[tokens[rank]]) >= 0.2},
    ),
    ("drawn from a truncated law, judged by the whole", truncated_draws, {}),
]


@pytest.mark.parametrize(
    ("name", "draws", "changes"), BIASED, ids=[x[0].replace(" ", "-") for x in BIASED]
)
def test_bias_is_found(
    name: str, draws: Callable[..., Any], changes: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    worst = worst_distance(ONE_NODE, "rejection", draws, ["any"], **changes)
    with capsys.disabled():
        print(f"\n    {name}: total variation {worst:.2f}", end="")
    assert worst > 0.01


def test_a_truncated_law_judged_by_itself_is_lossless() -> None:
    """The draft law of this project: the softmax over the entries that were there to be drawn."""
    assert worst_distance(
        CHAIN, "rejection", truncated_draws, ["any", "sharp"], judged=truncated
    ) < EXACT  # fmt: skip


def test_siblings_that_are_judged_independently_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each accepted with min(1, p / q) of the node, as one published kernel does."""
    choose = Residual.choose

    def choose_after_all(self: Residual, *arguments: Any) -> int:
        self.subtract()
        return choose(self, *arguments)

    monkeypatch.setattr(Residual, "reject", lambda self, entry: None)
    monkeypatch.setattr(Residual, "choose", choose_after_all)
    for draws in (likeliest, without_replacement):
        assert worst_distance(ONE_NODE, "rejection", draws, ["any"]) > 0.01
    assert worst_distance(CHAIN, "rejection", without_replacement, ["any"]) < EXACT


def test_block_verification_accepts_more() -> None:
    """The mean number of accepted drafts, by enumeration, over random laws."""
    gains = []
    for seed in SEEDS:
        models = random_models("any", seed, 4, 2, False)
        means = [mean_accepted(models, rule) for rule in ("rejection", "block")]
        gains.append(means[1] - means[0])
    assert min(gains) >= -EXACT
    assert max(gains) > 0.01


def mean_accepted(models: Any, rule: Rule) -> float:
    mean = 0.0
    original = verification.walk

    def walk_and_count(request: Any, rule: Rule) -> tuple[list[int], int]:
        path, _ = original(request, rule)
        return [0], len(path) - 1  # emits how many were accepted, as a token

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exact_laws.walk", walk_and_count)
        patch.setattr("exact_laws._continued", lambda *_: 1 / 16)  # of two more tokens
        law = emitted_law(models, CHAIN, rule, 3, without_replacement)
    for count in range(3):
        mean += count * float(law[count].sum())
    return mean
