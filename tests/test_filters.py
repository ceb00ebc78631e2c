"""Top-k, top-p and min-p: what they keep, by their definitions and at their limits."""

from __future__ import annotations

import torch
from torch import Tensor

from p_eagle_cuda.verification import logit_floors, target_law


def floors_of(logits: Tensor, t: float = 1.0, **filters: float) -> Tensor:
    tensors = {
        name: torch.tensor([x], dtype=torch.int32 if name == "top_k" else torch.float32)
        for name, x in filters.items()
    }
    return logit_floors(
        logits[None], torch.tensor([0, 1], dtype=torch.int32), torch.tensor([t]), **tensors
    )


def test_filters_keep_what_their_definitions_say() -> None:
    """Against a loop over tokens, with ties among them."""
    g = torch.Generator().manual_seed(0)
    for _ in range(60):
        logits = (torch.randn(30, generator=g) * 4).round() / 2
        t = float(torch.rand((), generator=g) + 0.5)
        k, p, m = int(torch.randint(1, 35, (), generator=g)), *torch.rand(2, generator=g).tolist()
        p = 0.2 + 0.8 * p
        probabilities = (logits.double() / t).softmax(0)

        def survives(x: int, logits: Tensor = logits, k: int = k) -> bool:
            return int((logits > logits[x]).sum()) < k

        of_top_k = [x for x in range(30) if survives(x)]
        mass = float(probabilities[of_top_k].sum())
        expected = [
            x for x in of_top_k
            if float(probabilities[logits > logits[x]].sum()) < p * mass
            and float(probabilities[x] / probabilities.max()) >= m / 10
        ]  # fmt: skip
        floor = floors_of(logits, t, top_k=k, top_p=p, min_p=m / 10)
        assert (logits >= floor).nonzero().flatten().tolist() == expected


def test_filters_that_let_all_through_or_one() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, -float("inf")])
    assert floors_of(logits, top_k=0, top_p=1.0, min_p=0.0) == -float("inf")
    for one in ({"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-9}, {"min_p": 1.0}, {"min_p": 7.0}):
        assert floors_of(logits, **one) == 3
    assert floors_of(logits, 0.0, top_k=1) == -float("inf")
    assert floors_of(torch.full((4,), float("nan")), top_k=1) == -float("inf")


def test_filters_that_ask_for_nothing() -> None:
    """No floor, also where every logit is a number."""
    logits, nan = torch.tensor([1.0, 3.0, 2.0]), float("nan")
    for nothing in (
        {"top_k": 0}, {"top_k": -1}, {"top_k": 3}, {"top_k": 2**31 - 1}, {"top_p": 1.0},
        {"top_p": nan}, {"min_p": 0.0}, {"min_p": -1.0}, {"min_p": nan},
    ):  # fmt: skip
        assert floors_of(logits, **nothing) == -float("inf")


def test_filters_at_an_infinite_temperature() -> None:
    """All finite logits have the same probability."""
    inf = float("inf")
    logits = torch.tensor([4.0, -inf, 3.0, 2.0, 1.0])
    assert floors_of(logits, inf, top_p=0.5) == 3
    assert floors_of(logits, inf, top_p=0.51) == 2
    assert floors_of(logits, inf, min_p=1.0) == -inf
    assert target_law(logits, inf, None).tolist() == [0.25, 0, 0.25, 0.25, 0.25]


def test_filters_of_rows_of_several_requests() -> None:
    """A row is the lowest one's, whatever that wants."""
    logits = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    starts = torch.tensor([2, 3, 0, 3], dtype=torch.int32)
    floors = logit_floors(
        logits, starts, torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1, 1, 2]).int()
    )
    assert floors.tolist() == [2, 2, -float("inf")]
