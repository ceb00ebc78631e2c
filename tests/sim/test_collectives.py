"""Matrix products of many rows on the emulator's Hopper: CUTLASS's collectives, in clusters.

`test_ops.py` has their contracts. The shapes here are ragged: the last tiles of rows, of the
weight's rows and of its columns are not full.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from numerics import assert_as_accurate_as_torch, assert_rounded_once
from p_eagle_cuda import reference
from sim import torch_ops
from sim.emulator import FOUR, Launch, Settings
from sim.linear_cases import BF16, Arguments, copy, count, randn, rows_of, weight_of, workspace

FP16 = torch.float16
RACE = FOUR["in-order-race"]
OPS = ("gemm", "gemm_residual", "gemm_swiglu")

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)
every_op = pytest.mark.parametrize("name", OPS)


def case(
    name: str, num_rows: int, max_rows: int, N: int = 272, C: int = 136,
    dtype: torch.dtype = BF16, has_bias: bool = True,
) -> Arguments:  # fmt: skip
    """Rows that do not exist hold NaN, of outputs too."""
    weight, _ = weight_of(N, C, dtype)
    a: Arguments = {"x": rows_of(num_rows, max_rows, C, dtype)}
    if name == "gemm_swiglu":
        a |= {"gate_up": weight, "num_rows": count(num_rows)}
        return a | {"out": rows_of(0, max_rows, N // 2, dtype), "workspace": workspace()}
    bias = randn(N, dtype=dtype) if has_bias else None
    a |= {"weight": weight, "bias": bias, "num_rows": count(num_rows)}
    if name == "gemm":
        a["out"] = rows_of(0, max_rows, N, dtype)
    else:
        a["residual"] = rows_of(num_rows, max_rows, N, dtype)
        a["sum_squares"] = torch.full((-(-N // 64), max_rows), torch.nan)
    return a | {"workspace": workspace()}


def run(name: str, a: Arguments, settings: Settings = RACE) -> Launch:
    """The launch, after which the outputs are right and nothing else has changed."""
    before = copy(a)
    (launch,) = torch_ops.call(name, a, settings)
    assert launch.kernel == "collective_kernel"
    n, output = int(a["num_rows"]), "residual" if name == "gemm_residual" else "out"
    exact, unfused = (expected(name, before, dtype) for dtype in (torch.float64, a["x"].dtype))
    assert_as_accurate_as_torch(output, a[output][:n], exact, unfused)
    assert a[output][n:].isnan().all(), "wrote rows that do not exist"
    if name == "gemm_residual":
        sums = reference.sum_squares(a["residual"][:n].double())
        assert_rounded_once("sum_squares", a["sum_squares"][:, :n], sums)
        assert a["sum_squares"][:, n:].isnan().all(), "wrote sums of rows that do not exist"
    assert not a["workspace"][:4096].any(), "left counters behind"
    return launch


def expected(name: str, a: Arguments, dtype: torch.dtype) -> torch.Tensor:
    x = a["x"][: int(a["num_rows"])].to(dtype)
    if name == "gemm_swiglu":
        return reference.gate_rows(x @ a["gate_up"].to(dtype).T)
    bias = None if a["bias"] is None else a["bias"].to(dtype)
    product = torch.nn.functional.linear(x, a["weight"].to(dtype), bias)
    return product if name == "gemm" else a["residual"][: len(x)].to(dtype) + product


@every_setting
@every_op
def test_results(name: str, settings: Settings) -> None:
    """Three tiles of rows, of which the last is not there, for four CTAs: all are cut."""
    run(name, case(name, 200, 300), settings)


@every_setting
@every_op
def test_two_ctas_share_a_weight(name: str, settings: Settings) -> None:
    """Two clusters of two; the second tile of rows has rows for one of its CTAs."""
    run(name, case(name, 300, 600), settings)


@every_op
@pytest.mark.parametrize(
    ("num_rows", "max_rows", "dtype"),
    [(0, 300, BF16), (0, 600, BF16), (1, 1, BF16), (128, 129, FP16), (520, 520, FP16)],
)
def test_row_counts(name: str, num_rows: int, max_rows: int, dtype: torch.dtype) -> None:
    run(name, case(name, num_rows, max_rows, N=288, C=72, dtype=dtype), FOUR["random"])


@every_op
@pytest.mark.parametrize("num_sms", [1, 7, 40])
def test_however_it_is_cut(name: str, num_sms: int) -> None:
    """From whole tiles to more CTAs than blocks; more blocks than stages; an odd CTA too many."""
    for rows in (150, 530):
        a = case(name, rows, rows, N=544, C=392, has_bias=False)
        a["workspace"] = workspace(num_sms)
        run(name, a, replace(FOUR["late"], num_sms=num_sms))


def test_weights_apart_from_their_partners() -> None:
    """The gate and the up row of a pair lie half a weight apart, wherever that is."""
    run("gemm_swiglu", case("gemm_swiglu", 40, 40, N=16 * 37, C=64))


@pytest.mark.parametrize("capability", [80, 100, 103])
@every_op
def test_other_architectures_are_refused(name: str, capability: int) -> None:
    """Of these 10.0 has the op in a library that is built for 100a, which this one is not."""
    a = case(name, 3, 3)
    with pytest.raises(RuntimeError, match=rf"{name}: runs on compute capability 9.0 where"):
        torch_ops.call(name, a, replace(RACE, compute_capability=capability))


@every_op
@pytest.mark.parametrize(
    ("N", "C", "reason"),
    [(264, 64, "rows of .* multiple of 16, got 264"), (64, 60, "columns of .* 8, got 60")],
)
def test_sizes_that_are_refused(name: str, N: int, C: int, reason: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: the {reason}"):
        torch_ops.call(name, case(name, 3, 3, N, C), RACE)


@every_op
@pytest.mark.parametrize(
    ("num_rows", "max_rows", "times"),
    [(128, 300, 1), (129, 300, 2), (0, 300, 0), (256, 600, 1), (257, 600, 2), (600, 600, 3)],
)
def test_how_often_operands_are_read(name: str, num_rows: int, max_rows: int, times: int) -> None:
    """Weights once for 128 rows that exist, or 256 where two CTAs share them.

    Tiles of rows that do not exist cost nothing. Rows are read once for 256 of the weight's.
    """
    a = case(name, num_rows, max_rows, N=512, C=128)
    traffic = run(name, a, FOUR["random"]).traffic
    weight = "gate_up" if name == "gemm_swiglu" else "weight"
    found = {x: traffic[x].read.bytes if x in traffic else 0 for x in ("x", weight)}
    rows = min(times * (128 if max_rows <= 512 else 256), max_rows)
    assert found == {"x": 2 * a["x"][:rows].nbytes, weight: times * a[weight].nbytes}
