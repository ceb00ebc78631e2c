"""How well drafts were accepted, with the definitions that vLLM's metrics use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOOP_REPEATS = 3
MIN_LOOP_SPAN = 24  # tokens; shorter repetition is ordinary indentation and punctuation
MAX_LOOP_PERIOD = 96


@dataclass(frozen=True)
class Step:
    """A target pass that emitted tokens for one request.

    Attributes:
        offset: Tokens that the request had generated before.
        num_drafts: Drafts verified; 0 in the pass that ends the prompt and in plain decoding.
        num_accepted: Drafts that were accepted, one after the other. The pass emits one token more,
            unless the request ends before; acceptance counts what was verified, as vLLM's metrics
            do.
        ranks: Where each of these tokens, the last included, stood among the drafter's entries of
            its depth, best first from 0 on; -1: not among them. As far as the drafter drafted.
    """

    offset: int
    num_drafts: int
    num_accepted: int
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Acceptance:
    """Acceptance over a set of verification steps.

    Attributes:
        length: Mean tokens per verification step, the target's own token included; 1 if no draft
            was ever accepted. None when there was no verification step.
        per_position: Share of the steps in which draft position k was accepted.
        steps: Verification steps.
    """

    length: float | None
    per_position: list[float]
    steps: int


def acceptance(steps: Iterable[Step], num_speculative_tokens: int) -> Acceptance:
    """Aggregate the steps that verified drafts."""
    verified = [step for step in steps if step.num_drafts]
    if not verified:
        return Acceptance(None, [], 0)
    n = len(verified)
    return Acceptance(
        length=1 + sum(step.num_accepted for step in verified) / n,
        per_position=[
            sum(step.num_accepted > k for step in verified) / n
            for k in range(num_speculative_tokens)
        ],
        steps=n,
    )


def nodes_per_step(steps: Iterable[Step]) -> float | None:
    """Mean rows of a verification step: its drafts and the token before them; None without any."""
    nodes = [step.num_drafts + 1 for step in steps if step.num_drafts]
    return sum(nodes) / len(nodes) if nodes else None


def rank_accuracies(
    steps: Iterable[Step], num_speculative_tokens: int, top_k: int
) -> list[list[float]]:
    """How often the target's token was each of the drafter's entries, for `tree.best_paths`.

    Args:
        steps: Of chains or trees. Those count for a depth in which all tokens before were the
            drafter's best.
        num_speculative_tokens: K.
        top_k: Entries of a depth.

    Returns:
        A row for each of K depths, a share for each rank; zeros for a depth that was never reached.
    """
    counts = [[0] * top_k for _ in range(num_speculative_tokens)]
    reached = [0] * num_speculative_tokens
    for step in steps:
        for depth, rank in enumerate(step.ranks):
            reached[depth] += 1
            if rank >= 0:
                counts[depth][rank] += 1
            if rank != 0:
                break
    return [[c / max(n, 1) for c in row] for row, n in zip(counts, reached, strict=True)]


def before_loop(token_ids: Sequence[int], steps: Sequence[Step]) -> list[Step]:
    """The steps of a completion that ended before its text began to loop."""
    start = loop_start(token_ids)
    if start == len(token_ids):
        return list(steps)
    return [step for step in steps if step.offset + step.num_accepted + 1 <= start]


def loop_start(token_ids: Sequence[int]) -> int:
    """Where a text begins to loop: the index of the first repetition, or the length if none.

    A loop is a passage of at most MAX_LOOP_PERIOD tokens that occurs LOOP_REPEATS times in a row
    and spans at least MIN_LOOP_SPAN tokens. Its first occurrence is not yet repetition.
    """
    n = len(token_ids)
    start = n
    for period in range(1, MAX_LOOP_PERIOD + 1):
        needed = max((LOOP_REPEATS - 1) * period, MIN_LOOP_SPAN - period)
        run = 0  # tokens in a row that equal the one a period before
        for i in range(period, n):
            run = run + 1 if token_ids[i] == token_ids[i - period] else 0
            if run == needed:
                start = min(start, i + 1 - needed)
                break
    return start
