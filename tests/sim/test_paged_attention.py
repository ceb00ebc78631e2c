"""The kernel of paged_attention: results for every mask, layout and dtype, determinism, faults.

`test_ops.py` has its contract, `test_paged_attention_launch.py` its launches and its traffic.
"""

from __future__ import annotations

import pytest
import torch

from attention_cases import assert_right, attention_case
from op_cases import Arguments, plan
from sim import torch_ops
from sim.emulator import FOUR, Settings

NAME = "paged_attention"
RACE = FOUR["in-order-race"]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)

# No keys, one, a page's edge and one past it, a tile's edge, no rows, more rows than fit two warps.
LENS, ROWS = [0, 1, 16, 17, 64, 130, 65], [2, 1, 3, 9, 1, 0, 16]


def check(arguments: Arguments, settings: Settings = RACE) -> None:
    torch_ops.call(NAME, arguments, settings)
    assert_right(arguments)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("cache_dtype", [None, E4M3, E5M2], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_ragged_batches(
    dtype: torch.dtype, cache_dtype: torch.dtype | None, head_dim: int, block_size: int
) -> None:
    check(
        attention_case(
            LENS, ROWS, dtype=dtype, cache_dtype=cache_dtype, head_dim=head_dim,
            block_size=block_size, num_kv_heads=1,
        )
    )  # fmt: skip


@pytest.mark.parametrize("cache_dtype", [None, E4M3], ids=str)
@pytest.mark.parametrize("separate", [False, True], ids=["halves", "separate"])
@every_setting
def test_long_requests(settings: Settings, separate: bool, cache_dtype: torch.dtype | None) -> None:
    """More tiles than stages and look-ups ahead, more pieces than one for a block."""
    check(
        attention_case(
            [1100, 40, 513], [14, 2, 5], group=8, block_size=32, cache_dtype=cache_dtype,
            num_blocks=7, separate=separate,
        ),
        settings,
    )  # fmt: skip


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 11, 16, 20])
def test_groups(group: int) -> None:
    check(attention_case([70, 300], [6, 9], group=group, num_kv_heads=1, cache_dtype=E4M3))


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 8, 30])
def test_every_division_of_the_work(num_blocks: int) -> None:
    """All in one block; pieces that begin and end inside a request; blocks without work."""
    check(attention_case([700, 1, 250], [5, 1, 3], num_blocks=num_blocks))


@pytest.mark.parametrize("is_tree", [False, True], ids=["causal", "tree"])
def test_a_prompt_of_many_rows(is_tree: bool) -> None:
    """Several tiles of rows, each with its own last key; rows past the 64th of a tree."""
    check(attention_case([150, 90, 10], [150, 70, 1], group=3, is_tree=is_tree))


@pytest.mark.parametrize("cache_dtype", [None, E5M2], ids=str)
@every_setting
def test_trees(settings: Settings, cache_dtype: torch.dtype | None) -> None:
    check(
        attention_case(
            [300, 16, 64], [16, 16, 33], is_tree=True, group=8, cache_dtype=cache_dtype
        ),
        settings,
    )  # fmt: skip


@pytest.mark.parametrize("is_tree", [False, True], ids=["causal", "tree"])
@pytest.mark.parametrize("window", [1, 15, 64, 128, 1000])
def test_windows(window: int, is_tree: bool) -> None:
    """Keys outside are NaN."""
    check(attention_case([300, 20, 129], [12, 3, 40], window=window, is_tree=is_tree))


@pytest.mark.parametrize("is_tree", [False, True], ids=["causal", "tree"])
def test_sinks(is_tree: bool) -> None:
    """Also of requests that are divided, of rows without keys, and larger than any score."""
    arguments = attention_case([600, 0, 30], [8, 2, 1], has_sinks=True, is_tree=is_tree)
    arguments["sinks"][:4] = torch.tensor([300.0, -300.0, 20.0, -1e30])
    check(arguments)


@pytest.mark.parametrize("cache_dtype", [None, E4M3, E5M2], ids=str)
@pytest.mark.parametrize("q_scale", [1e-3, 3e2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_extreme_scores(
    dtype: torch.dtype, q_scale: float, cache_dtype: torch.dtype | None
) -> None:
    """Weights that are all equal, and weights that are 1 or 0."""
    check(attention_case([700, 33], [6, 2], dtype=dtype, q_scale=q_scale, cache_dtype=cache_dtype))


@pytest.mark.parametrize("q_scale", [1e-30, 1e30])
def test_queries_that_float16_does_not_hold(q_scale: float) -> None:
    """Rows of any magnitude; the scale brings the scores back to where weights differ."""
    arguments = attention_case([100], [4], q_scale=q_scale, cache_dtype=E4M3)
    arguments["softmax_scale"] = 0.2 / q_scale
    check(arguments)


def test_rows_that_see_nothing() -> None:
    arguments = attention_case([200, 80], [4, 4], is_tree=True, window=8)
    arguments["tree_mask"].zero_()
    arguments["positions"][:8] = 0
    for name in ("k_cache", "v_cache"):
        arguments[name].nan_to_num_()
    plan(arguments)
    torch_ops.call(NAME, arguments, RACE)
    assert (arguments["out"][:8] == 0).all()


def test_equal_bits_whatever_the_schedule() -> None:
    results = []
    for settings in FOUR.values():
        torch.manual_seed(0)
        arguments = attention_case([1100, 400, 64], [8, 8, 3], num_blocks=8, cache_dtype=E4M3)
        torch_ops.call(NAME, arguments, settings)
        results.append(arguments["out"])
    assert all(torch.equal(results[0], x) for x in results[1:])


def test_a_workspace_serves_again() -> None:
    """Counters are zero at the end, though the partial results are left."""
    arguments = attention_case([900, 300], [5, 2])
    assert arguments["work"][0] == 2
    for _ in range(2):
        torch_ops.call(NAME, arguments, RACE)
        assert_right(arguments)
        assert (arguments["workspace"][: 4 * 5] == 0).all()
        assert (arguments["workspace"][4 * 5 :] != 0).any(), "expected divided requests"


# ---- What must not be followed -------------------------------------------------------------------


@pytest.mark.parametrize("block", [-1, -(2**31), 10**6])
def test_blocks_that_do_not_exist_are_zeros(block: int) -> None:
    arguments = attention_case([100], [2])
    table = arguments["block_table"]
    lost = int(table[0, 2])
    table[0, 2] = block
    torch_ops.call(NAME, arguments, RACE)
    for name in ("k_cache", "v_cache"):
        arguments[name][lost] = 0
    table[0, 2] = lost
    assert_right(arguments)


@every_setting
def test_absurd_inputs_fault_nowhere(settings: Settings) -> None:
    int32 = {"dtype": torch.int32}
    for starts, lens in (
        ([0, 2**31 - 1, 3, -5], [2**31 - 1, 60, -9]),
        ([-4, 2, 2, 6], [50, 0, 10**6]),
        ([9, 9, 9, 9], [50, 50, 50]),
    ):
        for is_tree in (False, True):
            arguments = attention_case([40, 30, 20], [2, 2, 2], is_tree=is_tree, window=5)
            arguments["row_start"] = torch.tensor(starts, **int32)
            arguments["seq_lens"] = torch.tensor(lens, **int32)
            arguments["positions"][:5] = torch.tensor([2**63 - 1, -(2**63), 7, -1, 10**6])
            plan(arguments)
            torch_ops.call(NAME, arguments, settings)
