"""Acceptance figures, and where a text begins to loop."""

from __future__ import annotations

import pytest

from p_eagle_cuda.statistics import (
    MIN_LOOP_SPAN,
    Step,
    acceptance,
    before_loop,
    loop_start,
    nodes_per_step,
    rank_accuracies,
)


def test_acceptance_counts_verification_steps_only() -> None:
    steps = [Step(0, 0, 0), Step(1, 3, 3), Step(5, 3, 1), Step(7, 3, 0), Step(8, 0, 0)]
    result = acceptance(steps, 3)
    assert result.steps == 3
    assert result.length == pytest.approx(1 + 4 / 3)
    assert result.per_position == pytest.approx([2 / 3, 1 / 3, 1 / 3])


def test_acceptance_of_nothing() -> None:
    assert acceptance([Step(0, 0, 0)], 5).length is None


def test_nodes_are_those_of_steps_with_drafts() -> None:
    steps = [Step(0, 0, 0), Step(1, 15, 3), Step(5, 7, 1), Step(7, 0, 0)]
    assert nodes_per_step(steps) == 12
    assert nodes_per_step(steps[:1]) is None


def test_ranks_count_while_the_best_entries_are_right() -> None:
    steps = [
        Step(0, 0, 0),  # no drafts, no ranks
        Step(1, 3, 2, (0, 0, 1)),
        Step(4, 3, 1, (0, -1)),
        Step(6, 3, 2, (1, 0, 0)),  # a sibling was right: what follows says nothing of the spine
        Step(9, 3, 0, (0,)),
    ]
    assert rank_accuracies(steps, 4, 2) == [[3 / 4, 1 / 4], [1 / 2, 0], [0, 1], [0, 0]]


def test_text_without_repetition_does_not_loop() -> None:
    tokens = list(range(50))
    assert loop_start(tokens) == 50


@pytest.mark.parametrize("period", [1, 2, 7, 40])
def test_loop_starts_after_its_first_occurrence(period: int) -> None:
    head = list(range(1000, 1030))
    tokens = head + list(range(period)) * (3 + MIN_LOOP_SPAN // period)
    assert loop_start(tokens) == 30 + period


def test_two_occurrences_are_not_a_loop() -> None:
    assert loop_start(list(range(30)) * 2) == 60


def test_short_runs_are_not_a_loop() -> None:
    """Indentation and rulers repeat a token without the text going round in circles."""
    assert loop_start([1, 2] + [5] * (MIN_LOOP_SPAN - 1) + [3, 4]) == MIN_LOOP_SPAN + 3
    assert loop_start([1, 2] + [5] * MIN_LOOP_SPAN) == 3


def test_before_loop_keeps_everything_of_a_text_without_loop() -> None:
    """Also a last step whose accepted drafts went past the tokens that were asked for."""
    steps = [Step(0, 0, 0), Step(1, 5, 5)]
    assert before_loop([1, 2, 3, 4], steps) == steps


def test_before_loop_keeps_the_steps_that_ended_before_it() -> None:
    tokens = list(range(10)) + [7, 8] * 20
    start = loop_start(tokens)
    steps = [Step(0, 0, 0), Step(1, 5, 4), Step(6, 5, 4), Step(11, 5, 0), Step(12, 5, 5)]
    assert start == 12
    assert before_loop(tokens, steps) == steps[:4], "the fourth ends where the loop starts"
    assert before_loop(tokens, [Step(11, 5, 1)]) == []
