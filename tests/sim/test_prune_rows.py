"""The kernel of prune_rows against the reference: ragged batches, widths, garbage, traffic."""

from __future__ import annotations

import pytest
import torch

from op_cases import WORK_HEADER
from p_eagle_cuda import _C, ops, reference
from sim import torch_ops
from sim.emulator import FOUR, Launch, Settings
from sim.torch_ops import Arguments

NAME = "prune_rows"
RACE = FOUR["in-order-race"]
BF16 = torch.bfloat16
NEVER = -777  # no output
HEADS = {"num_heads": 8, "num_kv_heads": 2}

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)


def batch(
    lengths: list[int], *, K: int = 3, H: int = 64, num_unused: int = 2, with_map: bool = True
) -> Arguments:
    """Requests of so many rows, at least K or none; rows that are not kept hold NaN.

    Every fifth kept row has no slot, and is not sampled.
    """
    B, R = len(lengths), sum(lengths) + num_unused
    row_start = torch.tensor([0, *lengths]).cumsum(0).int()
    has_rows = row_start.diff() > 0
    kept = row_start[1:, None] - K + torch.arange(K)
    sample_rows = torch.where(has_rows[:, None] & (kept % 5 != 4), kept, -1)
    x = torch.full((R, H), torch.nan, dtype=BF16)
    rows = kept[has_rows].flatten()
    x[rows] = torch.randn(len(rows), H).to(BF16)
    positions = torch.full((R,), NEVER)
    for b, length in enumerate(lengths):
        positions[row_start[b] : row_start[b + 1]] = 7 * b + torch.arange(length)
    N = B * K
    work = None
    if with_map:
        work = torch.full((_C.attention_work_size(N, B, 4, 6),), NEVER, dtype=torch.int32)
        work[:WORK_HEADER] = 0
    return {
        "x": x,
        "positions": positions,
        "row_start": row_start,
        "sample_rows": sample_rows.int().flatten(),
        "seq_lens": torch.tensor([7 * b + n for b, n in enumerate(lengths)]).int(),
        "out": torch.full((N, H), float(NEVER), dtype=BF16),
        "pruned_positions": torch.full((N,), NEVER),
        "pruned_row_start": torch.full((B + 1,), NEVER).int(),
        "pruned_sample_rows": torch.full((N,), NEVER).int(),
        "work": work,
        **(HEADS if with_map else dict.fromkeys(HEADS, 0)),
        "max_keys": 1000 if with_map else 0,
        "window": 0,
    }


def run(a: Arguments, settings: Settings = RACE) -> Launch:
    """Launches once, and compares every element, also those that must be left alone."""
    expected = reference.prune_rows(a["x"], a["positions"], a["row_start"], a["sample_rows"])
    (launch,) = torch_ops.call(NAME, a, settings)
    n = len(expected.x)
    assert torch.equal(a["out"][:n], expected.x)
    assert torch.equal(a["pruned_positions"][:n], expected.positions)
    assert (a["out"][n:] == NEVER).all()
    assert (a["pruned_positions"][n:] == NEVER).all()
    assert a["pruned_row_start"].tolist() == expected.row_start.tolist()
    assert a["pruned_sample_rows"].tolist() == expected.sample_rows.tolist()
    if a["work"] is not None:
        plan = torch.full_like(a["work"], NEVER)
        ops.plan_attention(
            a["pruned_row_start"], a["seq_lens"], a["pruned_positions"], *HEADS.values(), 1000,
            0, False, plan,
        )  # fmt: skip
        assert a["work"].tolist() == plan.tolist()
    return launch


@every_setting
@pytest.mark.parametrize("seed", range(4))
def test_random_batches(seed: int, settings: Settings) -> None:
    g = torch.Generator().manual_seed(seed)
    K = int(torch.randint(1, 9, (), generator=g))
    lengths = torch.randint(0, 12, (seed * 9 + 1,), generator=g).tolist()
    run(batch([n + K - 1 if n else 0 for n in lengths], K=K, with_map=seed % 2 == 0), settings)


@pytest.mark.parametrize("num_requests", [1, 128, 129, 260])
def test_numbers_of_requests(num_requests: int) -> None:
    """Both sides of what a block counts at once."""
    run(batch([b % 3 for b in range(num_requests)], K=1), FOUR["random"])


@pytest.mark.parametrize("H", [4, 8, 60, 2880])
def test_widths(H: int) -> None:
    """Rows whose bytes 16 does not divide, and rows of more vectors than threads."""
    launch = run(batch([4, 0, 3], H=H, with_map=False))
    assert launch.kernel == "prune_rows_kernel"
    assert launch.overlaps_previous


def test_each_kept_row_is_moved_once() -> None:
    H, kept = 2880, 9
    traffic = run(batch([300, 0, 3, 9], H=H, with_map=False)).traffic
    for moved in (traffic["x"].read, traffic["out"].written):
        assert moved.sectors * 32 == moved.bytes == kept * 2 * H


@pytest.mark.parametrize("garbage", [-(2**31), -5, 2**31 - 1])
def test_rows_outside_of_the_batch(garbage: int) -> None:
    """What no pass makes, and no caller should: nothing outside of a tensor is touched."""
    arguments = batch([4, 3, 5])
    arguments["row_start"][1] = garbage
    torch_ops.call(NAME, arguments, RACE)
    assert (arguments["pruned_sample_rows"] < len(arguments["out"])).all()
