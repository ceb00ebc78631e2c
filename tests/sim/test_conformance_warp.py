"""Exchange between the lanes of a warp: shfl, vote, match, redux, elect."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest

from sim.micro_kernels import Conformance

RNG = np.random.default_rng(0)
LANES = np.arange(32)
VALUES = RNG.integers(0, 2**32, 32, dtype=np.uint32)
U32 = (32, np.uint32)

# Masks that part a warp, as the mask of each lane.
WHOLE = np.full(32, 0xFFFFFFFF, np.uint32)
HALVES = np.where(LANES < 16, 0x0000FFFF, 0xFFFF0000).astype(np.uint32)
THIRDS = np.array([sum(1 << k for k in range(32) if k % 3 == i % 3) for i in LANES], np.uint32)
ALONE = (1 << LANES).astype(np.uint32)
PARTITIONS = {"whole": WHOLE, "halves": HALVES, "thirds": THIRDS, "alone": ALONE}
partitions = pytest.mark.parametrize("masks", PARTITIONS.values(), ids=PARTITIONS)


def members(masks: np.ndarray, lane: int) -> list[int]:
    return [k for k in range(32) if int(masks[lane]) >> k & 1]


def as_mask(lanes: list[int]) -> int:
    return sum(1 << lane for lane in lanes)


# ---- shfl ----------------------------------------------------------------------------------------


def source_lane(mode: str, lane: int, b: int, width: int) -> int | None:
    """Which lane of the own segment of `width` lanes is read; None if it is not in the segment."""
    first = lane // width * width
    source = {
        "up": lane - b,
        "down": lane + b,
        "bfly": lane ^ b,
        "idx": first + b % width,
    }[mode]
    in_segment = first <= source < first + width
    # .bfly has no lower bound: a partner in an earlier segment is read.
    return source if in_segment or (mode == "bfly" and source < first) else None


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 4, 2, 1])
def test_shfl(conformance: Conformance, mode: str, width: int) -> None:
    by = RNG.integers(0, 32, 32, dtype=np.uint32)
    clamp = 0 if mode == "up" else 31
    c = np.full(32, (32 - width) << 8 | clamp, np.uint32)
    got, in_range = conformance.run(
        "warp.cu", f"shfl_{mode}", inputs=[VALUES, by, c, WHOLE], outputs=[U32, U32]
    )
    sources = [source_lane(mode, lane, int(by[lane]), width) for lane in LANES]
    expected = [VALUES[lane if k is None else k] for lane, k in enumerate(sources)]
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(in_range, [k is not None for k in sources])


def test_shfl_ignores_high_bits(conformance: Conformance) -> None:
    """Of b all but the low 5, of c all but the low 5 and bits 8 to 12."""
    b = np.full(32, 0xFFFFFFE0 | 3, np.uint32)
    c = np.full(32, 0xFFFFE0E0 | 31, np.uint32)
    got, _ = conformance.run("warp.cu", "shfl_idx", inputs=[VALUES, b, c, WHOLE], outputs=[U32] * 2)
    np.testing.assert_array_equal(got, VALUES[3])


def test_shfl_clamp(conformance: Conformance) -> None:
    """The clamp is a bound of its own, of lanes without a segment mask."""
    by, to_20 = np.full(32, 5, np.uint32), np.full(32, 20, np.uint32)
    down, down_in_range = conformance.run(
        "warp.cu", "shfl_down", inputs=[VALUES, by, to_20, WHOLE], outputs=[U32, U32]
    )
    np.testing.assert_array_equal(down_in_range, LANES + 5 <= 20)
    np.testing.assert_array_equal(down, VALUES[np.where(LANES + 5 <= 20, LANES + 5, LANES)])
    up, up_in_range = conformance.run(
        "warp.cu", "shfl_up", inputs=[VALUES, by, to_20, WHOLE], outputs=[U32, U32]
    )
    np.testing.assert_array_equal(up_in_range, LANES - 5 >= 20)
    np.testing.assert_array_equal(up, VALUES[np.where(LANES - 5 >= 20, LANES - 5, LANES)])


@partitions
def test_shfl_within_masks(conformance: Conformance, masks: np.ndarray) -> None:
    groups = [members(masks, lane) for lane in LANES]
    sources = np.array([RNG.choice(group) for group in groups], np.uint32)
    got, _ = conformance.run(
        "warp.cu", "shfl_idx",
        inputs=[VALUES, sources, np.full(32, 31, np.uint32), masks], outputs=[U32, U32],
    )  # fmt: skip
    np.testing.assert_array_equal(got, VALUES[sources])


def test_shfl_in_place(conformance: Conformance) -> None:
    (got,) = conformance.run("warp.cu", "shfl_in_place", inputs=[VALUES], outputs=[U32])
    np.testing.assert_array_equal(got, VALUES[LANES ^ 1])


def test_shfl_after_divergence(conformance: Conformance) -> None:
    (got,) = conformance.run("warp.cu", "shfl_after_divergence", inputs=[VALUES], outputs=[U32])
    values = []
    for lane in range(32):
        steps = VALUES[: lane % 5].tolist()
        values.append(functools.reduce(lambda x, step: (x * 3 + step) % 2**32, steps, lane))
    np.testing.assert_array_equal(got, np.array(values, np.uint32)[LANES ^ 7])


def test_sums_of_halves(conformance: Conformance) -> None:
    values = RNG.integers(0, 1000, 32, dtype=np.uint32)
    (got,) = conformance.run("warp.cu", "sums_of_halves", inputs=[values], outputs=[U32])
    expected = values.copy()
    expected[:16] = values[:16].sum()
    for step in (1, 2, 4, 8):
        upper = expected[16:]
        down = np.concatenate([upper[step:], upper[-step:]])
        expected[16:] = upper + 2 * down
    np.testing.assert_array_equal(got, expected)


# ---- vote, match, redux, elect -------------------------------------------------------------------


@partitions
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_vote(conformance: Conformance, masks: np.ndarray, share: float) -> None:
    yes = (RNG.random(32) < share).astype(np.uint32)
    (got,) = conformance.run("warp.cu", "vote", inputs=[yes, masks], outputs=[((32, 8), np.uint32)])
    for lane in range(32):
        group = members(masks, lane)
        votes = [bool(yes[k]) for k in group]
        ballot = as_mask([k for k in group if yes[k]])
        uniform = all(votes) or not any(votes)
        plain = [all(votes), any(votes), uniform, ballot]
        negated = [not any(votes), not all(votes), uniform, as_mask(group) & ~ballot]
        np.testing.assert_array_equal(got[lane], plain + negated)


@partitions
@pytest.mark.parametrize("distinct", [1, 3, 1000])
def test_match(conformance: Conformance, masks: np.ndarray, distinct: int) -> None:
    low = RNG.integers(0, distinct, 32, dtype=np.uint64)
    high = RNG.integers(0, (distinct + 1) // 2, 32, dtype=np.uint64)
    (got,) = conformance.run(
        "warp.cu", "match",
        inputs=[high << np.uint64(32) | low, masks], outputs=[((32, 6), np.uint32)],
    )  # fmt: skip
    for lane in range(32):
        group = members(masks, lane)
        narrow = [k for k in group if low[k] == low[lane]]
        wide = [k for k in narrow if high[k] == high[lane]]
        expected = [as_mask(narrow), as_mask(wide)]
        for same in (narrow, wide):
            expected += [as_mask(group), 1] if same == group else [0, 0]
        np.testing.assert_array_equal(got[lane], expected)


@partitions
def test_redux(conformance: Conformance, masks: np.ndarray) -> None:
    values = VALUES.copy()
    values[[3, 17, 31]] = 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF
    (got,) = conformance.run(
        "warp.cu", "redux", inputs=[values, masks], outputs=[((32, 9), np.uint32)]
    )
    for lane in range(32):
        unsigned = values[members(masks, lane)].tolist()
        signed = values[members(masks, lane)].view(np.int32).tolist()
        expected = [sum(signed), min(signed), max(signed), sum(unsigned), min(unsigned)]
        expected += [max(unsigned)]
        expected += [
            functools.reduce(f, unsigned) for f in (operator.and_, operator.or_, operator.xor)
        ]
        np.testing.assert_array_equal(got[lane], [x % 2**32 for x in expected])


@partitions
def test_redux_f32(conformance: Conformance, masks: np.ndarray) -> None:
    conformance.needs_emulator()
    values = RNG.normal(size=32).astype(np.float32)
    values[[1, 5, 16, 20, 21]] = np.nan, -np.inf, np.nan, -0.0, 0.0
    (got,) = conformance.run(
        "redux_f32.cu", "redux_f32", inputs=[values, masks], outputs=[((32, 8), np.float32)]
    )
    for lane in range(32):
        plain = values[members(masks, lane)]
        for column, group in ((0, plain), (2, np.abs(plain))):
            numbers = group[~np.isnan(group)]
            low, high = (numbers.min(), numbers.max()) if numbers.size else (np.nan, np.nan)
            np.testing.assert_array_equal(got[lane, column : column + 2], [low, high])
            strict = [group.min(), group.max()]  # numpy's are NaN if one is
            np.testing.assert_array_equal(got[lane, column + 4 : column + 6], strict)


def test_redux_f32_orders_zeros(conformance: Conformance) -> None:
    conformance.needs_emulator()
    values = np.where(LANES % 2, 0.0, -0.0).astype(np.float32)
    (got,) = conformance.run(
        "redux_f32.cu", "redux_f32", inputs=[values, WHOLE], outputs=[((32, 8), np.float32)]
    )
    np.testing.assert_array_equal(
        np.signbit(got), np.tile([True, False, False, False, True, False, False, False], (32, 1))
    )


@partitions
def test_elect(conformance: Conformance, masks: np.ndarray) -> None:
    leader, is_leader, again = conformance.run(
        "warp.cu", "elect", inputs=[masks], outputs=[U32, U32, U32]
    )
    for lane in range(32):
        group = members(masks, lane)
        assert leader[lane] in group
        assert len({int(leader[k]) for k in group}) == 1
    np.testing.assert_array_equal(is_leader, leader == LANES)
    np.testing.assert_array_equal(again, is_leader)


def test_exited_lanes(conformance: Conformance) -> None:
    start = np.zeros(32, np.uint32)
    ballot, total, same = conformance.run("warp.cu", "exited_lanes", outputs=[start, start, start])
    live = [lane for lane in range(32) if lane % 3 != 1]
    for lane in live:
        assert ballot[lane] == as_mask([k for k in live if k % 2 == 0])
        assert total[lane] == sum(live)
        assert same[lane] == as_mask([k for k in live if k // 8 == lane // 8])


def test_active_mask(conformance: Conformance) -> None:
    """Lanes on the other side of a branch are not active; which of this side are is left open."""
    (got,) = conformance.run("warp.cu", "active_mask", outputs=[U32])
    last_of_four = 0x88888888
    for lane in range(32):
        side = last_of_four if lane % 4 == 3 else ~last_of_four & 0xFFFFFFFF
        assert int(got[lane]) >> lane & 1
        assert int(got[lane]) & ~side == 0
