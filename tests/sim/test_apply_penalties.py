"""The kernel of apply_penalties: bit for bit against the reference, garbage, traffic, graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p_eagle_cuda.penalties import Occurrences, Penalties, apply_penalties
from sim import torch_ops
from sim.emulator import FOUR, Launch, Settings
from sim.torch_ops import Arguments

NAME = "apply_penalties"
RACE = FOUR["in-order-race"]
NAN, INF = float("nan"), float("inf")

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)


def batch(
    *, B: int = 4, N: int = 8, V: int = 99, M: int = 40, dtype: torch.dtype = torch.bfloat16,
    is_tree: bool = True, seed: int = 0,
) -> Arguments:  # fmt: skip
    """Trees of few different tokens, some of which are in the lists."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(V, generator=g)[:M] for _ in range(B)])
    ids[:, ::7] = -1
    parents = torch.stack([torch.randint(max(n, 1), (B,), generator=g) for n in range(N)], dim=1)
    return {
        "logits": (4 * torch.randn(B * N, V, generator=g)).to(dtype),
        "row_start": torch.arange(B + 1, dtype=torch.int32) * N,
        "candidates": torch.randint(V // 4, (B, N), generator=g),
        "parents": (parents - (torch.arange(N) == 0).long()).int() if is_tree else None,
        "token_ids": ids,
        "token_counts": torch.randint(4, (B, M), generator=g).int(),
        "repetition": 0.5 + torch.rand(B, generator=g),
        "frequency": torch.randn(B, generator=g),
        "presence": torch.randn(B, generator=g),
    }


def expected_of(a: Arguments) -> Tensor:
    penalties = Penalties(*(a[name] for name in Penalties._fields))
    occurrences = Occurrences(a["token_ids"], a["token_counts"])
    nodes = a["row_start"], a["candidates"]
    return apply_penalties(a["logits"], *nodes, occurrences, penalties, a["parents"])


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found.nan_to_num(nan=77), expected.nan_to_num(nan=77)), (
        f"differs at {(found != expected).nonzero().tolist()[:9]}"
    )


def run(arguments: Arguments, settings: Settings = RACE) -> Launch:
    """Launches once, and compares."""
    expected = expected_of(arguments)
    (launch,) = torch_ops.call(NAME, arguments, settings)
    assert_same(arguments["logits"], expected)
    return launch


@every_setting
@pytest.mark.parametrize("is_tree", [False, True], ids=["chain", "tree"])
def test_penalties(is_tree: bool, settings: Settings) -> None:
    arguments = batch(is_tree=is_tree)
    before = arguments["logits"].clone()
    launch = run(arguments, settings)
    assert launch.kernel == "apply_penalties_kernel"
    assert launch.grid == (32, 1, 1)
    assert launch.overlaps_previous
    assert (before != arguments["logits"]).sum() > 32 * 30


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_dtypes_and_long_lists(dtype: torch.dtype) -> None:
    run(batch(B=2, N=3, V=2000, M=700, dtype=dtype, seed=1))


def test_a_path_of_all_nodes_and_an_empty_list() -> None:
    arguments = batch(B=2, N=64, M=0, is_tree=False, seed=2)
    run(arguments, FOUR["random"])


@every_setting
def test_garbage(settings: Settings) -> None:
    """Tokens, parents, counts, penalties and rows that cannot be."""
    arguments = batch(B=6, seed=3)
    g = torch.Generator().manual_seed(3)
    for name, values in (
        ("candidates", [-1, -(2**63), 99, 2**32 + 1]),
        ("parents", [-9, 5, 7, 64, 2**31 - 1]),
        ("token_ids", [-1, -(2**63), 99, 2**32 + 1]),
        ("token_counts", [-1, -(2**31), 2**31 - 1]),
    ):
        x = arguments[name]
        chosen = torch.rand(x.shape, generator=g) < 0.2
        picks = torch.randint(len(values), x.shape, generator=g)
        x[chosen] = torch.tensor(values)[picks][chosen].to(x.dtype)
    arguments["repetition"][:4] = torch.tensor([0.0, -1.0, NAN, INF])
    arguments["frequency"][2:4] = torch.tensor([NAN, INF])
    arguments["presence"][2:4] = torch.tensor([-INF, NAN])
    arguments["logits"][::3, ::2] = NAN
    arguments["logits"][1::3, ::2] = -INF
    arguments["logits"][2::3, ::2] = INF
    run(arguments, settings)
    for starts in ([0, 0, 3, 13, 47, 48, 48], [-3, 2, -(2**31), 2**31 - 1, 5, 49, 7]):
        arguments = batch(B=6, seed=3)
        arguments["row_start"] = torch.tensor(starts, dtype=torch.int32)
        run(arguments, settings)


def test_a_request_without_penalties_is_not_read() -> None:
    arguments = batch(B=2, N=2)
    for name, none in (("repetition", 1.0), ("frequency", 0.0), ("presence", 0.0)):
        arguments[name][1] = none
    launch = run(arguments)
    lists = launch.traffic["token_ids"].read
    assert lists.bytes == 2 * arguments["token_ids"][0].nbytes
    assert lists.unique_sectors * 32 == arguments["token_ids"][0].nbytes


def test_only_what_has_occurred_is_touched() -> None:
    arguments = batch(B=1, N=2, V=50_000, M=40, is_tree=False)
    launch = run(arguments)
    for way in (launch.traffic["logits"].read, launch.traffic["logits"].written):
        assert way.bytes <= 2 * (40 + 1) * 2


def test_arguments_that_are_refused() -> None:
    for changes, message in (
        ({"candidates": torch.zeros(4, 65).long()}, "`candidates` must have 1 to 64 columns"),
        ({"token_ids": torch.zeros(4)}, "`token_ids` must be 2-D"),
        ({"token_counts": torch.zeros(4, 41).int()}, r"`token_counts` must have shape \[4, 40\]"),
        ({"presence": torch.zeros(3)}, r"`presence` must have shape \[4\]"),
    ):
        for op in (torch.ops.p_eagle.apply_penalties, torch_ops.op(NAME)):
            with pytest.raises((ValueError, RuntimeError), match=f"apply_penalties: {message}"):
                op(*(batch() | changes).values())


@every_setting
def test_a_captured_call_is_replayed_on_changed_inputs(settings: Settings) -> None:
    with torch_ops.emulator().session(settings) as session:
        arguments = torch_ops.guarded(session, NAME, batch())
        with session.capture() as graph:
            torch_ops.op(NAME)(*arguments.values())
        assert graph.num_nodes == 1
        for seed in (1, 2):
            for name, x in batch(seed=seed).items():
                if isinstance(x, Tensor):
                    arguments[name].copy_(x)
            expected = expected_of(arguments)
            graph.replay()
            session.check()
            assert_same(arguments["logits"], expected)
