"""The row kernels around a product of torch's: sizes, alignments, traffic, overlap, graphs.

`test_ops.py` has their contracts and their results at the usual sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from numerics import assert_as_accurate_as_torch, assert_rounded_once, double
from p_eagle_cuda import reference
from sim import linear_cases, torch_ops
from sim.emulator import FOUR, BufferTraffic, Launch, Settings
from sim.linear_cases import BF16, E4M3, Arguments, assert_cache_right, copy, count, randn, rows_of

F16, E5M2 = torch.float16, torch.float8_e5m2
RACE = FOUR["in-order-race"]
SECTOR = 32

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)
every_dtype = pytest.mark.parametrize("dtype", [BF16, F16], ids=str)


# ---- Calls ---------------------------------------------------------------------------------------


def gather_taps(
    num_rows: int, max_rows: int, Ht: int, num_taps: int, norm: str = "", dtype: torch.dtype = BF16
) -> Arguments:
    """Every third row is a mask row; what no row refers to is NaN."""
    a = linear_cases.project_taps(num_rows, max_rows, 8, Ht, num_taps, norm, dtype)
    names = ("taps", "source_row", "num_rows", "input_norm", "fc_norms", "eps")
    return {k: a[k] for k in names} | {"out": rows_of(0, max_rows, num_taps * Ht, dtype)}


def norm_rows(
    num_rows: int, max_rows: int, columns: int, *, has_sums: bool = False, dtype: torch.dtype = BF16
) -> Arguments:
    a = linear_cases.norm_swiglu(num_rows, max_rows, 1, columns, has_sums=has_sums, dtype=dtype)
    names = ("x", "norm_weight", "sum_squares", "num_rows", "eps")
    return {k: a[k] for k in names} | {"out": rows_of(0, max_rows, columns, dtype)}


def gate_rows(num_rows: int, max_rows: int, width: int, dtype: torch.dtype = BF16) -> Arguments:
    return {
        "gate_up": rows_of(num_rows, max_rows, 2 * width, dtype) * 3,
        "num_rows": count(num_rows),
        "out": rows_of(0, max_rows, width, dtype),
    }


def rope_cache(
    num_rows: int, max_rows: int, heads: tuple[int, int, int], *, norms_heads: bool = False,
    dtype: torch.dtype = BF16, cache_dtype: torch.dtype | None = None, block_size: int = 16,
) -> Arguments:  # fmt: skip
    a = linear_cases.qkv_rope_cache(
        num_rows, max_rows, heads, 8, norms_heads=norms_heads, dtype=dtype,
        cache_dtype=cache_dtype, block_size=block_size,
    )  # fmt: skip
    names = (
        "q_norm", "k_norm", "rope", "positions", "slots", "num_rows", "k_scale", "v_scale", "eps",
        "q", "k_cache", "v_cache",
    )  # fmt: skip
    Nq, Nkv, D = heads
    product = rows_of(num_rows, max_rows, (Nq + 2 * Nkv) * D, dtype)
    return {"heads": product} | {k: a[k] for k in names}


def expected(name: str, a: Arguments) -> dict[str, Tensor]:
    """The outputs for the rows that exist, in the dtype of the arguments."""
    n = int(a["num_rows"])
    if name == "gather_taps":
        out = reference.gather_taps(
            a["taps"], a["source_row"][:n], a["input_norm"], a["fc_norms"], a["eps"]
        )
        return {"out": out}
    if name == "norm_rows":
        return {"out": reference.rms_norm(a["x"][:n], a["norm_weight"], a["eps"])}
    if name == "gate_rows":
        return {"out": reference.gate_rows(a["gate_up"][:n])}
    q, k, v = reference.rope_heads(
        a["heads"][:n], a["q_norm"], a["k_norm"], a["rope"], a["positions"][:n],
        a["k_cache"].shape[1], a["eps"],
    )  # fmt: skip
    return {"q": q, "k": k, "v": v}


def assert_right(name: str, before: Arguments, after: Arguments) -> None:
    """`after` holds what the op makes of `before`, and nothing of rows that do not exist."""
    n = int(before["num_rows"])
    exact = expected(name, {k: double(x) for k, x in before.items()})
    if name == "rope_cache":
        unfused = expected(name, before)
        assert_as_accurate_as_torch("q", after["q"][:n], exact["q"], unfused["q"])
        for part in "kv":
            assert_cache_right(part, before, after, exact[part], unfused[part])
    else:
        assert_rounded_once("out", after["out"][:n], exact["out"])
    output = "q" if name == "rope_cache" else "out"
    assert after[output][n:].isnan().all(), "wrote rows that do not exist"


def run(name: str, arguments: Arguments, settings: Settings = RACE) -> tuple[Arguments, Launch]:
    """The arguments after the call, which are right."""
    after = copy(arguments)
    (launch,) = torch_ops.call(name, after, settings)
    assert launch.overlaps_previous
    assert_right(name, arguments, after)
    return after, launch


CALLS: dict[str, Callable[..., Arguments]] = {
    "gather_taps": lambda n, R, **k: gather_taps(n, R, 136, 3, "taps", **k),
    "norm_rows": lambda n, R, **k: norm_rows(n, R, 320, has_sums=True, **k),
    "gate_rows": lambda n, R, **k: gate_rows(n, R, 200, **k),
    "rope_cache": lambda n, R, **k: rope_cache(n, R, (3, 1, 64), norms_heads=True, **k),
}
RAGGED: dict[str, Callable[..., Arguments]] = {
    "gather_taps": lambda n, R, **k: gather_taps(n, R, 101, 2, "input", **k),
    "norm_rows": lambda n, R, **k: norm_rows(n, R, 321, **k),
    "gate_rows": lambda n, R, **k: gate_rows(n, R, 131, **k),
    "rope_cache": lambda n, R, **k: rope_cache(n, R, (3, 1, 74), norms_heads=True, **k),
}
every_call = pytest.mark.parametrize("name", CALLS)
every_size = pytest.mark.parametrize("calls", [CALLS, RAGGED], ids=["vectors", "elements"])


# ---- Results -------------------------------------------------------------------------------------


@every_setting
@every_dtype
@every_size
@every_call
def test_results(name: str, calls: dict[str, Any], dtype: torch.dtype, settings: Settings) -> None:
    run(name, calls[name](5, 7, dtype=dtype), settings)


@every_size
@every_call
@pytest.mark.parametrize(("num_rows", "max_rows"), [(1, 1), (0, 3), (70, 70)])
def test_row_counts(name: str, calls: dict[str, Any], num_rows: int, max_rows: int) -> None:
    run(name, calls[name](num_rows, max_rows), FOUR["random"])


@pytest.mark.parametrize("norm", ["", "input", "taps"])
@pytest.mark.parametrize(
    ("Ht", "num_taps"), [(8, 1), (4, 3), (100, 8), (2048, 3), (2880, 3), (4096, 5)]
)
def test_taps(Ht: int, num_taps: int, norm: str) -> None:
    """4096 x 5 columns are more than a block keeps while it norms them."""
    arguments = gather_taps(4, 5, Ht, num_taps, norm)
    after, _ = run("gather_taps", arguments, FOUR["random"])
    is_mask = arguments["source_row"][:4] < 0
    assert is_mask.any()
    assert (after["out"][:4][is_mask] == 0).all()
    if not norm:
        assert torch.equal(after["out"][:4], expected("gather_taps", arguments)["out"])


@pytest.mark.parametrize("has_sums", [False, True], ids=["", "sums"])
@pytest.mark.parametrize("columns", [1, 8, 60, 1544, 1549, 2048, 2880, 4096, 12296])
def test_norms(columns: int, has_sums: bool) -> None:
    run("norm_rows", norm_rows(3, 4, columns, has_sums=has_sums), FOUR["random"])


@pytest.mark.parametrize("width", [1, 8, 12, 1032, 2880])
def test_gates(width: int) -> None:
    run("gate_rows", gate_rows(3, 4, width), FOUR["random"])


@every_dtype
def test_gates_of_any_size(dtype: torch.dtype) -> None:
    """Gates so far from zero that their exponential is none, one by one."""
    arguments = gate_rows(2, 2, 64, dtype)
    arguments["gate_up"][:, :64] = torch.linspace(-200, 200, 128).view(2, 64).to(dtype)
    after = copy(arguments)
    torch_ops.call("gate_rows", after, RACE)
    exact = expected("gate_rows", {k: double(x) for k, x in arguments.items()})["out"]
    unfused = expected("gate_rows", arguments)["out"]
    assert_as_accurate_as_torch("out", after["out"], exact, unfused)


@pytest.mark.parametrize("norms_heads", [False, True], ids=["", "norms"])
@pytest.mark.parametrize("head_dim", [2, 30, 32, 64, 72, 80, 96, 128, 192, 250, 256])
def test_head_sizes(head_dim: int, norms_heads: bool) -> None:
    run("rope_cache", rope_cache(5, 6, (5, 2, head_dim), norms_heads=norms_heads), FOUR["random"])


@pytest.mark.parametrize("head_dim", [50, 64, 256])
@pytest.mark.parametrize("cache_dtype", [BF16, E4M3, E5M2], ids=str)
def test_caches(head_dim: int, cache_dtype: torch.dtype) -> None:
    arguments = rope_cache(7, 8, (4, 2, head_dim), cache_dtype=cache_dtype, block_size=32)
    after, _ = run("rope_cache", arguments)
    if cache_dtype == BF16:
        v = expected("rope_cache", arguments)["v"]
        slots = arguments["slots"][:7]
        stored = after["v_cache"][slots[slots >= 0] // 32, :, slots[slots >= 0] % 32]
        assert torch.equal(stored, v[slots >= 0])


@pytest.mark.parametrize("cache_dtype", [E4M3, E5M2], ids=str)
def test_fp8_caches_saturate(cache_dtype: torch.dtype) -> None:
    arguments = rope_cache(4, 4, (1, 1, 64), cache_dtype=cache_dtype)
    arguments["v_scale"].fill_(1e-6)
    after, _ = run("rope_cache", arguments)
    slots = arguments["slots"][arguments["slots"] >= 0]
    stored = after["v_cache"].double()[slots // 16, :, slots % 16].abs()
    assert stored.max() == torch.finfo(cache_dtype).max
    assert stored.isfinite().all()


@every_setting
@pytest.mark.parametrize("head_dim", [64, 74])
def test_heads_past_the_last_block(head_dim: int, settings: Settings) -> None:
    """More heads than a block has, and a number that does not fill the last one."""
    run("rope_cache", rope_cache(2, 3, (33, 2, head_dim)), settings)


def shifted(x: Tensor) -> Tensor:
    """The same, at an address that is one element past a multiple of 16 bytes."""
    storage = torch.empty(x.numel() + 8, dtype=x.dtype)
    view = storage[1:][: x.numel()].view(x.shape)
    assert view.data_ptr() % 16 == x.element_size()
    return view.copy_(x)


@every_call
def test_addresses_that_are_not_aligned(name: str) -> None:
    arguments = CALLS[name](3, 4)
    for argument, x in arguments.items():
        if argument == "taps":
            changed: Any = [*x[:-1], shifted(x[-1])]
        elif isinstance(x, Tensor) and x.is_contiguous() and x.dtype.itemsize == 2:
            changed = shifted(x)
        else:
            continue
        run(name, arguments | {argument: changed})


@pytest.mark.parametrize("cache_dtype", [BF16, E4M3], ids=str)
def test_caches_that_are_not_aligned(cache_dtype: torch.dtype) -> None:
    arguments = rope_cache(3, 4, (2, 1, 64), cache_dtype=cache_dtype)
    blocks, Nkv, size, D = arguments["k_cache"].shape
    for width, start in ((2 * D + 4, 0), (2 * D + 8, 4)):  # strides, then the address
        caches = torch.full((blocks, Nkv, size, width), 7.0).to(cache_dtype)
        k_cache, v_cache = caches[..., start : start + D], caches[..., start + D :][..., :D]
        run("rope_cache", arguments | {"k_cache": k_cache, "v_cache": v_cache})


# ---- Traffic -------------------------------------------------------------------------------------


def moved(traffic: Iterable[BufferTraffic]) -> int:
    """Bytes that a cold L2 must move."""
    return SECTOR * sum(x.read.unique_sectors + x.written.unique_sectors for x in traffic)


def assert_in_vectors(launch: Launch, *buffers: str) -> None:
    """Lanes that are together move whole sectors of these, so none is asked for twice."""
    for name in buffers:
        for traffic in (launch.traffic[name].read, launch.traffic[name].written):
            assert traffic.sectors * SECTOR == traffic.bytes, name


@pytest.mark.parametrize("norm", ["", "input", "taps"])
def test_taps_are_read_once(norm: str) -> None:
    arguments = gather_taps(9, 12, 1024, 3, norm)
    _, launch = run("gather_taps", arguments)
    real = int((arguments["source_row"][:9] >= 0).sum())
    row = 2 * 1024
    for i in range(3):
        assert launch.traffic[f"taps[{i}]"].read.bytes == real * row
    assert launch.traffic["out"].written.bytes == 9 * 3 * row
    assert_in_vectors(launch, *(f"taps[{i}]" for i in range(3)), "out")
    weight = 3 * row if norm else 0
    assert moved(launch.traffic.values()) <= 1.01 * (real * 3 + 9 * 3) * row + weight


@pytest.mark.parametrize("has_sums", [False, True], ids=["", "sums"])
def test_normed_rows_are_read_once(has_sums: bool) -> None:
    _, launch = run("norm_rows", norm_rows(9, 12, 2880, has_sums=has_sums))
    row = 2 * 2880
    assert launch.traffic["x"].read.bytes == 9 * row
    assert launch.traffic["out"].written.bytes == 9 * row
    assert_in_vectors(launch, "x", "out")
    sums = 45 * 2 * SECTOR if has_sums else 0
    assert moved(launch.traffic.values()) <= 1.01 * (2 * 9 + 1) * row + sums
    assert launch.shared_wavefronts == launch.shared_wavefronts_minimum


def test_gated_rows_are_read_once() -> None:
    _, launch = run("gate_rows", gate_rows(9, 12, 2880))
    row = 2 * 2880
    assert_in_vectors(launch, "gate_up", "out")
    assert launch.traffic["gate_up"].read.bytes == 9 * 2 * row
    assert launch.traffic["out"].written.bytes == 9 * row
    assert moved(launch.traffic.values()) <= 1.01 * 9 * 3 * row


@pytest.mark.parametrize("cache_dtype", [BF16, E4M3], ids=str)
def test_heads_are_read_once(cache_dtype: torch.dtype) -> None:
    """Keys and values of rows without a slot are not needed, and read all the same."""
    arguments = rope_cache(9, 12, (14, 2, 64), cache_dtype=cache_dtype)
    _, launch = run("rope_cache", arguments)
    head, kept = 2 * 64, int((arguments["slots"][:9] >= 0).sum())
    assert launch.traffic["heads"].read.bytes == 9 * 18 * head
    assert launch.traffic["q"].written.bytes == 9 * 14 * head
    assert_in_vectors(launch, "heads", "q", "k_cache and v_cache")
    stored = kept * 2 * 64 * cache_dtype.itemsize
    assert launch.traffic["k_cache and v_cache"].written.bytes == 2 * stored
    small = 40 * 64 * 4 + 16 * 12 + 4 * SECTOR  # the rope table, at most; positions and slots
    assert moved(launch.traffic.values()) <= 9 * (18 + 14) * head + 2 * stored + small


# ---- Together ------------------------------------------------------------------------------------


@every_setting
def test_a_captured_chain_is_replayed_on_changed_rows(settings: Settings) -> None:
    """Each launch reads what the one before wrote; one in the middle has no rows at times."""
    R, C, heads = 9, 256, (2, 1, 64)
    first = gather_taps(R, R, C // 2, 2, "taps")
    middle = gate_rows(0, R, 24)
    second, third = norm_rows(R, R, C), rope_cache(R, R, heads, norms_heads=True)
    calls = {"gather_taps": first, "gate_rows": middle, "norm_rows": second, "rope_cache": third}
    with torch_ops.emulator().session(settings) as session:
        first, middle, second, third = (
            torch_ops.guarded(session, name, x) for name, x in calls.items()
        )
        second |= {"x": first["out"], "num_rows": first["num_rows"]}
        third |= {"heads": second["out"], "num_rows": first["num_rows"]}
        guarded = {
            "gather_taps": first, "gate_rows": middle, "norm_rows": second, "rope_cache": third
        }  # fmt: skip
        with session.capture() as graph:
            for name, arguments in guarded.items():
                torch_ops.op(name)(*arguments.values())
        assert graph.num_nodes == 4
        session.check()
        assert not session.launches, "a captured launch must not run"
        for num_rows in (R, 3, 0, 7):
            first["num_rows"].fill_(num_rows)
            for tap in first["taps"]:
                tap.normal_()
            third["k_cache"].fill_(7)
            third["v_cache"].fill_(7)
            third["q"].fill_(torch.nan)
            graph.replay()
            session.check()
            exact, unfused = (
                _chain(*({k: convert(v) for k, v in x.items()} for x in (first, second, third)))
                for convert in (double, lambda x: x)
            )
            assert_as_accurate_as_torch("q", third["q"][:num_rows], exact["q"], unfused["q"])
            assert third["q"][num_rows:].isnan().all()
            if num_rows:
                for part in "kv":
                    assert_cache_right(part, third, third, exact[part], unfused[part])


def _chain(first: Arguments, second: Arguments, third: Arguments) -> dict[str, Tensor]:
    gathered = expected("gather_taps", first)["out"]
    normed = expected("norm_rows", second | {"x": gathered})["out"]
    return expected("rope_cache", third | {"heads": normed})


@every_setting
@every_call
def test_waits_in_a_launch_without_rows(name: str, settings: Settings) -> None:
    """A launch that left without waiting would let the third start before the first has ended."""
    first, third = norm_rows(4, 4, 256), norm_rows(4, 4, 256)
    between = CALLS[name](0, 4)
    with torch_ops.emulator().session(settings) as session:
        first = torch_ops.guarded(session, "norm_rows", first)
        between = torch_ops.guarded(session, name, between)
        third = torch_ops.guarded(session, "norm_rows", third)
        third["x"] = first["out"]
        torch_ops.op("norm_rows")(*first.values())
        torch_ops.op(name)(*between.values())
        torch_ops.op("norm_rows")(*third.values())
    assert all(launch.overlaps_previous for launch in session.launches)
    assert_right("norm_rows", first, first)
    assert_right("norm_rows", third, third)


def test_a_head_size_that_is_odd_or_too_large_is_refused() -> None:
    for head_dim in (258, 7):
        arguments = rope_cache(1, 1, (1, 1, 8))
        arguments["q"] = torch.zeros(1, 1, head_dim, dtype=BF16)
        with pytest.raises(RuntimeError, match=f"must be even and at most 256, got {head_dim}"):
            torch_ops.call("rope_cache", arguments, RACE)


def test_both_norms_of_taps_are_refused() -> None:
    arguments = gather_taps(1, 1, 8, 2, "taps")
    arguments["input_norm"] = randn(16)
    with pytest.raises(RuntimeError, match="at most one of `input_norm` and `fc_norms`"):
        torch_ops.call("gather_taps", arguments, RACE)
