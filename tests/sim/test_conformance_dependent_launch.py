"""Programmatic dependent launch: whose results a kernel may read, and when."""

from __future__ import annotations

import pytest

from sim.emulator import FOUR
from sim.micro_kernels import Conformance

SOURCE = "dependent_launch.cu"

# By function of dependent_launch.cu: what the third launch sees everywhere.
RIGHT = {
    "everybody_waits": 11,
    "one_thread_waits_for_its_block": 11,
    "the_second_waits_for_nobody_but_begins_last": 11,
    "the_first_has_ended_before": 11,
    "the_third_does_not_overlap": 11,
    "the_last_result_after_a_wait": 21,
}
WRONG = (
    "nobody_waits",
    "nobody_waits_for_the_last_result",
    "one_thread_waits_for_itself",
    "the_second_does_not_wait",
    "a_block_of_the_second_does_not_wait",
)


@pytest.mark.parametrize("function", RIGHT)
def test_results_that_may_be_read(conformance: Conformance, function: str) -> None:
    expected = RIGHT[function]
    assert conformance.run_host(SOURCE, function, num_results=2) == [expected, expected]


@pytest.mark.parametrize("function", WRONG)
def test_results_that_may_not(function: str) -> None:
    conformance = Conformance(FOUR["in-order-race"])
    conformance.run_host(SOURCE, function, num_results=2, kinds={"pdl"})
    assert conformance.reports
    message = conformance.reports[0].message
    assert "of the earlier launch of write" in message
    assert "griddepcontrol.wait must come first" in message


def test_begins_after_every_block(conformance: Conformance) -> None:
    run = conformance.run_host
    assert run(SOURCE, "not_all_blocks_have_triggered", num_results=2) == [1, 0]
    if conformance.settings is not None:  # a GPU need not begin it then
        assert run(SOURCE, "one_block_has_triggered_and_one_has_left", num_results=2) == [1, 1]


def test_in_a_graph(conformance: Conformance) -> None:
    assert conformance.run_host(SOURCE, "replayed_twice", num_results=1) == [11]
    if conformance.launches:
        overlaps = [launch.overlaps_previous for launch in conformance.launches]
        assert overlaps == [False, True, False, True]
