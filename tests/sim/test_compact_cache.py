"""The kernel of compact_cache: every byte against the reference, garbage, traffic, graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p_eagle_cuda import tree
from sim import torch_ops
from sim.emulator import FOUR, Launch, Settings
from sim.torch_ops import Arguments

NAME = "compact_cache"
RACE = FOUR["in-order-race"]
N, BLOCKS, BLOCK = 12, 20, 4

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)


def batch(
    seed: int = 0, *, dtype: torch.dtype = torch.bfloat16, heads: int = 3, D: int = 64,
    lengths: tuple[int, ...] = (12, 1, 0, 7, 12),
) -> Arguments:  # fmt: skip
    """Trees of these sizes and random paths in them; k and v are halves of one tensor."""
    g = torch.Generator().manual_seed(seed)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    path = torch.full((len(lengths), N), -1, dtype=torch.int32)
    for b, length in enumerate(lengths):
        others = torch.randperm(max(length - 1, 0), generator=g)[: length // 2].sort().values
        rows = torch.cat([torch.zeros(min(length, 1)), others + 1]).int()
        path[b, : len(rows)] = starts[b] + rows
    cache = torch.randint(256, (BLOCKS, heads, BLOCK, 2 * D * dtype.itemsize), generator=g)
    k_cache, v_cache = cache.to(torch.uint8).view(dtype).split(D, dim=-1)
    return {
        "path": path,
        "row_start": starts.int(),
        "slots": torch.randperm(BLOCKS * BLOCK, generator=g)[: int(starts[-1])],
        "k_cache": k_cache,
        "v_cache": v_cache,
    }


def bytes_of(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def run(arguments: Arguments, settings: Settings = RACE) -> Launch:
    """Launches once, and compares."""
    expected = [arguments[f"{name}_cache"].clone() for name in "kv"]
    tree.compact_cache(*(arguments[x] for x in ("path", "row_start", "slots")), expected)
    (launch,) = torch_ops.call(NAME, arguments, settings)
    for name, cache in zip("kv", expected, strict=True):
        assert torch.equal(bytes_of(arguments[f"{name}_cache"]), bytes_of(cache)), name
    return launch


@every_setting
@pytest.mark.parametrize("seed", range(3))
def test_random_paths(seed: int, settings: Settings) -> None:
    arguments = batch(seed)
    before = bytes_of(arguments["k_cache"]).clone()
    launch = run(arguments, settings)
    assert launch.kernel == "compact_cache_kernel"
    assert launch.grid == (5, 2, 1)
    assert launch.overlaps_previous
    assert not torch.equal(bytes_of(arguments["k_cache"]), before)


@pytest.mark.parametrize(
    ("dtype", "heads", "D"),
    [
        (torch.float8_e4m3fn, 2, 80), (torch.float8_e5m2, 1, 3), (torch.float16, 9, 128),
        (torch.float32, 2, 5), (torch.bfloat16, 1, 2),
    ],
)  # fmt: skip
def test_dtypes_and_sizes(dtype: torch.dtype, heads: int, D: int) -> None:
    run(batch(dtype=dtype, heads=heads, D=D))


@every_setting
def test_a_chain_moves_nothing(settings: Settings) -> None:
    arguments = batch()
    starts, lengths = arguments["row_start"][:-1, None], arguments["row_start"].diff()[:, None]
    depth = torch.arange(N)
    chain = torch.where(depth < (lengths + 1) // 2, starts + depth, -1)
    launch = run(arguments | {"path": chain.int()}, settings)
    assert "k_cache and v_cache" not in launch.traffic


def test_what_moves_is_read_and_written_once() -> None:
    arguments = batch(lengths=(12, 12))
    first = arguments["row_start"][:2, None] + torch.arange(N)
    moved = int(((arguments["path"] >= 0) & (arguments["path"] != first)).sum())
    traffic = run(arguments).traffic["k_cache and v_cache"]
    assert traffic.read.bytes == traffic.written.bytes == moved * 2 * 3 * 64 * 2


@every_setting
def test_garbage(settings: Settings) -> None:
    for seed in range(4):
        arguments = batch(seed)
        g = torch.Generator().manual_seed(seed)
        for name, values in (
            ("path", [-(2**31), -1, 0, 5, 31, 32, 2**31 - 1]),
            ("row_start", [-1, 3, 32, 2**31 - 1, -(2**31)]),
            ("slots", [-1, -(2**62), BLOCKS * BLOCK, 2**40]),
        ):
            x = arguments[name]
            chosen = torch.rand(x.shape, generator=g) < 0.2
            picks = torch.randint(len(values), x.shape, generator=g)
            x[chosen] = torch.tensor(values, dtype=x.dtype)[picks][chosen]
        run(arguments, settings)


@pytest.mark.parametrize("width", [0, 65])
def test_paths_that_are_refused(width: int) -> None:
    arguments = batch() | {"path": torch.zeros(5, width, dtype=torch.int32)}
    for op in (torch.ops.p_eagle.compact_cache, torch_ops.op(NAME)):
        with pytest.raises((ValueError, RuntimeError), match=f"1 to 64 columns, got {width}"):
            op(*arguments.values())


@every_setting
def test_a_captured_call_is_replayed_on_changed_inputs(settings: Settings) -> None:
    with torch_ops.emulator().session(settings) as session:
        arguments = torch_ops.guarded(session, NAME, batch())
        with session.capture() as graph:
            torch_ops.op(NAME)(*arguments.values())
        for seed in (1, 2):
            other = batch(seed)
            for name in ("path", "slots"):
                arguments[name].copy_(other[name])
            expected = [arguments[f"{name}_cache"].clone() for name in "kv"]
            tree.compact_cache(other["path"], other["row_start"], other["slots"], expected)
            graph.replay()
            session.check()
            for name, cache in zip("kv", expected, strict=True):
                assert torch.equal(bytes_of(arguments[f"{name}_cache"]), bytes_of(cache)), name
