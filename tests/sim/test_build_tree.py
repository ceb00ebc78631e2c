"""The kernel of build_tree against the reference: shapes, best nodes, draws, garbage, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from op_cases import OUTPUTS
from p_eagle_cuda.tree import Topology, best_paths, build_tree, chain, topology
from sim import torch_ops
from sim.emulator import FOUR, Launch, Settings
from sim.torch_ops import Arguments

NAME = "build_tree"
V = 5000
RACE = FOUR["in-order-race"]
NAN, INF = float("nan"), float("inf")

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)

SPARSE = topology(best_paths([[0.6, 0.2, 0.1], [0.5, 0.2, 0.1], [0.4, 0.1, 0.1]], 20))


def batch(
    B: int = 5, K: int = 4, k: int = 4, N: int = 16, seed: int = 0, *,
    shape: Topology | None = None, is_drawn: bool = False, **changes: Any,
) -> Arguments:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(B * K, k, generator=g).mul(2).sort(descending=True).values
    outputs = {
        name: torch.full(
            (B,) if name == "num_nodes" else (B, N), 777,
            dtype=torch.int32 if name in ("parents", "depths", "num_nodes") else torch.int64,
        )
        for name in OUTPUTS[NAME]
    }  # fmt: skip
    return {
        "ids": torch.rand(B * K, V, generator=g).topk(k).indices,
        "logits": logits,
        "lse": (logits.exp().sum(1) + torch.rand(B * K, generator=g)).log(),
        "root_tokens": torch.randint(V, (B,), generator=g),
        "root_positions": torch.randint(2**40, (B,), generator=g),
        "shape_parents": None if shape is None else shape.parents,
        "shape_ranks": None if shape is None else shape.ranks,
        "budgets": None,
        "noise_keys": torch.randint(2**63 - 1, (B,), generator=g) if is_drawn else None,
        "temperature": torch.rand(B, generator=g) * (torch.arange(B) != 1) if is_drawn else None,
        "step_costs": None,
        "log_discount": 0.0,
        "vocab_size": V,
        **outputs,
    } | changes


def expected_of(a: Arguments) -> dict[str, Tensor]:
    shape = None
    if a["shape_parents"] is not None:
        shape = Topology(a["shape_parents"], a["shape_ranks"])
    tree = build_tree(
        a["ids"], a["logits"], a["lse"], a["root_tokens"], a["root_positions"],
        a["candidates"].shape[1], a["vocab_size"], shape, a["budgets"], a["noise_keys"],
        a["temperature"], a["log_discount"], a["step_costs"],
    )  # fmt: skip
    return tree._asdict()


def assert_right(arguments: Arguments) -> None:
    for name, expected in expected_of(arguments).items():
        assert torch.equal(arguments[name], expected), name


def run(arguments: Arguments, settings: Settings = RACE) -> Launch:
    """Launches once, and compares."""
    (launch,) = torch_ops.call(NAME, arguments, settings)
    assert_right(arguments)
    return launch


def test_launch() -> None:
    launch = run(batch())
    assert launch.kernel == "build_tree_kernel"
    assert launch.grid == (5, 1, 1)
    assert launch.block == (32, 1, 1)
    assert launch.overlaps_previous
    assert launch.static_shared <= 20 * 1024, "many of them must fit an SM"


@every_setting
@pytest.mark.parametrize("log_discount", [0.0, -1.2])
def test_best_nodes(settings: Settings, log_discount: float) -> None:
    budgets = torch.tensor([64, 1, 17, 0, -5], dtype=torch.int32)
    run(batch(K=6, k=8, N=64, log_discount=log_discount, budgets=budgets), settings)


@every_setting
def test_drawn_shapes(settings: Settings) -> None:
    run(batch(shape=SPARSE, N=21, is_drawn=True), settings)


@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("K", [0, 1, 7, 70])
@pytest.mark.parametrize("N", [1, 2, 33, 64])
def test_sizes(K: int, k: int, N: int) -> None:
    run(batch(2, K, k, N))
    run(batch(2, K, k, N, shape=chain(N - 1), is_drawn=True))


@pytest.mark.parametrize("seed", range(4))
def test_the_stop_rule(seed: int) -> None:
    rows = torch.arange(1.0, 31)
    costs = 1 + 0.02 * rows + 0.05 * (rows - 8).clamp(min=0)
    arguments = batch(N=30, seed=seed, step_costs=costs)
    run(arguments)
    assert arguments["num_nodes"].min() < 30
    assert arguments["num_nodes"].max() > 1


def test_ties() -> None:
    arguments = batch(1, 3, 3, 12)
    arguments["logits"].fill_(1.0)
    arguments["lse"].fill_(1.0)
    run(arguments)


@pytest.mark.parametrize("options", [{}, {"shape": SPARSE}, {"shape": SPARSE, "is_drawn": True}])
@pytest.mark.parametrize("seed", range(3))
def test_entries_that_do_not_exist(seed: int, options: dict[str, Any]) -> None:
    arguments = batch(8, 4, 5, 21, seed, **options)
    g = torch.Generator().manual_seed(seed)
    for name, values in (
        ("logits", [NAN, INF, -INF]), ("ids", [-1, V, 2**40, -(2**63)]), ("lse", [NAN, INF, -INF]),
    ):  # fmt: skip
        x = arguments[name]
        chosen = torch.rand(x.shape, generator=g) < 0.15
        drawn = torch.tensor(values, dtype=x.dtype)[
            torch.randint(len(values), x.shape, generator=g)
        ]
        x[chosen] = drawn[chosen]
    run(arguments)


@every_setting
def test_shapes_of_garbage(settings: Settings) -> None:
    g = torch.Generator().manual_seed(0)
    garbage = [-(2**31), -2, -1, 0, 1, 2, 5, 20, 63, 64, 2**31 - 1]
    for _ in range(4):
        parents, ranks = torch.tensor(garbage)[torch.randint(11, (2, 64), generator=g)].int()
        run(batch(2, N=64, shape=Topology(parents.contiguous(), ranks.contiguous())), settings)


WRONG = [
    ({"vocab_size": 0}, "`vocab_size` must be at least 1, got 0"),
    ({"log_discount": 0.5}, "`log_discount` must be at most 0, got 0.5"),
    ({"shape_ranks": torch.zeros(3).int()}, "`shape_parents` and `shape_ranks` must both be given"),
    ({"temperature": torch.ones(5)}, "`noise_keys` and `temperature` must both be given"),
    (
        {"temperature": torch.ones(5), "noise_keys": torch.zeros(5).long()},
        "drafts that are drawn need a shape",
    ),
    (
        {
            "shape_parents": torch.zeros(3).int(), "shape_ranks": torch.zeros(3).int(),
            "step_costs": torch.ones(16),
        },
        "`step_costs` must be None for a tree of a given shape",
    ),
    (
        {"shape_parents": torch.zeros(65).int(), "shape_ranks": torch.zeros(65).int()},
        "a shape must have 1 to 64 nodes, got 65",
    ),
    ({"candidates": torch.zeros(5, 65).long()}, "`candidates` must have 1 to 64 columns, got 65"),
    ({"candidates": torch.zeros(5, 0).long()}, "`candidates` must have 1 to 64 columns, got 0"),
    ({"ids": torch.zeros(20, 17).long()}, "`ids` must have 1 to 16 columns, got 17"),
    ({"ids": torch.zeros(21, 4).long()}, "`ids` must have K rows for each of 5 requests, got 21"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_arguments_that_are_refused(changes: dict[str, Any], message: str) -> None:
    """The host layer says the same as the op on the CPU."""
    arguments = batch() | changes
    for op in (torch.ops.p_eagle.build_tree, torch_ops.op(NAME)):
        with pytest.raises((ValueError, RuntimeError), match=f"build_tree: {message}"):
            op(*arguments.values())


def test_traffic_is_what_must_move() -> None:
    arguments = batch(8, 7, 4, 32)
    traffic = run(arguments).traffic
    for name in OUTPUTS[NAME]:
        assert traffic[name].written.bytes == arguments[name].nbytes, name
        assert traffic[name].read.bytes == 0, name
    for name in ("logits", "lse", "root_tokens"):
        assert traffic[name].read.unique_sectors * 32 == arguments[name].nbytes, name


@every_setting
def test_a_captured_call_is_replayed_on_changed_inputs(settings: Settings) -> None:
    with torch_ops.emulator().session(settings) as session:
        arguments = torch_ops.guarded(session, NAME, batch(shape=SPARSE, N=21, is_drawn=True))
        with session.capture() as graph:
            torch_ops.op(NAME)(*arguments.values())
        assert graph.num_nodes == 1
        for seed in (1, 2):
            for name, x in batch(shape=SPARSE, N=21, is_drawn=True, seed=seed).items():
                if isinstance(x, Tensor) and name not in OUTPUTS[NAME]:
                    arguments[name].copy_(x)
            graph.replay()
            session.check()
            assert_right(arguments)
