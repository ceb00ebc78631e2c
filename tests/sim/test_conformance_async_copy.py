"""Asynchronous copies: cp.async, bulk copies and bulk reductions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sim.emulator import Traffic
from sim.micro_kernels import Conformance

INT = np.int32
RNG = np.random.default_rng(0)


def test_sizes(conformance: Conformance) -> None:
    x = RNG.integers(0, 256, (32, 64), dtype=np.uint8)
    (got,) = conformance.run("async_copy.cu", "sizes", inputs=[x], outputs=[(x.shape, np.uint8)])
    expected = np.full_like(x, 0xEE)
    for start, size in ((0, 4), (8, 8), (16, 16), (32, 16)):
        expected[:, start : start + size] = x[:, start : start + size]
    np.testing.assert_array_equal(got, expected)


def test_short_sources(conformance: Conformance) -> None:
    x = RNG.integers(1, 256, (64, 16), dtype=np.uint8)
    (got,) = conformance.run(
        "async_copy.cu", "short_sources", inputs=[x], outputs=[(x.shape, np.uint8)], block=64
    )
    lane, byte = np.arange(64)[:, None], np.arange(16)
    valid = np.where(lane < 32, byte < lane % 17, byte % 8 < lane % 9)
    np.testing.assert_array_equal(got, np.where(valid, x, 0))


def test_a_short_source_is_read_no_further(conformance: Conformance) -> None:
    """The last lanes of 48 have sources of 14 and 15 bytes, the last one of 16 bytes is lane 33."""
    x = RNG.integers(1, 256, (48, 16), dtype=np.uint8)
    conformance.run(
        "async_copy.cu", "short_sources", inputs=[x], outputs=[(x.shape, np.uint8)], block=48
    )
    if conformance.launches:
        lane = np.arange(48)
        read = np.where(lane < 32, lane % 17, 2 * (lane % 9)).sum()
        assert conformance.launches[0].traffic["in0"].read.bytes == read


def test_ignored_sources(conformance: Conformance) -> None:
    x = RNG.integers(1, 1000, 32, dtype=INT)
    (got,) = conformance.run("async_copy.cu", "ignored_sources", inputs=[x], outputs=[(32, INT)])
    np.testing.assert_array_equal(got, np.where(np.arange(32) % 3 == 0, x, 0))


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_pipeline(conformance: Conformance, steps: int) -> None:
    x = RNG.integers(0, 100, (steps, 256), dtype=INT)
    (got,) = conformance.run(
        "async_copy.cu", "pipeline", inputs=[x], n=[steps], outputs=[(64, INT)], block=64
    )
    expected = np.zeros(64, INT)
    for step in range(steps):
        expected = 3 * expected + x[step, (5 * np.arange(64) + step) % 256]
    np.testing.assert_array_equal(got, expected)


def test_copies_arrive(conformance: Conformance) -> None:
    x = RNG.integers(0, 1000, (2, 64), dtype=INT)
    extra, counted = conformance.run(
        "async_copy.cu", "copies_arrive", inputs=[x], outputs=[(64, INT), (64, INT)], block=64
    )
    np.testing.assert_array_equal(extra, x[0, ::-1])
    np.testing.assert_array_equal(counted, x[1, ::-1])


def test_each_copy_arrives(conformance: Conformance) -> None:
    x = RNG.integers(0, 1000, 12, dtype=INT)
    (got,) = conformance.run(
        "async_copy.cu", "each_copy_arrives", inputs=[x], outputs=[(12, INT)], block=1
    )
    np.testing.assert_array_equal(got, x)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_bulk_round_trip(conformance: Conformance, steps: int) -> None:
    x = RNG.integers(0, 1000, (steps, 256), dtype=INT)
    (got,) = conformance.run(
        "async_copy.cu", "bulk_round_trip",
        inputs=[x], n=[steps], outputs=[(x.shape, INT)], block=96,
    )  # fmt: skip
    np.testing.assert_array_equal(got, 7 * x + np.arange(steps)[:, None])
    for launch in conformance.launches:
        moved = Traffic(x.nbytes, x.nbytes // 32, x.nbytes // 32)
        assert launch.traffic["out0"].written == moved
        assert launch.traffic["in0"].read.bytes == x.nbytes


def test_fence_of_the_issuer(conformance: Conformance) -> None:
    (got,) = conformance.run("async_copy.cu", "fence_of_the_issuer", outputs=[(64, INT)], block=64)
    np.testing.assert_array_equal(got, 3 * np.arange(64))


def test_first_of_two_groups(conformance: Conformance) -> None:
    stored, read_back = conformance.run(
        "async_copy.cu", "first_of_two_groups", outputs=[(8, INT), (1, INT)]
    )
    np.testing.assert_array_equal(stored, 5 + np.arange(8))
    assert read_back[0] == 8


def test_reuse_and_read_back(conformance: Conformance) -> None:
    steps = 4
    stored, read_back = conformance.run(
        "async_copy.cu", "reuse_and_read_back",
        n=[steps], outputs=[((steps, 64), INT), (steps, INT)], block=64,
    )  # fmt: skip
    expected = 100 * np.arange(steps)[:, None] + np.arange(64)
    np.testing.assert_array_equal(stored, expected)
    np.testing.assert_array_equal(read_back, expected[:, 5])


def test_bulk_prefetch(conformance: Conformance) -> None:
    x = np.zeros(64, INT)
    (got,) = conformance.run(
        "async_copy.cu", "bulk_prefetch", inputs=[x], n=[x.nbytes], outputs=[(32, INT)]
    )
    np.testing.assert_array_equal(got, 1)
    for launch in conformance.launches:
        assert "in0" not in launch.traffic


@pytest.mark.parametrize("mask", [0b0010, 0b1101, 0b1111])
def test_multicast(conformance: Conformance, mask: int) -> None:
    x = RNG.integers(0, 1000, 64, dtype=INT)
    (got,) = conformance.run(
        "async_copy.cu", "multicast",
        inputs=[x], n=[mask], outputs=[((4, 64), INT)], block=64, grid=4, cluster=4,
    )  # fmt: skip
    rank = np.arange(4)[:, None]
    np.testing.assert_array_equal(got, np.where(mask >> rank & 1, x[::-1] + 1000 * rank, -1))
    for launch in conformance.launches:  # read once, whoever gets it
        assert launch.traffic["in0"].read.bytes == x.nbytes


def test_send_to_neighbour(conformance: Conformance) -> None:
    size = 3
    copies, sums = conformance.run(
        "async_copy.cu", "send_to_neighbour",
        outputs=[((size, 64), INT), ((size, 64), INT)], block=64, grid=size, cluster=size,
    )  # fmt: skip
    sender = (np.arange(size)[:, None] - 1) % size
    sent = 100 * sender + np.arange(64)[::-1]
    np.testing.assert_array_equal(copies, sent)
    np.testing.assert_array_equal(sums, sent + 5000)


def test_store_async(conformance: Conformance) -> None:
    (got,) = conformance.run(
        "async_copy.cu", "store_async", outputs=[((2, 32, 8), INT)], grid=2, cluster=2
    )
    value = 1000 * np.array([[1], [0]]) + 10 * np.arange(32)
    parts = [value, value.sum(axis=1, keepdims=True) + 0 * value]
    parts += [value + i for i in range(1, 7)]
    np.testing.assert_array_equal(got, np.stack(parts, axis=-1))


# ---- Reductions in global memory -----------------------------------------------------------------

INTEGERS = {"u32": np.uint32, "s32": INT, "u64": np.uint64, "s64": np.int64,
            "b32": np.uint32, "b64": np.uint64}  # fmt: skip
INTEGER_REDUCTIONS = {
    "add": (np.add, ("u32", "s32", "u64")),
    "min": (np.minimum, ("u32", "s32", "u64", "s64")),
    "max": (np.maximum, ("u32", "s32", "u64", "s64")),
    "and": (np.bitwise_and, ("b32", "b64")),
    "or": (np.bitwise_or, ("b32", "b64")),
    "xor": (np.bitwise_xor, ("b32", "b64")),
}


@pytest.mark.parametrize(
    ("name", "suffix"), [(op, t) for op, (_, types) in INTEGER_REDUCTIONS.items() for t in types]
)
def test_integer_reductions(conformance: Conformance, name: str, suffix: str) -> None:
    dtype = INTEGERS[suffix]
    x, y, start = np.frombuffer(RNG.bytes(3 * 128), dtype).reshape(3, -1)
    (got,) = conformance.run(
        "async_copy.cu", f"{name}_{suffix}",
        inputs=[np.stack([x, y])], outputs=[start.copy()], grid=2,
    )  # fmt: skip
    reduce = INTEGER_REDUCTIONS[name][0]
    np.testing.assert_array_equal(got, reduce(reduce(start, x), y))


@pytest.mark.parametrize("name", ["inc", "dec"])
def test_counters(conformance: Conformance, name: str) -> None:
    start = np.array([0, 1, 5, 6, 7, 2**32 - 1] + [3] * 26, np.uint32)
    limit = np.array([5] * 6 + [*range(26)], np.uint32)
    (got,) = conformance.run(
        "async_copy.cu", f"{name}_u32",
        inputs=[np.stack([limit, limit])], outputs=[start.copy()], grid=2,
    )  # fmt: skip
    expected = start.astype(np.int64)
    for _ in range(2):
        if name == "inc":
            expected = np.where(expected >= limit, 0, expected + 1)
        else:
            expected = np.where((expected == 0) | (expected > limit), limit, expected - 1)
    np.testing.assert_array_equal(got, expected)


def test_float_sums(conformance: Conformance) -> None:
    for suffix, dtype in (("f32", np.float32), ("f64", np.float64)):
        count = 128 // dtype().itemsize
        # Small integers, so that the order of the two blocks makes no difference.
        x, y, start = RNG.integers(-1000, 1000, (3, count)).astype(dtype)
        (got,) = conformance.run(
            "async_copy.cu", f"add_{suffix}",
            inputs=[np.stack([x, y])], outputs=[start.copy()], grid=2,
        )  # fmt: skip
        np.testing.assert_array_equal(got, start + x + y)


def test_a_float_sum_flushes_subnormals(conformance: Conformance) -> None:
    tiny, least = np.float32(1e-40), np.finfo(np.float32).smallest_normal
    start = np.array([tiny, -tiny, 1, least * 1.5, -least * 1.5, 0] + [0] * 26, np.float32)
    x = np.array([1, 0, tiny, -least, least, tiny] + [0] * 26, np.float32)
    (got,) = conformance.run("async_copy.cu", "add_f32", inputs=[x], outputs=[start.copy()])
    np.testing.assert_array_equal(got[:6], [1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(np.signbit(got[3:5]), [False, True])


def _half_patterns() -> np.ndarray:
    """All kinds of halves: zeros, subnormals, ordinary ones, the largest, infinities, NaN."""
    edge = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF,
            0x7C00, 0xFC00, 0x7FFF, 0x7F7F, 0x7F80, 0xFF80]  # fmt: skip
    return np.array([*edge, *RNG.integers(0, 2**16, 48)], np.uint16)


@pytest.mark.parametrize("suffix", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["add", "min", "max"])
def test_half_reductions(conformance: Conformance, name: str, suffix: str) -> None:
    dtype = torch.float16 if suffix == "f16" else torch.bfloat16

    def exact(bits: np.ndarray) -> np.ndarray:
        return torch.from_numpy(bits.view(np.int16)).view(dtype).double().numpy()

    for shift in (0, 1, 7, 13):
        start = _half_patterns()
        x = np.roll(_half_patterns(), shift)
        (got,) = conformance.run(
            "async_copy.cu", f"{name}_{suffix}", inputs=[x], outputs=[start.copy()]
        )
        a, b = exact(start), exact(x)
        with np.errstate(invalid="ignore"):
            expected = {"add": np.add, "min": np.fmin, "max": np.fmax}[name](a, b)
        rounded = torch.from_numpy(expected).to(dtype).double().numpy()
        np.testing.assert_array_equal(exact(got), rounded)


def test_signed_zeros(conformance: Conformance) -> None:
    """PTX has +0 > -0 for min and max."""
    start = np.array([0x0000, 0x8000, 0x0000, 0x8000] * 16, np.uint16)
    x = np.array([0x8000, 0x0000, 0x0000, 0x8000] * 16, np.uint16)
    for name, expected in (("min", [0x8000, 0x8000, 0, 0x8000]), ("max", [0, 0, 0, 0x8000])):
        (got,) = conformance.run(
            "async_copy.cu", f"{name}_bf16", inputs=[x], outputs=[start.copy()]
        )
        np.testing.assert_array_equal(got, expected * 16)
