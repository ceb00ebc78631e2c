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
        num_accepted: Leading drafts that were accepted. The pass emits one token more, unless the
            request ends before; acceptance counts what was verified, as vLLM's metrics do.
    """

    offset: int
    num_drafts: int
    num_accepted: int


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
