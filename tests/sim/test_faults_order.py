"""Messages from thread to thread: what orders them, in which scope, and what does not.

That a message arrives where it is ordered is true on a GPU, too. Where it is not, race detection
has to say so.
"""

from __future__ import annotations

import enum
import itertools

import numpy as np
import pytest

from sim.emulator import FOUR
from sim.micro_kernels import Conformance

SOURCE = "faults_order.cu"
INT = np.int32


class Scope(enum.IntEnum):
    """Of what a side of the exchange orders."""

    NONE = 0
    BLOCK = 1
    GPU = 2


# By the case in faults_order.cu.
GIVE = {
    "st.relaxed": Scope.NONE,
    "st.release.cta": Scope.BLOCK,
    "st.release.gpu": Scope.GPU,
    "fence.cta, st.relaxed": Scope.BLOCK,
    "fence.gpu, st.relaxed": Scope.GPU,
    "fence.gpu, st.relaxed.cta": Scope.BLOCK,
    "atom.relaxed": Scope.NONE,
    "atom.acquire": Scope.NONE,
    "red.release.cta": Scope.BLOCK,
    "red.release.gpu": Scope.GPU,
    "atom.acq_rel": Scope.GPU,
}
LOOK = {
    "ld.relaxed": Scope.NONE,
    "ld.acquire.cta": Scope.BLOCK,
    "ld.acquire.gpu": Scope.GPU,
    "ld.relaxed, fence.cta": Scope.BLOCK,
    "ld.relaxed, fence.gpu": Scope.GPU,
    "ld.relaxed.cta, fence.gpu": Scope.BLOCK,
    "atom.relaxed": Scope.NONE,
    "atom.release": Scope.NONE,
    "atom.acquire.cta": Scope.BLOCK,
    "atom.acquire.gpu": Scope.GPU,
}


def check(
    conformance: Conformance, kernel: str, *, ordered: bool, initial: tuple[np.ndarray, ...] = (),
    inputs: tuple[np.ndarray, ...] = (), outputs: int, n: list[int], **shape: int,
) -> None:  # fmt: skip
    arguments = {"n": n, "inputs": inputs, "outputs": [*initial, (outputs, INT)], **shape}
    if ordered:
        *_, got = conformance.run(SOURCE, kernel, **arguments)
        np.testing.assert_array_equal(got, 7)
    elif conformance.settings == FOUR["in-order-race"]:
        reports = conformance.run_faulty(SOURCE, kernel, **arguments)
        assert {report.kind for report in reports} == {"race"}, f"found {reports}"


@pytest.mark.parametrize("grid", [1, 2], ids=["within a block", "between blocks"])
@pytest.mark.parametrize("look", LOOK)
@pytest.mark.parametrize("give", GIVE)
def test_message(conformance: Conformance, give: str, look: str, grid: int) -> None:
    wanted = Scope.BLOCK if grid == 1 else Scope.GPU
    check(
        conformance, "message", ordered=min(GIVE[give], LOOK[look]) >= wanted,
        initial=(np.zeros(1, INT), np.zeros(1, INT)), outputs=1, grid=grid, block=64 // grid,
        n=[list(GIVE).index(give), list(LOOK).index(look)],
    )  # fmt: skip


@pytest.mark.parametrize("give", [x for x in GIVE if GIVE[x] != Scope.NONE])
def test_what_comes_after_the_sign_is_not_sent(conformance: Conformance, give: str) -> None:
    check(
        conformance, "message", ordered=False, outputs=1, block=64,
        initial=(np.zeros(1, INT), np.zeros(1, INT)),
        n=[list(GIVE).index(give), list(LOOK).index("ld.acquire.gpu"), 1],
    )  # fmt: skip


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("give", [x for x in GIVE if GIVE[x] != Scope.NONE])
def test_message_of_a_copy(conformance: Conformance, give: str, waits: bool) -> None:
    check(
        conformance, "message_of_a_copy", ordered=waits, inputs=(np.full(4, 7, INT),),
        initial=(np.zeros(1, INT),), outputs=1, block=64,
        n=[list(GIVE).index(give), int(waits)],
    )  # fmt: skip


SIDES = ("relaxed", "relaxed with a fence", "ordered")


@pytest.mark.parametrize(("arrive", "wait"), [*itertools.product(SIDES, SIDES)])
def test_mbarrier(conformance: Conformance, arrive: str, wait: str) -> None:
    check(
        conformance, "message_by_mbarrier", ordered="relaxed" not in (arrive, wait),
        outputs=32, block=64, n=[SIDES.index(arrive), SIDES.index(wait)],
    )  # fmt: skip


@pytest.mark.parametrize("arrive", SIDES)
def test_cluster_barrier(conformance: Conformance, arrive: str) -> None:
    check(
        conformance, "message_by_cluster_barrier", ordered=arrive != "relaxed",
        outputs=64, grid=2, cluster=2, n=[SIDES.index(arrive)],
    )  # fmt: skip
