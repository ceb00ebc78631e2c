"""The linear layers on the emulator: every epilogue, weight type, head size, and way to be cut.

`test_ops.py` has their contracts and their results at the usual sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from numerics import assert_as_accurate_as_torch, double
from sim import linear_cases, torch_ops
from sim.emulator import FOUR, Settings
from sim.linear_cases import BF16, E4M3, Arguments, assert_right, copy, workspace

RACE = FOUR["in-order-race"]
E5M2 = torch.float8_e5m2

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)

# A call of each op for so many rows of so many. The rows of a weight that are no multiple of 64
# leave a tile ragged; 2880 is gpt-oss's hidden size, 2048 Qwen3-Coder's, 4096 Qwen3-8B's.
CALLS: dict[str, tuple[str, Callable[..., Arguments]]] = {
    "taps": ("project_taps", lambda n, R, **k: linear_cases.project_taps(n, R, 200, 192, **k)),
    "residual": (
        "linear_residual", lambda n, R, **k: linear_cases.linear_residual(n, R, 200, 448, **k)
    ),
    "swiglu": ("norm_swiglu", lambda n, R, **k: linear_cases.norm_swiglu(n, R, 88, 320, **k)),
    "qkv 64": (
        "qkv_rope_cache", lambda n, R, **k: linear_cases.qkv_rope_cache(n, R, (2, 1, 64), 320, **k)
    ),
    "qkv 128": (
        "qkv_rope_cache",
        lambda n, R, **k: linear_cases.qkv_rope_cache(
            n, R, (2, 1, 128), 320, norms_heads=True, **k
        ),
    ),
}  # fmt: skip

every_call = pytest.mark.parametrize("call", CALLS)


def run(name: str, arguments: Arguments, settings: Settings = RACE) -> Arguments:
    """The arguments after the call, which are right."""
    after = copy(arguments)
    (launch,) = torch_ops.call(name, after, settings)
    assert launch.kernel == "linear_kernel"
    assert launch.overlaps_previous
    assert_right(name, arguments, after)
    return after


# ---- Results -------------------------------------------------------------------------------------


@every_setting
@every_call
@pytest.mark.parametrize("is_e4m3", [False, True], ids=["bf16", "e4m3"])
def test_results(call: str, is_e4m3: bool, settings: Settings) -> None:
    name, make = CALLS[call]
    run(name, make(11, 14, is_e4m3=is_e4m3), settings)


@every_call
@pytest.mark.parametrize("is_e4m3", [False, True], ids=["f16", "e4m3"])
def test_results_in_float16(call: str, is_e4m3: bool) -> None:
    name, make = CALLS[call]
    run(name, make(5, 6, dtype=torch.float16, is_e4m3=is_e4m3))


@every_call
@pytest.mark.parametrize(
    ("num_rows", "max_rows"), [(1, 1), (8, 8), (9, 9), (3, 16), (17, 17), (32, 32), (0, 8)]
)
def test_row_counts(call: str, num_rows: int, max_rows: int) -> None:
    name, make = CALLS[call]
    run(name, make(num_rows, max_rows))


@every_call
@pytest.mark.parametrize(("num_rows", "max_rows"), [(33, 33), (31, 70), (70, 70)])
def test_more_rows_than_a_tile(call: str, num_rows: int, max_rows: int) -> None:
    """Of 16-bit weights Hopper has other kernels for them: `test_wide_layers.py`."""
    name, make = CALLS[call]
    run(name, make(num_rows, max_rows, is_e4m3=True), FOUR["random"])


@every_call
@pytest.mark.parametrize("num_sms", [1, 2, 3, 7, 40])
def test_however_it_is_cut(call: str, num_sms: int) -> None:
    """From one CTA for all tiles to one for each block, so that many add up one tile."""
    name, make = CALLS[call]
    arguments = make(5, 5) | {"workspace": workspace(num_sms)}
    run(name, arguments, replace(RACE, num_sms=num_sms))


@pytest.mark.parametrize("columns", [2880, 2048, 4096])
def test_hidden_sizes_of_real_models(columns: int) -> None:
    settings = replace(FOUR["random"], num_sms=5)
    make = linear_cases.linear_residual
    run("linear_residual", make(4, 7, 144, columns) | {"workspace": workspace(5)}, settings)
    run("norm_swiglu", linear_cases.norm_swiglu(4, 7, 40, columns), FOUR["late"])


@pytest.mark.parametrize("norm", ["", "input", "taps"])
@pytest.mark.parametrize("num_taps", [1, 3, 5, 8])
def test_taps_and_their_norms(num_taps: int, norm: str) -> None:
    run("project_taps", linear_cases.project_taps(10, 13, 72, 64, num_taps, norm))


def test_a_norm_without_known_sums() -> None:
    run("norm_swiglu", linear_cases.norm_swiglu(9, 12, 40, 576, has_sums=False))


def test_a_projection_without_a_bias() -> None:
    run("linear_residual", linear_cases.linear_residual(3, 4, 64, 128, has_bias=False))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("cache_dtype", [BF16, E4M3, E5M2], ids=str)
@pytest.mark.parametrize("has_norm", [False, True], ids=["first layer", "others"])
def test_caches(head_dim: int, cache_dtype: torch.dtype, has_norm: bool) -> None:
    arguments = linear_cases.qkv_rope_cache(
        14, 16, (3, 2, head_dim), 128, has_norm=has_norm, has_bias=has_norm,
        norms_heads=not has_norm, cache_dtype=cache_dtype, block_size=32 if has_norm else 16,
    )  # fmt: skip
    run("qkv_rope_cache", arguments)


@pytest.mark.parametrize("norms_heads", [False, True])
def test_mask_rows_of_the_first_layer(norms_heads: bool) -> None:
    """Their heads are given, and their rows of x are not read."""
    arguments = linear_cases.qkv_rope_cache(
        10, 12, (2, 1, 64), 128, has_norm=False, has_bias=True, norms_heads=norms_heads
    )
    is_mask = torch.arange(12) % 3 > 0
    arguments["source_row"] = torch.where(is_mask, -1, torch.arange(12)).int()
    arguments["mask_heads"] = torch.randn(4 * 64)
    after = copy(arguments)
    after["x"][is_mask] = torch.nan
    torch_ops.call("qkv_rope_cache", after, RACE)
    assert_right("qkv_rope_cache", arguments, after)


@every_call
def test_an_empty_batch(call: str) -> None:
    name, make = CALLS[call]
    assert torch_ops.call(name, make(0, 0), RACE) == []


@pytest.mark.parametrize("cache_dtype", [E4M3, E5M2], ids=str)
def test_fp8_caches_saturate(cache_dtype: torch.dtype) -> None:
    arguments = linear_cases.qkv_rope_cache(4, 4, (1, 1, 64), 64, cache_dtype=cache_dtype)
    arguments["v_scale"].fill_(1e-6)
    after = run("qkv_rope_cache", arguments)
    slots = arguments["slots"][arguments["slots"] >= 0]
    stored = after["v_cache"].double()[slots // 16, :, slots % 16].abs()
    assert stored.max() == torch.finfo(cache_dtype).max
    assert stored.isfinite().all()


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_every_e4m3_weight_is_exact(dtype: torch.dtype) -> None:
    """All finite codes, subnormals and zeros of either sign, against rows of the unit matrix."""
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3)
    codes = codes[~codes.double().isnan()]
    columns = 256
    weight = torch.zeros(64, columns).to(E4M3)
    weight.view(torch.uint8).view(-1)[: 2 * len(codes)] = codes.view(torch.uint8).repeat(2)
    for first in range(0, columns, 32):
        arguments = linear_cases.linear_residual(32, 32, 64, columns, has_bias=False, dtype=dtype)
        arguments |= {"weight": weight, "weight_scale": torch.full((64,), 0.25)}
        arguments["x"].zero_()
        arguments["x"][torch.arange(32), first + torch.arange(32)] = 1
        arguments["residual"].zero_()
        torch_ops.call("linear_residual", arguments, FOUR["random"])
        found = arguments["residual"].double()
        assert torch.equal(found, 0.25 * weight.double()[:, first : first + 32].T)


# ---- A row's bits --------------------------------------------------------------------------------


@every_call
def test_a_row_gets_the_same_bits_in_any_batch(call: str) -> None:
    """Whatever the other rows are, how many there are, and where in the batch it is."""
    name, make = CALLS[call]
    whole = make(32, 32)
    settings = replace(FOUR["random"], num_sms=3)
    in_whole = copy(whole)
    torch_ops.call(name, in_whole, settings)
    rowwise = ("x", "residual", "out", "q", "positions", "slots", "source_row")
    for max_rows, row in ((1, 5), (8, 20), (16, 31)):
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


@every_call
def test_the_order_of_ctas_does_not_matter(call: str) -> None:
    name, make = CALLS[call]
    arguments = make(6, 6) | {"workspace": workspace(7)}
    results = []
    for settings in FOUR.values():
        after = copy(arguments)
        torch_ops.call(name, after, replace(settings, num_sms=7))
        results.append(after)
    for output in {"residual", "sum_squares", "out", "q", "k_cache", "v_cache"} & set(arguments):
        if results[0][output] is not None:
            bits = [after[output].contiguous().view(torch.uint8) for after in results]
            assert all(torch.equal(x, bits[0]) for x in bits), output


# ---- Together ------------------------------------------------------------------------------------


@every_setting
def test_a_captured_mlp_is_replayed_on_changed_rows(settings: Settings) -> None:
    """Each launch reads what the one before wrote, and all take turns with one workspace."""
    R, H, I = 12, 128, 192  # noqa: E741
    first = linear_cases.linear_residual(R, R, H, 64)
    gate = linear_cases.norm_swiglu(R, R, I, H)
    last = linear_cases.linear_residual(R, R, H, I)
    with torch_ops.emulator().session(settings) as session:
        first = torch_ops.guarded(session, "linear_residual", first)
        gate = torch_ops.guarded(session, "norm_swiglu", gate)
        last = torch_ops.guarded(session, "linear_residual", last)
        shared = {"num_rows": first["num_rows"], "workspace": first["workspace"]}
        gate |= shared | {"x": first["residual"], "sum_squares": first["sum_squares"]}
        last |= shared | {"x": gate["out"], "residual": first["residual"]}
        last["sum_squares"] = first["sum_squares"]
        with session.capture() as graph:
            torch_ops.op("linear_residual")(*first.values())
            torch_ops.op("norm_swiglu")(*gate.values())
            torch_ops.op("linear_residual")(*last.values())
        assert graph.num_nodes == 3
        for num_rows in (R, 3, 0, 7):
            first["num_rows"].fill_(num_rows)
            first["x"].normal_()
            first["residual"].normal_()
            unfused = [copy(x) for x in (first, gate, last)]
            exact = [{k: double(v) for k, v in x.items()} for x in unfused]
            graph.replay()
            session.check()
            wanted, careful = _run_on_cpu(exact)[:num_rows], _run_on_cpu(unfused)[:num_rows]
            assert_as_accurate_as_torch("residual", last["residual"][:num_rows], wanted, careful)


def _run_on_cpu(calls: list[Arguments]) -> Tensor:
    first, gate, last = calls
    torch.ops.p_eagle.linear_residual(*first.values())
    gate |= {"x": first["residual"], "sum_squares": first["sum_squares"]}
    torch.ops.p_eagle.norm_swiglu(*gate.values())
    last |= {"x": gate["out"], "residual": first["residual"]}
    torch.ops.p_eagle.linear_residual(*last.values())
    return last["residual"]


# ---- Traffic -------------------------------------------------------------------------------------

SECTOR = 32


@pytest.mark.parametrize("is_e4m3", [False, True], ids=["bf16", "e4m3"])
@pytest.mark.parametrize(
    ("name", "weight", "make"),
    [
        (
            "linear_residual",
            "weight",
            lambda **k: linear_cases.linear_residual(10, 10, 960, 2880, **k),
        ),
        ("norm_swiglu", "gate_up", lambda **k: linear_cases.norm_swiglu(10, 10, 480, 2880, **k)),
        ("project_taps", "weight", lambda **k: linear_cases.project_taps(16, 16, 576, 1024, **k)),
        (
            "qkv_rope_cache",
            "weight",
            lambda **k: linear_cases.qkv_rope_cache(10, 10, (12, 2, 64), 2880, **k),
        ),
    ],
)  # fmt: skip
def test_weights_are_read_once(
    name: str, weight: str, make: Callable[..., Arguments], is_e4m3: bool
) -> None:
    """And everything else is small: all that is read is within 2 % of what must be."""
    arguments = make(is_e4m3=is_e4m3)
    (launch,) = torch_ops.call(name, arguments, Settings())  # lanes of a request stay together
    size = arguments[weight].nbytes
    read = launch.traffic[weight].read
    assert (read.bytes, read.sectors * SECTOR, read.unique_sectors * SECTOR) == (size,) * 3
    moved = {
        label: traffic.read.unique_sectors * SECTOR for label, traffic in launch.traffic.items()
    }
    # Parts of tiles go through L2 and cost what the grid is, not what the weight is: 8 CTAs here.
    assert moved.pop("workspace", 0) <= 8 * 2 * 64 * 16 * 4 + SECTOR
    x = sum(v for label, v in moved.items() if label == "x" or label.startswith("taps"))
    assert x <= sum(t.nbytes for t in arguments.get("taps", [arguments.get("x")]))
    assert sum(moved.values()) <= 1.02 * (size + x)
    assert launch.matrix_instructions > 0
    assert launch.shared_wavefronts == launch.shared_wavefronts_minimum
