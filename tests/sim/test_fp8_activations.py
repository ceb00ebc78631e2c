"""Linear layers with FP8 activations on the emulator: of few rows, and of many on Hopper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from p_eagle_cuda.precision import quantize_activations
from sim import linear_cases, torch_ops
from sim.emulator import FOUR, Settings
from sim.linear_cases import BF16, E4M3, Arguments, assert_right, copy, workspace

RACE, RANDOM = FOUR["in-order-race"], FOUR["random"]
F16 = torch.float16
SECTOR = 32

# A call of each op for so many rows of so many. Blocks of 128 columns are whole, cut off by the end
# of a row, and divided between taps.
CALLS: dict[str, tuple[str, Callable[..., Arguments]]] = {
    "taps": ("project_taps", lambda n, R, **k: linear_cases.project_taps(n, R, 176, 64, 3, **k)),
    "residual": (
        "linear_residual", lambda n, R, **k: linear_cases.linear_residual(n, R, 192, 320, **k)
    ),
    "swiglu": ("norm_swiglu", lambda n, R, **k: linear_cases.norm_swiglu(n, R, 88, 192, **k)),
    "qkv 64": (
        "qkv_rope_cache", lambda n, R, **k: linear_cases.qkv_rope_cache(n, R, (1, 1, 64), 64, **k)
    ),
    "qkv 128": (
        "qkv_rope_cache",
        lambda n, R, **k: linear_cases.qkv_rope_cache(
            n, R, (1, 1, 128), 128, norms_heads=True, **k
        ),
    ),
}  # fmt: skip

every_call = pytest.mark.parametrize("call", CALLS)


def make(call: str, num_rows: int, max_rows: int, dtype: torch.dtype = BF16) -> Arguments:
    return CALLS[call][1](num_rows, max_rows, dtype=dtype, fp8_activations=True)


def run(name: str, arguments: Arguments, settings: Settings, kernel: str = "wide_kernel") -> None:
    after = copy(arguments)
    (launch,) = torch_ops.call(name, after, settings)
    assert launch.kernel == kernel
    assert_right(name, arguments, after)


@every_call
@pytest.mark.parametrize(
    ("num_rows", "max_rows", "dtype", "setting", "kernel"),
    [
        (3, 5, BF16, "in-order-race", "linear_kernel"),
        (20, 20, F16, "random", "linear_kernel"),
        (41, 50, BF16, "in-order-race", "wide_kernel"),
        (33, 33, F16, "random", "wide_kernel"),
        (100, 128, BF16, "late", "wide_kernel"),
        (70, 140, BF16, "reverse", "wide_kernel"),  # 128 tokens of 256 are multiplied
        (0, 40, BF16, "random", "wide_kernel"),
    ],
    ids=str,
)
def test_results(
    call: str, num_rows: int, max_rows: int, dtype: torch.dtype, setting: str, kernel: str
) -> None:
    run(CALLS[call][0], make(call, num_rows, max_rows, dtype), FOUR[setting], kernel)


@pytest.mark.parametrize("call", ["residual", "qkv 128"])
def test_two_parts_of_a_tile_and_two_tiles(call: str) -> None:
    run(CALLS[call][0], make(call, 150, 260), RACE)


@pytest.mark.parametrize("call", ["taps", "swiglu"])
@pytest.mark.parametrize("num_sms", [1, 40])
def test_however_it_is_cut(call: str, num_sms: int) -> None:
    arguments = make(call, 37, 40) | {"workspace": workspace(num_sms)}
    run(CALLS[call][0], arguments, replace(RACE, num_sms=num_sms))


def test_more_blocks_than_stages_and_places() -> None:
    """Every stage and every place of the queue is used again, over the ends of tiles."""
    arguments = linear_cases.norm_swiglu(40, 40, 128, 960, fp8_activations=True)
    run("norm_swiglu", arguments | {"workspace": workspace(1)}, replace(RACE, num_sms=1))


@pytest.mark.parametrize("norm", ["input", "taps"])
@pytest.mark.parametrize("max_rows", [7, 40])
def test_norms_of_taps(norm: str, max_rows: int) -> None:
    arguments = linear_cases.project_taps(
        max_rows - 1, max_rows, 64, 64, 3, norm, fp8_activations=True
    )
    run("project_taps", arguments, RANDOM, "wide_kernel" if max_rows > 32 else "linear_kernel")


def test_other_architectures_have_the_kernel_of_few_rows() -> None:
    settings = replace(RANDOM, compute_capability=80)
    run("linear_residual", make("residual", 40, 40), settings, "linear_kernel")


@every_call
def test_they_need_fp8_weights(call: str) -> None:
    name = CALLS[call][0]
    arguments = CALLS[call][1](3, 4) | {"fp8_activations": True}
    weight = "gate_up" if name == "norm_swiglu" else "weight"
    message = f"{name}: `fp8_activations` needs an FP8 `{weight}` with its scale"
    with pytest.raises(ValueError, match=message):
        getattr(torch.ops.p_eagle, name)(*arguments.values())
    with pytest.raises(RuntimeError, match=message):
        torch_ops.call(name, arguments, RACE)


# ---- What rows become ----------------------------------------------------------------------------


def of_all_magnitudes(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Blocks of any size, ties, zeros, and values that are lost beside their block's largest."""
    x = torch.randn(rows, columns) * torch.exp2(torch.randint(-12, 4, (rows, columns)).float())
    x[:, ::5] = (x[:, ::5] * 16).round() / 16
    x[:, 64:128] *= torch.exp2(torch.randint(-20, 1, (rows, 1)).float())
    if dtype == BF16:
        x *= torch.exp2(torch.randint(-100, 90, (rows, 1)).float())
    x[1] = 0
    codes = torch.arange(128, dtype=torch.uint8).view(E4M3).float()
    x[2, :127], x[2, 127] = codes[:127] / 64, -448 / 64
    x[3, :2] = torch.tensor([449.0, 464.0])
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("num_rows", [24, 40], ids=["few", "wide"])
def test_rows_are_rounded_as_they_are_defined(num_rows: int, dtype: torch.dtype) -> None:
    """To the last bit, seen through the unit matrix."""
    arguments = linear_cases.linear_residual(
        num_rows, num_rows, 192, 192, has_bias=False, dtype=dtype, fp8_activations=True
    )
    x = of_all_magnitudes(num_rows, 192, dtype)
    arguments |= {"x": x, "weight": torch.eye(192).to(E4M3), "weight_scale": torch.ones(192)}
    arguments["residual"].zero_()
    torch_ops.call("linear_residual", arguments, RANDOM)
    assert not torch.equal(quantize_activations(x), x)
    assert torch.equal(arguments["residual"], quantize_activations(x))


def test_sums_of_a_block_are_added_in_float32() -> None:
    """Tensor cores that keep 13 bits, as Hopper's do for FP8, cost a long row no accuracy."""
    arguments = linear_cases.linear_residual(
        40, 40, 64, 4096, has_bias=False, dtype=F16, fp8_activations=True
    )
    arguments["x"] = torch.rand(40, 4096).add(0.5).to(F16)
    arguments["weight"] = torch.rand(64, 4096).add(0.5).mul(100).to(E4M3)
    arguments["residual"].zero_()
    exact = quantize_activations(arguments["x"]).double() @ arguments["weight"].double().T
    exact *= arguments["weight_scale"].double()
    torch_ops.call("linear_residual", arguments, replace(RANDOM, mma_fraction_bits=13))
    error = (arguments["residual"].double() / exact - 1).abs().max()
    # Each of a block's four sums cuts off at most 2^-13; then one rounding to float16.
    assert error <= 4 * 2**-13 + 2**-11


# ---- A row's bits, and bytes ---------------------------------------------------------------------


@pytest.mark.parametrize("call", ["residual", "swiglu"])
def test_a_row_gets_the_same_bits_from_33_to_256_rows(call: str) -> None:
    name = CALLS[call][0]
    whole = make(call, 200, 200)
    settings = replace(RANDOM, num_sms=3)
    in_whole = copy(whole)
    torch_ops.call(name, in_whole, settings)
    output = "residual" if call == "residual" else "out"
    for max_rows, row in ((33, 150), (130, 140)):
        part = copy(whole)
        for argument in {"x", output}:
            part[argument] = part[argument].roll(max_rows - 1 - row, 0)[:max_rows].contiguous()
        if call == "swiglu":
            sums = part["sum_squares"].roll(max_rows - 1 - row, 1)
            part["sum_squares"] = sums[:, :max_rows].contiguous()
        else:
            part["sum_squares"] = part["sum_squares"][:, :max_rows].contiguous()
        part["num_rows"].fill_(max_rows)
        torch_ops.call(name, part, settings)
        assert torch.equal(part[output][max_rows - 1], in_whole[output][row]), max_rows


@every_call
@pytest.mark.parametrize(("num_rows", "times"), [(256, 1), (257, 2)])
def test_weights_are_read_once_for_256_rows(call: str, num_rows: int, times: int) -> None:
    name = CALLS[call][0]
    arguments = make(call, num_rows, num_rows)
    (launch,) = torch_ops.call(name, arguments, Settings())
    weight = "gate_up" if name == "norm_swiglu" else "weight"
    size = arguments[weight].nbytes
    read = launch.traffic[weight].read
    assert (read.bytes, read.unique_sectors * SECTOR) == (times * size, size)
