"""Barriers of blocks, warps and clusters, and addresses in a cluster."""

from __future__ import annotations

import numpy as np

from sim.micro_kernels import Conformance

INT = np.int32


def test_sync(conformance: Conformance) -> None:
    x = np.arange(128, dtype=INT) * 3
    (got,) = conformance.run(
        "barrier.cu", "sync", inputs=[x], outputs=[(128, INT)], block=128, grid=1
    )
    np.testing.assert_array_equal(got, x[::-1])


def test_produce_and_consume(conformance: Conformance) -> None:
    (got,) = conformance.run(
        "barrier.cu", "produce_and_consume", n=[3, 15, 128, 5], outputs=[((5, 64), INT)], block=128
    )
    expected = 1000 * np.arange(5)[:, None] + np.arange(64)[::-1]
    np.testing.assert_array_equal(got, expected)


def test_reductions(conformance: Conformance) -> None:
    for x in (np.arange(96) % 5, np.zeros(96), np.ones(96)):
        (got,) = conformance.run(
            "barrier.cu", "reductions",
            inputs=[x.astype(INT)], outputs=[((96, 7), INT)], block=96,
        )  # fmt: skip
        two = x[:64]
        row = [(x != 0).sum(), x.all(), x.any(), (x == 0).sum()]
        of_two = [(two != 0).sum(), two.all(), two.any()]
        np.testing.assert_array_equal(got[:, :4], np.tile(row, (96, 1)))
        np.testing.assert_array_equal(got[:64, 4:], np.tile(of_two, (64, 1)))
        np.testing.assert_array_equal(got[64:, 4:], -1)


def test_unaligned(conformance: Conformance) -> None:
    values, popc = conformance.run(
        "barrier.cu", "unaligned", outputs=[(64, INT), (64, INT)], block=64
    )
    me = np.arange(64)
    np.testing.assert_array_equal(values, (me * (me % 3 + 1))[::-1])
    np.testing.assert_array_equal(popc, 20 + 10)


def test_after_exits(conformance: Conformance) -> None:
    (got,) = conformance.run("barrier.cu", "after_exits", outputs=[(96, INT)], block=96)
    me = np.arange(96)
    stay = (me >= 32) & ((me < 64) | (me >= 90))
    expected = np.where(stay, np.where(me < 64, 95 - (me - 32) % 6, me - 32), -1)
    np.testing.assert_array_equal(got, expected)


def test_ragged_block(conformance: Conformance) -> None:
    (got,) = conformance.run("barrier.cu", "ragged_block", outputs=[(100, INT)], block=100)
    np.testing.assert_array_equal(got, np.arange(100)[::-1])


def test_warp_sync_apart(conformance: Conformance) -> None:
    (got,) = conformance.run("barrier.cu", "warp_sync_apart", outputs=[(32, INT)])
    me = np.arange(32)
    np.testing.assert_array_equal(got, np.where(me % 2 == 0, 20 * (me + 1), 10 * (me - 1) + 1))


def test_warp_sync_parts(conformance: Conformance) -> None:
    (got,) = conformance.run("barrier.cu", "warp_sync_parts", outputs=[(32, INT)])
    me = np.arange(32)
    np.testing.assert_array_equal(got, np.where(me // 8 == 2, me, 27 * (me ^ 5)))


def test_warp_sync_after_exits(conformance: Conformance) -> None:
    (got,) = conformance.run("barrier.cu", "warp_sync_after_exits", outputs=[(32, INT)])
    me = np.arange(32)
    np.testing.assert_array_equal(got, np.where(me < 20, 19 - me, -1))


def test_ring(conformance: Conformance) -> None:
    size, rounds = 4, 3
    (got,) = conformance.run(
        "barrier.cu", "ring", n=[rounds], outputs=[((size, 32), INT)], grid=size, cluster=size
    )
    values = 100 * np.arange(size)[:, None] + np.arange(32)
    for _ in range(rounds):
        values = np.roll(values, 1, axis=0)[:, ::-1] + 1
    np.testing.assert_array_equal(got, values)


def test_relaxed_arrival(conformance: Conformance) -> None:
    (got,) = conformance.run(
        "barrier.cu", "relaxed_arrival", outputs=[((2, 32), INT)], grid=2, cluster=2
    )
    np.testing.assert_array_equal(got, np.tile([[8], [7]], (1, 32)))


def test_remote_addresses(conformance: Conformance) -> None:
    size, clusters = 3, 2
    (got,) = conformance.run(
        "barrier.cu", "remote_addresses",
        outputs=[((clusters, size, 32, 5), INT)], grid=size * clusters, cluster=size,
    )  # fmt: skip
    rank = np.arange(size)[:, None]
    of = (rank + 1 + np.arange(32)) % size
    counter = np.where(rank == 0, size * 32 * 33 // 2, 0) + 0 * of
    expected = np.stack([10 * of + 3, 10 * of + 3, of, of, counter], axis=-1)
    np.testing.assert_array_equal(got, np.stack([expected] * clusters))


def test_cluster_after_exits(conformance: Conformance) -> None:
    (got,) = conformance.run(
        "barrier.cu", "cluster_after_exits",
        outputs=[((4, 64), INT)], block=64, grid=4, cluster=4,
    )  # fmt: skip
    expected = np.tile(10 + np.arange(4)[:, None], (1, 64))
    expected[[0, 3]] -= 10
    expected[2, 32:] -= 10
    np.testing.assert_array_equal(got, expected)
