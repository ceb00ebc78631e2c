"""The kernel of logit_floors: bit for bit against the reference, garbage, traffic, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from p_eagle_cuda.verification import logit_floors
from sim import torch_ops
from sim.emulator import FOUR, Launch, Settings
from sim.torch_ops import Arguments

NAME = "logit_floors"
RACE = FOUR["in-order-race"]
NAN, INF = float("nan"), float("inf")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DIGITS = {torch.bfloat16: 2, torch.float16: 3, torch.float32: 4}

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)

# Of each filter by itself, all together, and none: (top_k, top_p, min_p).
FILTERS = [(7, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.1), (20, 0.7, 0.02), (0, 1.0, 0.0), (1, 0.5, 1)]


def batch(
    V: int = 304, dtype: torch.dtype = torch.bfloat16, filters: list[Any] = FILTERS,
    rows: int = 1, seed: int = 0, temperature: float = 0.9, step: float = 0.0,
) -> Arguments:  # fmt: skip
    """Requests with a filter each and so many rows; logits are multiples of a `step` above 0."""
    g = torch.Generator().manual_seed(seed)
    B = len(filters)
    logits = 3 * torch.randn(B * rows, V, generator=g)
    logits = (logits / step).round() * step if step > 0 else logits
    k, p, m = zip(*filters, strict=True)
    return {
        "logits": logits.to(dtype),
        "row_start": torch.arange(B + 1, dtype=torch.int32) * rows,
        "temperature": torch.full((B,), temperature),
        "top_k": torch.tensor(k, dtype=torch.int32),
        "top_p": torch.tensor(p, dtype=torch.float32),
        "min_p": torch.tensor(m, dtype=torch.float32),
        "floors": torch.full((B * rows,), 77.0),
    }


def assert_right(arguments: Arguments) -> None:
    expected = logit_floors(*list(arguments.values())[:6])
    assert torch.equal(arguments["floors"], expected), (
        f"expected {expected.tolist()}, got {arguments['floors'].tolist()}"
    )


def run(arguments: Arguments, settings: Settings = RACE) -> Launch:
    """Launches once, and compares."""
    (launch,) = torch_ops.call(NAME, arguments, settings)
    assert_right(arguments)
    return launch


@every_setting
@pytest.mark.parametrize("step", [0.0, 0.5], ids=["different", "ties"])
def test_filters(step: float, settings: Settings) -> None:
    launch = run(batch(step=step), settings)
    assert launch.kernel == "logit_floors_kernel"
    assert launch.grid == (6, 1, 1)
    assert launch.overlaps_previous


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [1, 5, 96, 301, 2056])
def test_dtypes_and_rows_that_are_not_aligned(V: int, dtype: torch.dtype) -> None:
    run(batch(V, dtype, seed=V))


def test_filters_that_are_not_given() -> None:
    for given in ((), ("top_k",), ("top_p",), ("min_p",), ("top_k", "top_p")):
        arguments = batch(seed=3)
        for name in {"top_k", "top_p", "min_p"} - set(given):
            arguments[name] = None
        run(arguments)


def test_every_k_and_many_shares() -> None:
    k = [(i, 1.0, 0.0) for i in (2, 3, 32, 64, 65, -5, 2**31 - 1)]
    p = [(0, i / 8, 0.0) for i in range(-1, 9)]
    m = [(0, 1.0, x) for x in (1e-30, 1e-3, 0.5, 1.0, 3.0, -1.0, NAN)]
    odd = [(0, x, 0.0) for x in (NAN, INF, -INF, 1e-30, 1 - 2**-24)]
    for step in (0.0, 1.0):
        run(batch(65, torch.float16, [*k, *p, *m, *odd], step=step, seed=2))


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, 1e-40, 1e-3, 50.0, INF])
def test_temperatures(temperature: float) -> None:
    for step in (0.0, 0.5):
        arguments = batch(temperature=temperature, step=step, seed=5)
        arguments["logits"][:, 3::7] = -INF
        run(arguments)


def test_rows_of_many_passes_of_a_block() -> None:
    """Of more logits than all threads take at a time, which is 32768."""
    run(batch(40_000, filters=[(300, 0.9, 0.0)], seed=6), FOUR["random"])


def test_the_longest_row_that_is_as_flat_as_can_be() -> None:
    """All weights are 1 or the float below, so that the sums of every bin are the largest."""
    arguments = batch(262_144, filters=[(0, 0.75, 0.0)], temperature=1e6)
    arguments["logits"].fill_(-0.06)
    arguments["logits"][:, 5] = 0
    torch_ops.call(NAME, arguments, FOUR["late"])
    assert arguments["floors"] == float(torch.tensor(-0.06).bfloat16())
    arguments["logits"].fill_(-2.0)
    run(arguments, FOUR["late"])


@every_setting
def test_rows_of_odd_logits(settings: Settings) -> None:
    arguments = batch(rows=5, seed=11)
    logits = arguments["logits"]
    logits[::5] = NAN
    logits[1::5] = -INF
    logits[2::5, 7:9] = INF
    logits[3::5, ::2] = NAN
    logits[4::5, 10:] = -INF
    logits[4::5, :4] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    run(arguments, settings)


@every_setting
def test_odd_requests(settings: Settings) -> None:
    """Without rows, with rows of others, and past the last row."""
    for starts in ([0, 0, 9, 14, 11, 17, 18], [-3, 2, -(2**31), 2**31 - 1, 5, 19, 7]):
        arguments = batch(rows=3, seed=12)
        arguments["row_start"] = torch.tensor(starts, dtype=torch.int32)
        run(arguments, settings)
    arguments = batch()
    for name in ("temperature", "top_k", "top_p", "min_p"):
        arguments[name] = arguments[name][:0]
    arguments["row_start"] = arguments["row_start"][:1]
    run(arguments, settings)


def test_rows_that_are_too_long() -> None:
    arguments = batch(262_145, filters=[(1, 1.0, 0.0)])
    with pytest.raises(RuntimeError, match="`logits` must have 1 to 262144 columns, got 262145"):
        torch_ops.call(NAME, arguments, RACE)


# ---- Memory and graphs ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_how_often_rows_are_read(dtype: torch.dtype) -> None:
    digits = DIGITS[dtype]
    for filters, times in (
        ((7, 1.0, 0.0), digits),
        ((7, 1.0, 0.1), digits),
        ((0, 0.8, 0.0), 1 + digits),
        ((7, 0.8, 0.0), 2 * digits),
        ((0, 0.0, 0.0), 1 + digits),
        ((0, 1.0, 0.1), 1),
        ((0, 1.0, 0.0), 0),
    ):
        arguments = batch(dtype=dtype, filters=[filters], rows=2)
        launch = run(arguments)
        traffic = launch.traffic.get("logits")
        assert (traffic.read.bytes if traffic else 0) == times * arguments["logits"].nbytes


def test_rows_without_filters_are_not_read() -> None:
    arguments = batch(filters=[(3, 0.5, 0.5)] * 3, rows=2)
    arguments["temperature"] = torch.tensor([1.0, 0.0, 1.0])
    arguments["row_start"] = torch.tensor([0, 2, 4, 5], dtype=torch.int32)  # the last is nobody's
    launch = run(arguments)
    row = arguments["logits"][0].nbytes
    assert launch.traffic["logits"].read.bytes == 3 * 4 * row
    assert launch.traffic["logits"].read.unique_sectors * 32 == 3 * row


@every_setting
def test_a_captured_call_is_replayed_on_changed_inputs(settings: Settings) -> None:
    with torch_ops.emulator().session(settings) as session:
        arguments = torch_ops.guarded(session, NAME, batch())
        with session.capture() as graph:
            torch_ops.op(NAME)(*arguments.values())
        assert graph.num_nodes == 1
        for seed in (1, 2):
            for name, x in batch(seed=seed, temperature=seed).items():
                if isinstance(x, Tensor) and name != "floors":
                    arguments[name].copy_(x)
            graph.replay()
            session.check()
            assert_right(arguments)
