"""The linear layers of more than 32 rows on the emulator's Hopper: TMA, mbarriers, wgmma.

What they share with those of fewer rows is in `test_linear_layers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sim import linear_cases, torch_ops
from sim.emulator import FOUR, Settings
from sim.linear_cases import E4M3, Arguments, assert_right, copy, workspace

RACE = FOUR["in-order-race"]

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)

# A call of each op for so many rows of so many. The last tile of 128 rows of a weight is ragged,
# and where an epilogue takes 64 of them, a warpgroup has none.
CALLS: dict[str, tuple[str, Callable[..., Arguments]]] = {
    "taps": ("project_taps", lambda n, R, **k: linear_cases.project_taps(n, R, 176, 64, **k)),
    "residual": (
        "linear_residual", lambda n, R, **k: linear_cases.linear_residual(n, R, 192, 192, **k)
    ),
    "swiglu": ("norm_swiglu", lambda n, R, **k: linear_cases.norm_swiglu(n, R, 88, 128, **k)),
    "qkv 64": (
        "qkv_rope_cache", lambda n, R, **k: linear_cases.qkv_rope_cache(n, R, (1, 1, 64), 192, **k)
    ),
    "qkv 128": (
        "qkv_rope_cache",
        lambda n, R, **k: linear_cases.qkv_rope_cache(
            n, R, (1, 1, 128), 128, norms_heads=True, **k
        ),
    ),
}  # fmt: skip

every_call = pytest.mark.parametrize("call", CALLS)


def run(
    name: str, arguments: Arguments, settings: Settings = RACE, kernel: str = "wide_kernel"
) -> Arguments:
    """The arguments after the call, which are right."""
    after = copy(arguments)
    (launch,) = torch_ops.call(name, after, settings)
    assert launch.kernel == kernel
    assert_right(name, arguments, after)
    return after


@every_setting
@every_call
def test_results(call: str, settings: Settings) -> None:
    """Tiles are cut, and the second 32 tokens are not all there."""
    name, make = CALLS[call]
    run(name, make(41, 50), settings)


@every_call
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("num_rows", "max_rows"), [(33, 33), (100, 100), (129, 200), (0, 40)])
def test_row_counts(call: str, num_rows: int, max_rows: int, dtype: torch.dtype) -> None:
    """Each number of tokens that a tile may have, and a launch without rows."""
    name, make = CALLS[call]
    run(name, make(num_rows, max_rows, dtype=dtype), FOUR["random"])


@every_call
@pytest.mark.parametrize(("num_rows", "max_rows"), [(257, 257), (70, 300)])
def test_more_rows_than_a_tile(call: str, num_rows: int, max_rows: int) -> None:
    name, make = CALLS[call]
    run(name, make(num_rows, max_rows), FOUR["random"])


@every_call
@pytest.mark.parametrize("num_sms", [1, 2, 40])
def test_however_it_is_cut(call: str, num_sms: int) -> None:
    """From one CTA for all tiles to one for each block, so that many add up one tile."""
    name, make = CALLS[call]
    arguments = make(37, 40) | {"workspace": workspace(num_sms)}
    run(name, arguments, replace(RACE, num_sms=num_sms))


def test_more_blocks_than_stages() -> None:
    """Every stage of the ring is used again, and norms go on over the ends of tiles."""
    arguments = linear_cases.norm_swiglu(60, 64, 128, 640) | {"workspace": workspace(1)}
    run("norm_swiglu", arguments, replace(RACE, num_sms=1))


@pytest.mark.parametrize("norm", ["input", "taps"])
def test_norms_of_taps(norm: str) -> None:
    run("project_taps", linear_cases.project_taps(40, 45, 64, 64, 3, norm))


def test_mask_rows_of_the_first_layer() -> None:
    """Their heads are given, and their rows of x are not read."""
    arguments = linear_cases.qkv_rope_cache(40, 44, (1, 1, 64), 64, has_norm=False, has_bias=True)
    is_mask = torch.arange(44) % 3 > 0
    arguments["source_row"] = torch.where(is_mask, -1, torch.arange(44)).int()
    arguments["mask_heads"] = torch.randn(3 * 64)
    after = copy(arguments)
    after["x"][is_mask] = torch.nan
    torch_ops.call("qkv_rope_cache", after, RACE)
    assert_right("qkv_rope_cache", arguments, after)


def test_fp8_caches() -> None:
    run("qkv_rope_cache", linear_cases.qkv_rope_cache(40, 40, (1, 1, 64), 64, cache_dtype=E4M3))


@pytest.mark.parametrize(
    ("capability", "rows", "is_e4m3"),
    [(100, 192, False), (80, 192, False), (90, 192, True), (90, 200, False)],
    ids=["Blackwell", "Ampere", "fp8", "ragged groups"],
)
def test_what_the_kernels_of_few_rows_run(capability: int, rows: int, is_e4m3: bool) -> None:
    arguments = linear_cases.linear_residual(40, 40, rows, 128, is_e4m3=is_e4m3)
    settings = replace(FOUR["random"], compute_capability=capability)
    run("linear_residual", arguments, settings, kernel="linear_kernel")


@every_call
def test_a_row_gets_the_same_bits_in_any_batch(call: str) -> None:
    """As long as that has 33 rows or more, and at most 256."""
    name, make = CALLS[call]
    whole = make(200, 200)
    settings = replace(FOUR["random"], num_sms=3)
    in_whole = copy(whole)
    torch_ops.call(name, in_whole, settings)
    rowwise = ("x", "residual", "out", "q", "positions", "slots", "source_row")
    for max_rows, row in ((33, 150), (65, 70)):
        part = copy(whole)
        for argument in (x for x in rowwise if part.get(x) is not None):
            part[argument] = part[argument].roll(max_rows - 1 - row, 0)[:max_rows].contiguous()
        if part.get("sum_squares") is not None:
            sums = part["sum_squares"].roll(max_rows - 1 - row, 1)
            part["sum_squares"] = sums[:, :max_rows].contiguous()
        part["num_rows"].fill_(max_rows)
        torch_ops.call(name, part, settings)
        for output in {"residual", "out", "q"} & set(part):
            found, wanted = part[output][max_rows - 1], in_whole[output][row]
            assert torch.equal(found.nan_to_num(), wanted.nan_to_num()), (output, max_rows)


SECTOR = 32


@every_call
@pytest.mark.parametrize(("num_rows", "times"), [(64, 1), (256, 1), (257, 2)])
def test_weights_are_read_once_for_256_rows(call: str, num_rows: int, times: int) -> None:
    name, make = CALLS[call]
    arguments = make(num_rows, num_rows)
    (launch,) = torch_ops.call(name, arguments, Settings())
    weight = "gate_up" if name == "norm_swiglu" else "weight"
    size = arguments[weight].nbytes
    read = launch.traffic[weight].read
    assert (read.bytes, read.unique_sectors * SECTOR) == (times * size, size)
