"""Trees from marginals: the best nodes by brute force, links and masks, draws, and odd inputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from exact_laws import chi_square, without_replacement
from p_eagle_cuda.tree import (
    Topology,
    Tree,
    best_paths,
    build_tree,
    chain,
    compact_cache,
    topology,
)

V = 1000
NAN, INF = float("nan"), float("inf")


def marginals(B: int, K: int, k: int, seed: int = 0, spread: float = 2.0) -> dict[str, Tensor]:
    """Entries as `lm_head_topk` gives them: distinct ids, logits falling, some mass outside."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(B * K, k, generator=g) * spread).sort(descending=True).values
    ids = torch.stack([torch.randperm(V, generator=g)[:k] for _ in range(B * K)])
    rest = torch.rand(B * K, generator=g) + 0.1
    return {"ids": ids, "logits": logits, "lse": (logits.exp().sum(1) + rest).log()}


def tree_of(entries: dict[str, Tensor], B: int, N: int, **options: Any) -> Tree:
    roots, positions = torch.arange(B) + 500, torch.arange(B) * 1000 + 7
    return build_tree(
        **entries, root_tokens=roots, root_positions=positions, num_nodes=N, vocab_size=V, **options
    )


def paths_of(tree: Tree, b: int, ids: Tensor) -> list[tuple[int, ...]]:
    """Each node's ranks from the root, by its token; entries in their order."""
    paths: list[tuple[int, ...]] = []
    for node in range(int(tree.num_nodes[b])):
        parent = int(tree.parents[b, node])
        if parent < 0:
            paths.append(())
            continue
        depth = len(paths[parent])
        (rank,) = (ids[depth] == tree.candidates[b, node]).nonzero().flatten().tolist()
        paths.append((*paths[parent], rank))
    return paths


def values_of(entries: dict[str, Tensor], discount: float = 1.0) -> dict[tuple[int, ...], float]:
    """Of every path of one request, in float64."""
    log_p = (entries["logits"] - entries["lse"][:, None]).double()
    K, k = log_p.shape
    values = {}
    for depth in range(1, K + 1):
        for path in itertools.product(range(k), repeat=depth):
            off = next((i for i, rank in enumerate(path) if rank > 0), depth)
            value = float(sum(log_p[i, rank] for i, rank in enumerate(path)).exp())
            values[path] = value * discount ** max(depth - 1 - off, 0)
    return values


# ---- Shapes --------------------------------------------------------------------------------------


def test_topology() -> None:
    shape = topology([(0,), (2,), (0, 1), (2, 0), (0, 1, 0)])
    assert shape.parents.tolist() == [-1, 0, 0, 1, 2, 3]
    assert shape.ranks.tolist() == [0, 0, 2, 1, 0, 0]
    assert chain(3).parents.tolist() == [-1, 0, 1, 2]
    assert len(topology([]).parents) == 1


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([(0,), ()], r"ranks of 0 or above, at least one, got \(\)"),
        ([(-1,)], r"got \(-1,\)"),
        ([(0,), (0,)], r"got \(0,\) twice"),
        ([(0, 0), (0,)], r"\(0,\) must come before its extension \(0, 0\)"),
        ([(i,) for i in range(64)], "at most 64 nodes with its root, got 64 more"),
    ],
)
def test_bad_topologies(paths: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topology(paths)


def test_best_paths_by_brute_force() -> None:
    g = torch.Generator().manual_seed(3)
    for _ in range(5):
        accuracies = torch.rand(2, 3, generator=g)
        accuracies = (accuracies / accuracies.sum(1, keepdim=True) * 0.9).tolist()
        every = [p for n in (1, 2) for p in itertools.product(range(3), repeat=n)]
        gain = {p: accuracies[0][p[0]] * (accuracies[1][p[1]] if p[1:] else 1) for p in every}
        for size in range(1, 6):
            trees = (
                t for t in itertools.combinations(every, size)
                if all(len(p) == 1 or p[:1] in t for p in t)
            )  # fmt: skip
            best = max(sum(gain[p] for p in t) for t in trees)
            found = best_paths(accuracies, size)
            topology(found)  # parents come first
            assert len(found) == size
            assert sum(gain[p] for p in found) == pytest.approx(best, abs=1e-12)


def test_best_paths_leaves_out_what_has_no_chance() -> None:
    assert best_paths([[0.5, 0.0], [0.25, 0.75]], 10) == [(0,), (0, 1), (0, 0)]
    assert best_paths([[0.5, 0.5]], 0) == []


@pytest.mark.parametrize(
    ("accuracies", "num_drafts", "message"),
    [
        ([[0.5, 0.6]], 1, r"depth 0 must be shares of one, got \[0.5, 0.6\]"),
        ([[1.0], [NAN]], 1, "depth 1 must be shares"),
        ([[1.0]], 64, "num_drafts must be 0 to 63, got 64"),
    ],
)
def test_bad_accuracies(accuracies: list[list[float]], num_drafts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        best_paths(accuracies, num_drafts)


# ---- Which nodes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("discount", [1.0, 0.3, 1e-6])
def test_the_best_nodes_by_brute_force(discount: float) -> None:
    B, K, k = 6, 4, 3
    entries = marginals(B, K, k)
    log_discount = torch.tensor(discount).log().item()
    for N in (1, 2, 9, 40):
        tree = tree_of(entries, B, N, log_discount=log_discount)
        for b in range(B):
            own = {name: x[b * K : (b + 1) * K] for name, x in entries.items()}
            values = values_of(own, discount)
            best = sorted(values, key=lambda path: -values[path])[: N - 1]
            assert paths_of(tree, b, own["ids"]) == [(), *best]


def test_a_small_discount_leaves_a_spine_with_leaves() -> None:
    entries = marginals(1, 5, 4, spread=0.5)
    tree = tree_of(entries, 1, 21, log_discount=-1000.0)
    paths = paths_of(tree, 0, entries["ids"])
    assert len(paths) == 21
    assert all(not any(path[:-1]) for path in paths)


def test_budgets_take_the_first_nodes() -> None:
    entries = marginals(5, 3, 4, seed=1)
    entries = {name: x[:3].repeat(5, *[1] * (x.ndim - 1)) for name, x in entries.items()}
    whole = tree_of(entries, 5, 16)
    budgets = torch.tensor([-3, 0, 1, 9, 99], dtype=torch.int32)
    for options in ({}, {"shape": topology([(0,), (1,), (0, 0), (1, 3), (0, 0, 2)])}):
        whole = tree_of(entries, 5, 16, **options)
        cut = tree_of(entries, 5, 16, budgets=budgets, **options)
        full = int(whole.num_nodes[0])
        assert cut.num_nodes.tolist() == [0, 0, 1, min(9, full), full]
        for b, n in enumerate(cut.num_nodes.tolist()):
            assert torch.equal(cut.candidates[b, 1:n], whole.candidates[b, 1:n])
            assert (cut.candidates[b, n:] == -1).all()
            assert (cut.mask[b, n:] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_stop_rule(seed: int) -> None:
    """The tree ends before the first node that does not raise tokens per cost."""
    entries = marginals(1, 4, 4, seed)
    N = 30
    rows = torch.arange(1.0, N + 1)
    costs = 1 + 0.02 * rows + 0.05 * (rows - 8).clamp(min=0)
    tree = tree_of(entries, 1, N, step_costs=costs)
    values = sorted(values_of(entries).values(), reverse=True)
    rates = [(1 + sum(values[: n - 1])) / float(costs[n - 1]) for n in range(1, N + 1)]
    expected = next(n for n in range(1, N) if rates[n] <= rates[n - 1])
    assert 1 < expected < N - 1
    assert tree.num_nodes.tolist() == [expected]


def test_a_shape_takes_ranks() -> None:
    entries = marginals(2, 3, 4)
    paths = [(1,), (0,), (1, 3), (0, 0), (1, 3, 2), (0, 1)]
    tree = tree_of(entries, 2, 9, shape=topology(paths))
    for b in range(2):
        assert paths_of(tree, b, entries["ids"][b * 3 :]) == [(), *paths]
    deep = tree_of(entries, 2, 9, shape=chain(5))
    assert deep.num_nodes.tolist() == [4, 4]


def test_a_shape_with_orphans_and_cycles() -> None:
    shape = Topology(
        torch.tensor([-1, 0, 2, 9, -5, 1, 5], dtype=torch.int32),
        torch.tensor([0, 0, 0, 1, 1, -1, 2], dtype=torch.int32),
    )
    tree = tree_of(marginals(1, 3, 4), 1, 9, shape=shape)
    assert tree.num_nodes.tolist() == [2]


# ---- Outputs -------------------------------------------------------------------------------------


def test_links_masks_and_positions() -> None:
    B, N = 4, 64
    entries = marginals(B, 7, 8)
    tree = tree_of(entries, B, N, budgets=torch.tensor([64, 64, 20, 1], dtype=torch.int32))
    for b, n in enumerate(tree.num_nodes.tolist()):
        parents = tree.parents[b].tolist()
        for node in range(n):
            ancestors, at = [], node
            while at >= 0:
                ancestors.append(at)
                at = parents[at]
            bits = int(tree.mask[b, node]) % 2**64
            assert sorted(ancestors) == [j for j in range(N) if bits >> j & 1]
            assert int(tree.depths[b, node]) == len(ancestors) - 1
            assert int(tree.positions[b, node]) == b * 1000 + 7 + len(ancestors) - 1
            assert int(tree.retrieve_index[b, node]) == b * N + node
            children = [i for i in range(n) if parents[i] == node]
            links = [int(tree.next_token[b, node])]
            while links[-1] >= 0:
                links.append(int(tree.next_sibling[b, links[-1]]))
            assert links == [*children, -1]
        for name, x in tree._asdict().items():
            if name != "num_nodes":
                assert (x[b, n:] == (0 if name == "mask" else -1)).all(), name
    assert (tree.candidates[:, 0] == torch.arange(B) + 500).all()


def test_links_are_those_that_sglang_makes() -> None:
    """Its kernel puts nodes at the head of their parent's children, the last node first."""
    tree = tree_of(marginals(1, 4, 4), 1, 20)
    parents = tree.parents[0].tolist()
    next_token, next_sibling = [-1] * 20, [-1] * 20
    for i in range(19, 0, -1):
        next_sibling[i], next_token[parents[i]] = next_token[parents[i]], i
    assert tree.next_token[0].tolist() == next_token
    assert tree.next_sibling[0].tolist() == next_sibling


# ---- Entries -------------------------------------------------------------------------------------


def entries_of(
    logits: Sequence[Sequence[float]], ids: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    wide = torch.tensor(logits)
    return {"ids": torch.tensor(ids), "logits": wide, "lse": torch.full((len(wide),), 1.0)}


def test_entries_that_do_not_exist() -> None:
    """The others close ranks."""
    entries = entries_of(
        [[NAN, 1.0, 0.5, -INF], [0.0, -1.0, INF, -2.0]], [[1, 2, 3, 4], [-1, V, 5, 6]]
    )
    for options in ({}, {"shape": topology([(0,), (1,), (2,), (0, 0), (0, 1)])}):
        tree = tree_of(entries, 1, 9, **options)
        n = int(tree.num_nodes[0])
        assert sorted(tree.candidates[0, 1:n].tolist()) == (
            [2, 3, 6, 6] if not options else [2, 3, 6]
        )
    nothing = entries_of([[NAN] * 2] * 2, [[1, 2]] * 2)
    assert tree_of(nothing, 1, 9).num_nodes.tolist() == [1]


def test_an_lse_that_is_no_number() -> None:
    entries = marginals(1, 2, 2)
    for lse in (NAN, INF, -INF):
        entries["lse"] = torch.full((2,), lse)
        n = int(tree_of(entries, 1, 9).num_nodes)
        assert n == (7 if lse == -INF else 1)  # probabilities are at most 1


def test_ties_take_the_lower_node_then_the_lower_rank() -> None:
    entries = entries_of([[1.0] * 3] * 3, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])  # log p is 0
    tree = tree_of(entries, 1, 8)
    assert tree.candidates[0].tolist() == [500, 1, 2, 3, 4, 5, 6, 4]
    assert tree.parents[0].tolist() == [-1, 0, 0, 0, 1, 1, 1, 2]


def test_drawn_entries_are_a_sample_without_replacement() -> None:
    """Pairs of each depth, and the depths have nothing to do with each other."""
    B = 6000
    logits, t = torch.tensor([[0.0, 1.0, 2.0], [1.5, 0.0, NAN]]), 2.0
    entries = {
        "ids": torch.tensor([[0, 1, 2], [0, 1, 2]]).repeat(B, 1),
        "logits": logits.repeat(B, 1),
        "lse": torch.zeros(2 * B),
    }
    tree = build_tree(
        **entries, root_tokens=torch.zeros(B).long(), root_positions=torch.arange(B) * 3,
        num_nodes=4, vocab_size=V, shape=topology([(0,), (1,), (0, 0)]),
        noise_keys=torch.full((B,), 12345), temperature=torch.full((B,), t),
    )  # fmt: skip
    first, second, deeper = tree.candidates[:, 1:].unbind(1)
    p = (logits[0].double() / t).softmax(0)
    q = (logits[1, :2].double() / t).softmax(0)
    exact = torch.zeros(3, 3, 2, dtype=torch.float64)
    for (a, b), probability in without_replacement(p, 2):
        exact[a, b] = probability * q
    counts = torch.bincount(first * 6 + second * 2 + deeper, minlength=18).view(3, 3, 2)
    assert (counts[exact == 0] == 0).all()
    assert chi_square(counts[exact > 0], exact[exact > 0]) < 31.3  # 11 degrees of freedom


def test_draws_depend_on_the_key_and_the_root_alone() -> None:
    entries = marginals(4, 3, 5)
    options = {"shape": topology([(i,) for i in range(5)] + [(0, i) for i in range(5)])}
    keys, t = torch.tensor([5, -6, 2**40, 5]), torch.tensor([1.0, 0.5, 1e-30, 0.0])
    batch = tree_of(entries, 4, 16, noise_keys=keys, temperature=t, **options)
    for b in range(4):
        own = {name: x[b * 3 : b * 3 + 3] for name, x in entries.items()}
        alone = build_tree(
            **own, root_tokens=torch.tensor([500 + b]), root_positions=torch.tensor([b * 1000 + 7]),
            num_nodes=16, vocab_size=V, noise_keys=keys[b : b + 1], temperature=t[b : b + 1],
            **options,
        )  # fmt: skip
        assert torch.equal(alone.candidates[0], batch.candidates[b])
    for b in (2, 3):  # next to no noise, and none
        assert torch.equal(batch.candidates[b, 1:6], entries["ids"][b * 3])
    assert not torch.equal(batch.candidates[0, 1:6], entries["ids"][0])


# ---- Caches --------------------------------------------------------------------------------------


def test_accepted_nodes_move_to_a_chains_slots() -> None:
    """Of two requests; a slot that is a source and a target holds what it should after both."""
    cache = torch.arange(6 * 2 * 4 * 3.0).view(6, 2, 4, 3)
    before = cache.transpose(1, 2).reshape(24, 2, 3).clone()
    slots = torch.tensor([9, 10, 11, 4, 5, 20, 21, 22])
    path = torch.tensor([[0, 2, 3, -1, -1], [5, 6, 7, -1, -1]], dtype=torch.int32)
    compact_cache(path, torch.tensor([0, 5, 8], dtype=torch.int32), slots, [cache])
    expected = before.clone()
    expected[10], expected[11] = before[11], before[4]
    assert torch.equal(cache.transpose(1, 2).reshape(24, 2, 3), expected)


def test_paths_that_are_none_and_slots_that_are_nowhere() -> None:
    rows = torch.tensor([0, 4], dtype=torch.int32)
    for path, slots in (
        ([-1, 2], [0, 1, 2, 3]), ([1, 2], [0, 1, 2, 3]), ([0, 0], [0, 1, 2, 3]),
        ([0, 4], [0, 1, 2, 3]), ([0, 2], [0, -1, 2, 3]), ([0, 2], [0, 1, -5, 3]),
        ([0, 2], [0, 1, 8, 3]), ([0, 2], [0, 2**40, 2, 3]),
    ):  # fmt: skip
        cache = torch.arange(8.0).view(2, 1, 4, 1)
        compact_cache(torch.tensor([path]).int(), rows, torch.tensor(slots), [cache])
        assert torch.equal(cache.flatten(), torch.arange(8.0)), (path, slots)
