"""The kernels of verify: against the reference, by their exact law, garbage, traffic, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from exact_laws import chi_square
from op_cases import OUTPUTS
from p_eagle_cuda.tree import build_tree, topology
from p_eagle_cuda.verification import RULES, Drafts, Rule, Verified, logit_floors, verify
from sim import torch_ops
from sim.emulator import FOUR, Launch, Settings
from sim.torch_ops import Arguments

NAME = "verify"
TILE = 4096
RACE = FOUR["in-order-race"]
NAN, INF = float("nan"), float("inf")

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)
every_rule = pytest.mark.parametrize("rule", RULES)

TREE = topology([(0,), (1,), (0, 0), (2,), (1, 0), (0, 1), (0, 0, 0)])


def batch(
    rule: Rule = "target", *, B: int = 6, V: int = 96, dtype: torch.dtype = torch.bfloat16,
    is_tree: bool | None = None, seed: int = 0, temperature: float = 0.8, k: int = 4,
    agreement: float = 4.0,
) -> Arguments:  # fmt: skip
    """Drafts that the target agrees with to some degree, drawn as the rule wants it."""
    g = torch.Generator().manual_seed(seed)
    is_tree = rule != "block" if is_tree is None else is_tree
    shape = TREE if is_tree else topology([(0,) * (i + 1) for i in range(4)])
    K, N = 4, len(shape.parents)
    draft_logits = torch.randn(B * K, k, generator=g)
    draft_ids = torch.stack([torch.randperm(V, generator=g)[:k] for _ in range(B * K)])
    keys = torch.randint(2**63 - 1, (B,), generator=g)
    root_positions = torch.randint(2**40, (B,), generator=g)
    draft_t = torch.ones(B)
    tree = build_tree(
        draft_ids, draft_logits, draft_logits.logsumexp(1), torch.randint(V, (B,), generator=g),
        root_positions, N, V, shape, noise_keys=keys, temperature=draft_t,
    )  # fmt: skip
    logits = torch.randn(B, N, V, generator=g)
    for b in range(B):
        for node in range(N):
            row = b * K + min(int(tree.depths[b, node]), K - 1)
            logits[b, node, draft_ids[row]] = agreement + draft_logits[row]
    wide = {"dtype": torch.int64}
    return {
        "logits": logits.view(B * N, V).to(dtype),
        "row_start": torch.arange(B + 1, dtype=torch.int32) * N,
        "candidates": tree.candidates,
        "next_token": tree.next_token if is_tree else None,
        "next_sibling": tree.next_sibling if is_tree else None,
        "temperature": torch.full((B,), temperature),
        "keys": keys,
        "root_positions": root_positions,
        "floors": None,
        "draft_ids": draft_ids if rule != "target" else None,
        "draft_logits": draft_logits if rule != "target" else None,
        "draft_temperature": draft_t if rule != "target" else None,
        "rule": RULES.index(rule),
        "lazy": False,
        "tokens": torch.full((B, N), 777, **wide),
        "path": torch.full((B, N), 777, dtype=torch.int32),
        **{name: torch.full((B,), 777, dtype=torch.int32) for name in OUTPUTS[NAME][2:5]},
        "next_tokens": torch.full((B,), 777, **wide),
        "workspace": workspace(B * N, V),
    }


def workspace(num_rows: int, V: int) -> Tensor:
    """Anything may be in it."""
    return torch.full((num_rows * -(-V // TILE) * 12,), 0xFF, dtype=torch.uint8)


def expected_of(a: Arguments) -> Verified:
    links = None if a["next_token"] is None else (a["next_token"], a["next_sibling"])
    drafts = None
    if a["draft_ids"] is not None:
        drafts = Drafts(a["draft_ids"], a["draft_logits"], a["draft_temperature"])
    return verify(
        a["logits"], a["row_start"], a["candidates"], a["next_tokens"], a["temperature"],
        a["keys"], a["root_positions"], links, a["floors"], drafts, RULES[a["rule"]],
    )  # fmt: skip


def assert_right(arguments: Arguments, before: Tensor | None = None) -> None:
    given = arguments if before is None else arguments | {"next_tokens": before}
    for name, expected in expected_of(given)._asdict().items():
        assert torch.equal(arguments[name], expected), (
            f"{name}: expected {expected.tolist()}, got {arguments[name].tolist()}"
        )


def run(arguments: Arguments, settings: Settings = RACE) -> list[Launch]:
    """Launches once, and compares."""
    before = arguments["next_tokens"].clone()
    launches = torch_ops.call(NAME, arguments, settings)
    assert_right(arguments, before)
    return launches


# ---- Results -------------------------------------------------------------------------------------


@every_setting
@every_rule
def test_rules(rule: Rule, settings: Settings) -> None:
    arguments = batch(rule)
    tiles, walk = run(arguments, settings)
    assert (tiles.kernel, walk.kernel) == ("verify_tiles_kernel", "verify_walk_kernel")
    assert tiles.grid == (len(arguments["logits"]), 1, 1)
    assert walk.grid == (6, 1, 1)
    assert tiles.overlaps_previous
    assert walk.overlaps_previous
    assert 0 < int(arguments["num_accepted"].sum()) < 6 * 4


@every_rule
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("V", [96, 101])
def test_dtypes_and_rows_that_are_not_aligned(rule: Rule, dtype: torch.dtype, V: int) -> None:
    run(batch(rule, V=V, dtype=dtype, seed=V))


@every_setting
@every_rule
def test_tiles(rule: Rule, settings: Settings) -> None:
    """Choices of several tiles, the last of which is not full, and drafts in any of them."""
    arguments = batch(rule, B=2, V=2 * TILE + 900, seed=3, agreement=9.0)
    run(arguments, settings)


def test_more_tiles_than_lanes() -> None:
    arguments = batch("target", B=1, V=33 * TILE + 8, seed=1, is_tree=False)
    for name in ("logits", "candidates", "tokens", "path"):
        x = arguments[name]
        arguments[name] = x[:1] if name == "logits" else x[:, :1].contiguous()
    arguments["row_start"] = torch.tensor([0, 1], dtype=torch.int32)
    run(arguments)
    assert int(arguments["tokens"]) > TILE


@every_setting
@pytest.mark.parametrize("is_tree", [False, True])
def test_greedy(is_tree: bool, settings: Settings) -> None:
    """Without sampling arguments, and with drafts that are often the argmax."""
    arguments = batch("target", is_tree=is_tree, seed=5, agreement=2.0)
    for name in ("temperature", "keys", "root_positions"):
        arguments[name] = None
    run(arguments, settings)
    assert int(arguments["num_accepted"].max()) >= 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, 1e-40, 1e-6, 50.0, INF])
@every_rule
def test_temperatures(rule: Rule, temperature: float) -> None:
    arguments = batch(rule, temperature=temperature, seed=9)
    arguments["draft_temperature"] = None if rule == "target" else torch.full((6,), 1.0)
    run(arguments)


def test_drafts_that_were_not_drawn() -> None:
    for rule in ("rejection", "block"):
        arguments = batch(rule, seed=2)
        arguments["draft_temperature"] = torch.tensor([0.0, 1.0, -1.0, NAN, 0.5, 2.0])
        run(arguments)


@every_rule
def test_floors(rule: Rule) -> None:
    arguments = batch(rule, seed=4)
    B = 6
    arguments["floors"] = logit_floors(
        arguments["logits"], arguments["row_start"], arguments["temperature"],
        torch.full((B,), 6).int(), torch.full((B,), 0.8),
    )  # fmt: skip
    run(arguments)
    arguments = batch(rule, seed=4)
    arguments["floors"] = torch.full((len(arguments["logits"]),), 99.0)  # nothing is kept
    run(arguments)


def test_the_law_of_what_is_emitted() -> None:
    """Chi-square of the first token, of requests that are alike but for their keys."""
    B, V = 500, 6
    g = torch.Generator().manual_seed(1)
    row, draft_row = torch.randn(V, generator=g), torch.randn(V, generator=g)
    exact = (row.double() / 0.8).softmax(0)
    shape = topology([(0,), (1,), (2,)])
    for rule in ("target", "rejection", "block"):
        if rule == "block":
            shape = topology([(0,)])
        N = len(shape.parents)
        ids, draft_logits = torch.arange(V).repeat(B, 1), draft_row.repeat(B, 1)
        keys, positions, ones = torch.arange(B) * 31 + 7, torch.zeros(B).long(), torch.ones(B)
        tree = build_tree(
            ids, draft_logits, draft_logits.logsumexp(1), positions, positions, N, V, shape,
            noise_keys=keys, temperature=ones,
        )  # fmt: skip
        arguments = batch(rule, B=B, V=V, dtype=torch.float32) | {
            "logits": row.repeat(B * N, 1),
            "row_start": torch.arange(B + 1, dtype=torch.int32) * N,
            "candidates": tree.candidates,
            "next_token": None if rule == "block" else tree.next_token,
            "next_sibling": None if rule == "block" else tree.next_sibling,
            "keys": keys,
            "root_positions": positions,
            "draft_ids": None if rule == "target" else ids,
            "draft_logits": None if rule == "target" else draft_logits,
            "tokens": torch.zeros(B, N, dtype=torch.int64),
            "path": torch.zeros(B, N, dtype=torch.int32),
            "workspace": workspace(B * N, V),
        }
        torch_ops.call(NAME, arguments, FOUR["random"])
        counts = torch.bincount(arguments["tokens"][:, 0], minlength=V)
        assert chi_square(counts, exact) < 20.5  # 5 degrees of freedom: one in a thousand


@every_rule
def test_a_request_is_the_same_alone_and_in_a_batch(rule: Rule) -> None:
    arguments = batch(rule, seed=8)
    run(arguments)
    N, b = arguments["candidates"].shape[1], 3
    per_request = {
        "candidates", "next_token", "next_sibling", "temperature", "keys", "root_positions",
        "draft_temperature", *OUTPUTS[NAME],
    }  # fmt: skip
    alone = {
        name: x[b : b + 1] if name in per_request and x is not None else x
        for name, x in batch(rule, seed=8).items()
    }
    alone["logits"] = alone["logits"][b * N : b * N + N]
    alone["row_start"] = torch.tensor([0, N], dtype=torch.int32)
    for name in ("draft_ids", "draft_logits"):
        alone[name] = None if alone[name] is None else alone[name][b * 4 : b * 4 + 4]
    alone["workspace"] = workspace(N, 96)
    torch_ops.call(NAME, alone, RACE)
    for name in ("tokens", "num_accepted", "num_rejected", "next_tokens"):
        assert torch.equal(alone[name][0], arguments[name][b]), name


# ---- Walks that read a row when they come to it --------------------------------------------------


def lazy(arguments: Arguments) -> Arguments:
    B, N = arguments["candidates"].shape
    space = workspace(B * N, arguments["logits"].shape[1])
    return arguments | {"lazy": True, "workspace": space}


@every_setting
@every_rule
@pytest.mark.parametrize("V", [96, 101, 4 * TILE + 900])
def test_lazy_walks(rule: Rule, V: int, settings: Settings) -> None:
    """The same results, of findings with the same bits, in one launch."""
    options = {"B": 2, "V": V, "seed": 3, "agreement": 9.0 if V > TILE else 4.0}
    eager, arguments = batch(rule, **options), lazy(batch(rule, **options))
    (walk,) = run(arguments, settings)
    assert walk.kernel == "verify_walk_kernel"
    assert walk.overlaps_previous
    run(eager)
    rows, tiles = len(eager["logits"]), -(-V // TILE)
    for size, dtype, start in ((8, torch.int64, 0), (4, torch.int32, rows * tiles * 8)):
        stop = start + rows * tiles * size
        found, expected = (
            x["workspace"][start:stop].view(dtype).view(rows, tiles)[x["path"][x["path"] >= 0]]
            for x in (arguments, eager)
        )
        assert torch.equal(found, expected)


@every_rule
def test_lazy_walks_read_no_row_that_they_do_not_come_to(rule: Rule) -> None:
    """Block verification comes to all rows of a chain that can have been drawn."""
    V = 2 * TILE
    arguments = lazy(batch(rule, B=6, V=V, seed=3, agreement=9.0))
    (walk,) = run(arguments)
    assert 0 < int(arguments["num_accepted"].sum()) < 6 * 4
    visited = 6 * 5 if rule == "block" else int((arguments["path"] >= 0).sum())
    assert visited < len(arguments["logits"]) or rule == "block"
    traffic = walk.traffic["logits"].read
    assert traffic.unique_sectors * 32 == visited * V * 2
    tokens = int((arguments["tokens"] >= 0).sum())
    drawn = tokens if rule == "target" else 6
    entries = 32 * 4 * 8  # as in test_each_row_is_read_once
    assert traffic.bytes <= visited * V * 2 + drawn * TILE * 2 + entries * 8 * (tokens + visited)


def test_lazy_greedy() -> None:
    arguments = lazy(batch("target", seed=5, agreement=2.0))
    for name in ("temperature", "keys", "root_positions"):
        arguments[name] = None
    run(arguments)
    assert int(arguments["num_accepted"].max()) >= 1


@every_setting
@every_rule
def test_lazy_walks_of_odd_requests(rule: Rule, settings: Settings) -> None:
    arguments = lazy(batch(rule, seed=6))
    N, R = arguments["candidates"].shape[1], len(arguments["logits"])
    arguments["row_start"] = torch.tensor([0, 0, 3, N + 5, R - 1, R, R], dtype=torch.int32)
    run(arguments, settings)
    arguments = lazy(batch(rule, seed=6))
    arguments["row_start"] = torch.tensor(  # rows of several requests, which do not meet
        [-3, 2, -(2**31), 2, 2**31 - 1, 3, 7], dtype=torch.int32
    )
    run(arguments, settings)


# ---- What no caller should give ------------------------------------------------------------------


@every_setting
def test_rows_of_odd_logits(settings: Settings) -> None:
    for rule in RULES:
        arguments = batch(rule, seed=11)
        logits = arguments["logits"]
        logits[::5] = NAN
        logits[1::5] = -INF
        logits[2::5, 7:9] = INF
        logits[3::5, ::2] = NAN
        run(arguments, settings)


@every_setting
@every_rule
def test_ragged_and_odd_requests(rule: Rule, settings: Settings) -> None:
    """No rows, rows past the last, rows of others, and more of them than nodes."""
    arguments = batch(rule, seed=6)
    N, R = arguments["candidates"].shape[1], len(arguments["logits"])
    arguments["row_start"] = torch.tensor([0, 0, 3, N + 5, R - 1, R, R], dtype=torch.int32)
    run(arguments, settings)
    arguments = batch(rule, seed=6)
    arguments["row_start"] = torch.tensor(
        [-3, 2, -(2**31), 2**31 - 1, 5, R + 1, 7], dtype=torch.int32
    )
    run(arguments, settings)


@every_setting
def test_links_and_candidates_of_garbage(settings: Settings) -> None:
    for rule, seed in (("target", 0), ("rejection", 1)):
        arguments = batch(rule, seed=seed)  # type: ignore[arg-type]
        g = torch.Generator().manual_seed(seed)
        for name, values in (
            ("next_token", [-(2**62), -2, 0, 1, 2, 3, 7, 8, 63, 64, 2**40]),
            ("next_sibling", [-(2**62), -2, 0, 1, 2, 3, 7, 8, 63, 64, 2**40]),
            ("candidates", [-1, -(2**63), 96, 2**32 + 1, 2**62]),
            ("draft_ids", [-1, 96, 2**40]),
        ):
            x = arguments[name]
            if x is not None:
                chosen = torch.rand(x.shape, generator=g) < 0.3
                picks = torch.randint(len(values), x.shape, generator=g)
                x[chosen] = torch.tensor(values)[picks][chosen]
        run(arguments, settings)


WRONG = [
    ({"rule": 3}, "`rule` must be 0 to 2, got 3"),
    ({"rule": 1}, "the rule `rejection` needs the drafts' law, got no `draft_ids`"),
    ({"rule": 2}, "the rule `block` is for chains, got a tree"),
    ({"next_sibling": None}, "`next_token` and `next_sibling` must both be given or both be None"),
    ({"keys": None}, "`temperature`, `keys` and `root_positions` must all be given or all be None"),
    (
        {"draft_temperature": torch.ones(6)},
        "`draft_ids`, `draft_logits` and `draft_temperature` must all be given or all be None",
    ),
    ({"candidates": torch.zeros(6, 65).long()}, "`candidates` must have 1 to 64 columns, got 65"),
    ({"logits": torch.zeros(48, 96, dtype=torch.int32)}, "`logits` must have "),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_arguments_that_are_refused(changes: dict[str, Any], message: str) -> None:
    """The host layer says the same as the op on the CPU."""
    arguments = batch() | changes
    for op in (torch.ops.p_eagle.verify, torch_ops.op(NAME)):
        with pytest.raises((ValueError, RuntimeError), match=f"verify: {message}"):
            op(*arguments.values())


def test_a_workspace_that_is_too_small() -> None:
    arguments = batch()
    arguments["workspace"] = arguments["workspace"][:-16]
    with pytest.raises(RuntimeError, match="`workspace` must hold at least 576 bytes for 48 rows"):
        torch_ops.call(NAME, arguments, RACE)


# ---- Memory and graphs ---------------------------------------------------------------------------


@every_rule
def test_each_row_is_read_once(rule: Rule) -> None:
    """And again a tile for each token that is drawn, and the entries' logits."""
    V = 2 * TILE
    arguments = batch(rule, B=2, V=V, seed=3, agreement=9.0)
    tiles, walk = run(arguments)
    assert tiles.traffic["logits"].read.bytes == arguments["logits"].nbytes
    tokens = int((arguments["tokens"] >= 0).sum())
    drawn = tokens if rule == "target" else 2
    entries = 32 * 4 * 8  # a sector for each entry of the nodes visited, by all warps
    again = walk.traffic["logits"].read.bytes
    assert again <= drawn * TILE * 2 + entries * tokens * 8


def test_rows_of_nobody_are_not_read() -> None:
    arguments = batch("target", B=3)
    arguments["candidates"][1, 2:] = -1
    arguments["logits"][10:16] = NAN
    tiles, _ = run(arguments)
    assert tiles.traffic["logits"].read.bytes == (24 - 6) * 96 * 2


@every_setting
@every_rule
def test_a_captured_call_is_replayed_on_changed_inputs(rule: Rule, settings: Settings) -> None:
    with torch_ops.emulator().session(settings) as session:
        arguments = torch_ops.guarded(session, NAME, batch(rule))
        with session.capture() as graph:
            torch_ops.op(NAME)(*arguments.values())
        assert graph.num_nodes == 2
        for seed in (1, 2):
            for name, x in batch(rule, seed=seed).items():
                if isinstance(x, Tensor) and name not in OUTPUTS[NAME]:
                    arguments[name].copy_(x)
            graph.replay()
            session.check()
            assert_right(arguments)
