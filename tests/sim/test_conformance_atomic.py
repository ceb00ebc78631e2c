"""Atomics: what they leave in memory, and what each lane gets back."""

from __future__ import annotations

import numpy as np

from sim.micro_kernels import Conformance

RNG = np.random.default_rng(0)
BLOCK, GRID = 64, 2


def test_commutative(conformance: Conformance) -> None:
    x = RNG.integers(-(2**31), 2**31 - 1, BLOCK, dtype=np.int32)
    start = np.array([7, 5, 5, 5, 5, -1, 0, 9], np.int32)
    (got,) = conformance.run(
        "atomic.cu", "commutative", inputs=[x], outputs=[start.copy()], block=BLOCK, grid=GRID
    )
    u = x.view(np.uint32)
    expected = [
        (7 + GRID * int(x.sum(dtype=np.int64))) % 2**32,
        min(5, int(x.min())) % 2**32,
        max(5, int(x.max())),
        min(5, int(u.min())),
        max(5, int(u.max())),
        int(np.bitwise_and.reduce(u)),
        int(np.bitwise_or.reduce(u)),
        9,  # an even number of times
    ]
    np.testing.assert_array_equal(got.view(np.uint32), np.array(expected, np.uint32))


def test_commutative_64(conformance: Conformance) -> None:
    x = RNG.integers(-(2**63), 2**63 - 1, BLOCK)
    start = np.array([7, 5, 5, 9], np.int64)
    (got,) = conformance.run(
        "atomic.cu", "commutative_64", inputs=[x], outputs=[start.copy()], block=BLOCK
    )
    total = (7 + sum(map(int, x))) % 2**64
    expected = [total, min(5, int(x.min())) % 2**64, max(5, int(x.view(np.uint64).max()))]
    expected.append(int(np.bitwise_xor.reduce(x.view(np.uint64))) ^ 9)
    np.testing.assert_array_equal(got.view(np.uint64), np.array(expected, np.uint64))


def test_float_add(conformance: Conformance) -> None:
    x = RNG.integers(-1000, 1000, BLOCK, dtype=np.int32)
    zeros = [np.zeros(1, dtype) for dtype in (np.float32, np.float64, np.uint32, np.uint32)]
    single, double, bfloat16, half = conformance.run(
        "atomic.cu", "float_add", inputs=[x], outputs=zeros, block=BLOCK
    )
    assert single[0] == x.sum()
    assert double[0] == x.sum()
    # 64 times 3.0 is 192, exact in both: 0x4340 in bfloat16, 0x5a00 in half.
    assert (bfloat16[0], half[0]) == (0x43404340, 0x5A005A00)


def test_subnormal_add(conformance: Conformance) -> None:
    (got,) = conformance.run(
        "atomic.cu", "subnormal_add", outputs=[np.zeros(3, np.float32)], n=[7], block=BLOCK
    )
    np.testing.assert_array_equal(got.view(np.int32), [0, 7 * BLOCK, 7 * BLOCK])


def test_tickets(conformance: Conformance) -> None:
    counter, tickets, shared = conformance.run(
        "atomic.cu", "tickets",
        outputs=[np.zeros(1, np.int32), (BLOCK, np.int32), (BLOCK, np.int32)], block=BLOCK,
    )  # fmt: skip
    assert counter[0] == BLOCK
    np.testing.assert_array_equal(np.sort(tickets), np.arange(BLOCK))
    # 100, 101, 102, then from 0 to 102.
    expected = [100, 101, 102, *range(BLOCK - 3)]
    np.testing.assert_array_equal(np.sort(shared), np.sort(expected))


def test_returned_values(conformance: Conformance) -> None:
    start = np.arange(32, dtype=np.int32)
    words, got = conformance.run(
        "atomic.cu", "returned_values", outputs=[start.copy(), ((32, 6), np.int32)]
    )
    # Exchange: 40. Swap: 41. No swap: 41. Decrement: 40. Increment, wraps: 0. Decrement, wraps: 50.
    constant = np.tile([40, 41, 41, 40, 0], (32, 1))
    np.testing.assert_array_equal(got, np.concatenate([start[:, None], constant], axis=1))
    np.testing.assert_array_equal(words, 50)


def test_vector_add(conformance: Conformance) -> None:
    two, four = conformance.run(
        "atomic.cu", "vector_add",
        outputs=[np.zeros(2, np.float32), np.zeros(4, np.float32)], block=BLOCK,
    )  # fmt: skip
    np.testing.assert_array_equal(two, BLOCK * np.array([1, 2]))
    np.testing.assert_array_equal(four, BLOCK * np.array([1, 2, 4, 8]))


def test_spin_lock(conformance: Conformance) -> None:
    lock, total = conformance.run(
        "atomic.cu", "spin_lock",
        outputs=[np.zeros(1, np.int32), np.zeros(1, np.int32)], block=128, grid=3,
    )  # fmt: skip
    assert (lock[0], total[0]) == (0, 12)


def test_traffic(conformance: Conformance) -> None:
    """Memory is read and written, whether or not a lane wants the result, or the word changes."""
    conformance.run(
        "atomic.cu", "returned_values",
        outputs=[np.arange(32, dtype=np.int32), ((32, 6), np.int32)],
    )  # fmt: skip
    for launch in conformance.launches:
        words = launch.traffic["out0"]
        assert words.read.bytes == words.written.bytes == 6 * 128
        assert words.read.unique_sectors == words.written.unique_sectors == 4
    zeros = [np.zeros(2, np.float32), np.zeros(4, np.float32)]
    conformance.run("atomic.cu", "vector_add", outputs=zeros, block=BLOCK)
    for launch in conformance.launches:
        for name, size in (("out0", 8), ("out1", 16)):
            moved = launch.traffic[name]
            assert moved.read.bytes == moved.written.bytes == BLOCK * size
