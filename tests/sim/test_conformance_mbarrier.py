"""mbarriers: phases complete when their arrivals and their bytes have come."""

from __future__ import annotations

import numpy as np

from sim.micro_kernels import Conformance

INT = np.int32


def test_arrive_and_wait(conformance: Conformance) -> None:
    phases = 5
    values = np.arange(96, dtype=INT) ** 2
    (got,) = conformance.run(
        "mbarrier.cu", "arrive_and_wait",
        inputs=[values], n=[phases], outputs=[(96, INT)], block=96,
    )  # fmt: skip
    for _ in range(phases):
        values = values[::-1] + 1
    np.testing.assert_array_equal(got, values)


def test_ring_of_slots(conformance: Conformance) -> None:
    rounds = 7
    (got,) = conformance.run(
        "mbarrier.cu", "ring_of_slots", n=[rounds], outputs=[((rounds, 32), INT)], block=64
    )
    np.testing.assert_array_equal(got, 100 * np.arange(rounds)[:, None] + np.arange(32)[::-1])


def test_counts(conformance: Conformance) -> None:
    (got,) = conformance.run("mbarrier.cu", "counts", outputs=[(13, INT)], block=1)
    # Before 3 of 10 arrivals, then before 2 that drop out; complete with 4 and 1 more.
    expected = [10, 7, False, False, True, False]
    # 7 of 8, then one that drops out; a state of that phase; 7 are left.
    expected += [8, False, True, True, 7]
    expected += [False, True]
    np.testing.assert_array_equal(got, expected)


def test_transactions(conformance: Conformance) -> None:
    (got,) = conformance.run("mbarrier.cu", "transactions", outputs=[(5, INT)], block=1)
    np.testing.assert_array_equal(got, [False, False, True, False, True])


def test_remote_arrivals(conformance: Conformance) -> None:
    size = 4
    (got,) = conformance.run(
        "mbarrier.cu", "remote_arrivals", outputs=[(size, INT)], grid=size, cluster=size
    )
    np.testing.assert_array_equal(got, 5 * np.arange(size))


def test_relaxed(conformance: Conformance) -> None:
    (got,) = conformance.run("mbarrier.cu", "relaxed", outputs=[(64, INT)], block=64)
    np.testing.assert_array_equal(got, 3 * np.arange(64)[::-1])


def test_one_per_lane(conformance: Conformance) -> None:
    (got,) = conformance.run("mbarrier.cu", "one_per_lane", outputs=[(32, INT)])
    me = np.arange(32)
    np.testing.assert_array_equal(got, np.where(me % 2 == 0, 50 + me, -1))
