"""How linear layers are dealt to CTAs, for every shape of the published drafters, on the host."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from p_eagle_cuda import _C

# (rows, columns, rows of a tile) of the weights; gpt-oss with each likely intermediate size,
# Qwen3-Coder-30B, Qwen3-8B, the bundled pair.
SHAPES = {
    "gpt-oss fc": (2880, 8640, 64),
    "gpt-oss qkv, first layer": (5120, 5760, 64),
    "gpt-oss qkv": (5120, 2880, 64),
    "gpt-oss o": (2880, 4096, 64),
    **{f"gpt-oss gate_up {i}": (2 * i, 2880, 64) for i in (8640, 11520, 14336, 17280)},
    **{f"gpt-oss down {i}": (2880, i, 64) for i in (8640, 11520, 14336, 17280)},
    "Qwen3-Coder fc": (2048, 6144, 64),
    "Qwen3-Coder qkv": (5120, 2048, 128),
    "Qwen3-Coder o": (2048, 4096, 64),
    "Qwen3-8B fc of five taps": (4096, 20480, 64),
    "Qwen3-8B qkv, first layer": (6144, 8192, 128),
    "Qwen3-8B down": (4096, 12288, 64),
    "bundled qkv, first layer": (512, 512, 64),
    "bundled down": (256, 384, 64),
    "one block": (64, 64, 64),
}
NUM_SMS = {"H200": 132, "B200": 148, "A100": 108, "RTX 5090": 170, "one": 1, "emulator": 4}
SHARED_BYTES_PER_SM = 227 * 1024  # of Hopper, what CTAs may use
RESERVED_BYTES = 1024  # of each CTA, for the system

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_gpu = pytest.mark.parametrize("num_sms", NUM_SMS.values(), ids=NUM_SMS)


def plan(
    shape: tuple[int, int, int], num_sms: int, num_rows: int = 16, weight_bytes: int = 2
) -> dict[str, Any]:
    rows, columns, tile_rows = shape
    return _C.linear_plan(rows, columns, tile_rows, num_rows, weight_bytes, num_sms)


@every_shape
@every_gpu
def test_every_unit_is_dealt_once(shape: tuple[int, int, int], num_sms: int) -> None:
    found = plan(shape, num_sms)
    starts, units = found["first_units"], found["num_tiles"] * found["tile_blocks"]
    assert starts[0] == 0
    assert starts[-1] == units
    assert units == -(-shape[0] // shape[2]) * (shape[1] // 64)
    sizes = [end - start for start, end in pairwise(starts)]
    assert min(sizes) >= 1, "a CTA that is counted on must arrive"
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == min(num_sms * found["ctas_per_sm"], units)
    expected = [cta for cta, size in enumerate(sizes) for _ in range(size)]
    assert found["cta_of_units"] == expected


@every_shape
def test_the_partition_does_not_depend_on_the_rows(shape: tuple[int, int, int]) -> None:
    """Else a request's bits would depend on the others in its batch."""
    starts = [plan(shape, 132, num_rows)["first_units"] for num_rows in (1, 8, 9, 16, 17, 32)]
    assert all(other == starts[0] for other in starts)


@every_shape
def test_tiles_are_whole_where_there_are_several_of_tokens(shape: tuple[int, int, int]) -> None:
    """Partial sums have room for one tile of tokens."""
    found = plan(shape, 132, num_rows=33)
    assert all(start % found["tile_blocks"] == 0 for start in found["first_units"])
    assert found["first_units"][-1] == found["num_tiles"] * found["tile_blocks"]


@pytest.mark.parametrize("weight_bytes", [1, 2])
@pytest.mark.parametrize("num_rows", [8, 16, 32])
@pytest.mark.parametrize("tile_rows", [64, 128])
def test_two_kernels_fit_an_sm(tile_rows: int, num_rows: int, weight_bytes: int) -> None:
    """So that the next one's weights are underway before this one has ended."""
    found = plan((5120, 2880, tile_rows), 132, num_rows, weight_bytes)
    ctas = 2 * found["ctas_per_sm"]
    assert ctas * (found["shared_bytes"] + RESERVED_BYTES) <= SHARED_BYTES_PER_SM
    assert ctas * found["threads"] <= 2048
    in_flight = found["ctas_per_sm"] * (found["stages"] - 1) * found["stage_bytes"]
    assert in_flight >= 33 * 1024, "less does not cover the latency of memory"


def test_workspace_holds_two_slots_for_each_cta() -> None:
    """256 tokens of float32 for each of 128 weight rows and SM, twice, and the counters."""
    assert _C.linear_workspace_bytes(132) == 4096 + 132 * 2 * 128 * 256 * 4
    assert _C.linear_workspace_bytes(132) > _C.linear_workspace_bytes(131)


def test_an_unknown_tile() -> None:
    with pytest.raises(ValueError, match="no such tile"):
        plan((64, 64, 48), 132)
