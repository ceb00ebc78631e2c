"""The kernel of embed_norm_concat: its launch, the bytes it moves, graphs, overlap, and faults.

`test_ops.py` has its results at the usual sizes.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from numerics import assert_rounded_once, double
from op_cases import CASES, N_REAL, H, R, V
from p_eagle_cuda import reference
from sim import torch_ops
from sim.emulator import FOUR, BufferTraffic, Settings
from sim.torch_ops import Arguments

NAME = "embed_norm_concat"
SECTOR = 32
RACE = FOUR["in-order-race"]

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)


def case() -> Arguments:
    return CASES[NAME]("cpu", torch.bfloat16)


def sized_case(hidden_size: int, rows: int) -> Arguments:
    """A case of another hidden size; distinct tokens, no mask rows."""
    shapes = {
        "embedding": (V, hidden_size), "hidden": (rows, hidden_size), "mask_hidden": (hidden_size,),
        "embed_weight": (hidden_size,), "hidden_weight": (hidden_size,),
    }  # fmt: skip
    return {
        "token_ids": torch.randperm(V)[:rows],
        "source_row": torch.arange(rows, dtype=torch.int32),
        "num_rows": torch.tensor([rows], dtype=torch.int32),
        **{name: torch.randn(shape).bfloat16() for name, shape in shapes.items()},
        "eps": 1e-5,
        "norm_before_residual": False,
        "out": torch.full((rows, 2 * hidden_size), float("nan")).bfloat16(),
        "residual": torch.full((rows, hidden_size), float("nan")).bfloat16(),
    }


def assert_right(arguments: Arguments) -> None:
    """The outputs are those of the reference, for the rows that exist."""
    n = int(arguments["num_rows"])
    a = {name: double(x) for name, x in arguments.items()}
    out, residual = reference.embed_norm_concat(
        a["token_ids"][:n], a["source_row"][:n], a["embedding"], a["hidden"][:n], a["mask_hidden"],
        a["embed_weight"], a["hidden_weight"], a["eps"], a["norm_before_residual"],
    )  # fmt: skip
    assert_rounded_once("out", arguments["out"][:n], out)
    assert_rounded_once("residual", arguments["residual"][:n], residual)


def moved(traffic: Iterable[BufferTraffic]) -> int:
    """Bytes that a cold L2 must move."""
    return SECTOR * sum(x.read.unique_sectors + x.written.unique_sectors for x in traffic)


def test_launch() -> None:
    (launch,) = torch_ops.call(NAME, case(), RACE)
    assert launch.kernel == "embed_norm_concat_kernel"
    assert "bfloat16" in launch.signature
    assert (launch.grid, launch.block, launch.cluster) == ((R, 2, 1), (128, 1, 1), (1, 1, 1))
    assert launch.overlaps_previous
    assert (launch.static_shared, launch.dynamic_shared) == (16, 0)


@pytest.mark.parametrize("hidden_size", [8, 1032, 3072, 3080, 8192])
def test_hidden_sizes(hidden_size: int) -> None:
    """One vector, ragged, and both sides of the step to more vectors per thread."""
    arguments = sized_case(hidden_size, rows=2)
    torch_ops.call(NAME, arguments, RACE)
    assert_right(arguments)


def test_traffic_is_what_must_move() -> None:
    """Per row 5H elements, both weights once, and the indices; nothing is read or written twice."""
    rows, hidden_size = 12, 2048
    (launch,) = torch_ops.call(NAME, sized_case(hidden_size, rows), RACE)
    row = 2 * hidden_size  # bytes
    traffic = launch.traffic
    for name in ("embedding", "hidden"):
        assert traffic[name].read.bytes == rows * row, name
    for name, size in (("out", 2 * row), ("residual", row)):
        assert traffic[name].written.bytes == rows * size, name
        assert traffic[name].read.bytes == 0, name
    indices = rows * (8 + 4) + 4
    assert moved(traffic.values()) <= 1.01 * (5 * row * rows + 2 * row + indices)
    assert launch.shared_wavefronts == launch.shared_wavefronts_minimum


def test_mask_rows_and_absent_rows_cost_nothing_in_memory() -> None:
    arguments = case()
    real = arguments["source_row"][:N_REAL] >= 0
    (launch,) = torch_ops.call(NAME, arguments, RACE)
    row = 2 * H
    assert launch.traffic["hidden"].read.bytes == int(real.sum()) * row
    assert launch.traffic["mask_hidden"].read.unique_sectors * SECTOR == row
    assert launch.traffic["out"].written.bytes == N_REAL * 2 * row


@every_setting
def test_a_captured_call_is_replayed_on_changed_inputs(settings: Settings) -> None:
    with torch_ops.emulator().session(settings) as session:
        arguments = torch_ops.guarded(session, NAME, case())
        with session.capture() as graph:
            torch_ops.op(NAME)(*arguments.values())
        assert graph.num_nodes == 1
        session.check()
        assert not session.launches, "a captured launch must not run"
        for num_rows in (N_REAL, 1, R):
            arguments["num_rows"].fill_(num_rows)
            arguments["token_ids"].random_(V)
            arguments["hidden"].normal_()
            graph.replay()
            session.check()
            assert_right(arguments)
        assert len(session.launches) == 3


@every_setting
def test_overlaps_with_the_launch_it_depends_on(settings: Settings) -> None:
    """Two launches without a synchronisation between; the second reads what the first writes."""
    first = sized_case(H, rows=4) | {"norm_before_residual": True}
    second = sized_case(H, rows=4)
    with torch_ops.emulator().session(settings) as session:
        first = torch_ops.guarded(session, NAME, first)
        second = torch_ops.guarded(session, NAME, second)
        second["hidden"] = first["residual"]
        torch_ops.op(NAME)(*first.values())
        torch_ops.op(NAME)(*second.values())
    assert [launch.overlaps_previous for launch in session.launches] == [True, True]
    assert_right(first)
    assert_right(second)


@every_setting
def test_waits_in_a_launch_without_rows(settings: Settings) -> None:
    """A launch that left without waiting would let the third start before the first has ended."""
    first, second, third = (sized_case(H, rows=4) for _ in range(3))
    second["num_rows"].zero_()
    with torch_ops.emulator().session(settings) as session:
        first, second, third = (torch_ops.guarded(session, NAME, x) for x in (first, second, third))
        third["hidden"] = first["residual"]
        for arguments in (first, second, third):
            torch_ops.op(NAME)(*arguments.values())
    assert_right(third)


def test_an_unknown_token_is_reported() -> None:
    arguments = case()
    arguments["token_ids"][2] = V
    with torch_ops.emulator().faulty_session(RACE) as session:
        guarded = torch_ops.guarded(session, NAME, arguments)
        torch_ops.op(NAME)(*guarded.values())
    (report,) = session.reports
    assert report.kind == "trap"
    assert "embed_norm_concat.cu" in report.where


def test_a_tensor_that_the_emulator_does_not_know_is_reported() -> None:
    arguments = case()
    with torch_ops.emulator().faulty_session(RACE) as session:
        guarded: dict[str, Tensor] = torch_ops.guarded(session, NAME, arguments)
        guarded["embedding"] = arguments["embedding"]
        torch_ops.op(NAME)(*guarded.values())
    assert session.reports[0].kind == "memory"
