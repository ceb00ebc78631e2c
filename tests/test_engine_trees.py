"""Draft trees in the engine: the output is the target's own, whichever nodes are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoints import write_target
from p_eagle_cuda.draft_length import DraftLengthPolicy
from p_eagle_cuda.draft_tree import DraftTree
from p_eagle_cuda.drafter import Drafter, Drafts
from p_eagle_cuda.engine import SpeculativeEngine
from p_eagle_cuda.errors import ConfigError
from p_eagle_cuda.generation import check_tree
from p_eagle_cuda.statistics import Step
from p_eagle_cuda.target import Target, TargetRows
from p_eagle_cuda.tree import topology
from toy_engine import LENGTH, PROMPTS, TAPS, K, make_drafter, plain

pytest_plugins = ["toy_engine_fixtures"]

TOP_K = 4
# Siblings and their children, in an order in which no path is a run of nodes.
PATHS = [(2,), (0,), (1,), (1, 0), (0, 1), (0, 0), (2, 3), (1, 0, 1), (0, 0, 0), (1, 0, 0)]
SHAPE = DraftTree(len(PATHS) + 1, topology(PATHS))
# Of a drafter whose best entry is right less often than chance would have it: bushy.
BUSHY = DraftTree.static([[0.3, 0.25, 0.2, 0.2]] * K, 40)


class Ranked(Drafter):
    """Has the token that the target will say at the rank that it is told, or not at all."""

    texts: dict[int, list[int]]  # by their first token
    taps: dict[int, Tensor]
    ranks: list[int]  # of the token at each position; -1: not among the entries

    def propose(
        self,
        target_tokens: Tensor,
        target_positions: Tensor,
        taps: Sequence[Tensor],
        query_start: Tensor,
        num_rejected: Tensor,
        next_tokens: Tensor,
        block_table: Tensor,
        *,
        k: int | None = None,
    ) -> Drafts:
        drafts = super().propose(
            target_tokens, target_positions, taps, query_start, num_rejected, next_tokens,
            block_table, k=k,
        )  # fmt: skip
        assert not num_rejected.any()
        starts = query_start.tolist()
        ids = torch.full_like(drafts.top_ids, -1)
        for b, token in enumerate(next_tokens.tolist()):
            own = slice(starts[b], starts[b + 1])
            first, end = int(target_positions[own][0]), int(target_positions[own][-1]) + 1
            text = next(
                t for t in self.texts.values()
                if t[first : end + 1] == [*target_tokens[own].tolist(), token]
            )  # fmt: skip
            assert target_positions[own].tolist() == list(range(first, end))
            seen = torch.stack([tap[own] for tap in taps])
            torch.testing.assert_close(seen, self.taps[text[0]][:, first:end], rtol=1e-4, atol=1e-4)
            for depth in range(K):
                p = end + 1 + depth
                right = text[p] if p < len(text) else 0
                wrong = [i for i in range(TOP_K + 1) if i != right][:TOP_K]
                if self.ranks[p] >= 0:
                    wrong[self.ranks[p]] = right
                ids[b, depth] = torch.tensor(wrong)
        logits = -torch.arange(1.0, TOP_K + 1).expand(ids.shape).contiguous()
        return Drafts(ids[..., 0], ids, logits, torch.zeros(ids.shape[:2]))


def accepted(shape: set[tuple[int, ...]], ranks: list[int]) -> int:
    """How far the path of these ranks stays in the shape."""
    return next((d for d in range(K) if tuple(ranks[: d + 1]) not in shape), K)


def test_the_accepted_path_is_kept_and_nothing_else(
    target: Target, folders: tuple[Path, Path]
) -> None:
    """Siblings of all ranks are accepted, or none; the drafter reads the path's rows and taps."""
    prompts = PROMPTS[:3]
    texts = [p + new for p, new in zip(prompts, plain(target, prompts, 40), strict=True)]
    drafter = make_drafter(folders[1], 2, num_drafts=len(PATHS), top_k=TOP_K)
    drafter.__class__ = Ranked
    assert isinstance(drafter, Ranked)
    drafter.texts = {t[0]: t for t in texts}
    drafter.taps = {t[0]: causal_pass(target, t) for t in texts}
    drafter.ranks = torch.randint(-1, 3, (LENGTH,)).tolist()
    engine = SpeculativeEngine(target, drafter, max_requests=2, max_length=LENGTH, tree=SHAPE)
    completions = engine.generate(prompts, 30)
    depths = set()
    for prompt, text, completion in zip(prompts, texts, completions, strict=True):
        assert completion.token_ids == text[len(prompt) : len(prompt) + 30]
        done = 1
        assert completion.steps[0] == Step(0, 0, 0)
        for step in completion.steps[1:]:
            ranks = drafter.ranks[len(prompt) + done :][:K]
            n = accepted(set(PATHS), ranks)
            assert step == Step(done, len(PATHS), n, tuple(ranks[: n + 1]))
            depths.add(n)
            done += n + 1
    assert depths == set(range(K + 1))


def causal_pass(target: Target, tokens: list[int]) -> Tensor:
    """Taps of a text that is read in one piece, [3, T, H]."""
    n, size = len(tokens), 16
    caches = target.allocate_cache(-(-n // size), size)
    rows = TargetRows(
        token_ids=torch.tensor(tokens), positions=torch.arange(n), slots=torch.arange(n),
        row_start=torch.tensor([0, n], dtype=torch.int32),
        seq_lens=torch.tensor([n], dtype=torch.int32),
        block_table=torch.arange(-(-n // size), dtype=torch.int32)[None],
    )  # fmt: skip
    return torch.stack(target.forward(rows, caches, torch.tensor([n - 1])).taps)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("tree", [BUSHY, DraftTree.dynamic(64)], ids=["static", "dynamic"])
def test_output_is_the_targets_own(
    target: Target, folders: tuple[Path, Path], temperature: float, tree: DraftTree
) -> None:
    """Token for token at a temperature too; prompts of all lengths mix with verification."""
    drafter = make_drafter(folders[1], 3, num_drafts=63, top_k=TOP_K)
    engine = SpeculativeEngine(target, drafter, max_requests=3, max_length=LENGTH, tree=tree)
    drafted = engine.generate(PROMPTS, 12, temperature=temperature, seed=4)
    assert [c.token_ids for c in drafted] == plain(target, PROMPTS, 12, temperature, 4)
    steps = [s for c in drafted for s in c.steps[1:]]
    assert {s.num_drafts for s in steps} == {tree.num_nodes - 1}
    assert len({s.num_accepted for s in steps}) > 1, "no draft was ever right, or all were"


def test_no_node_is_past_the_last_position(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A tree loses its lower depths near the end of the context, not its siblings.

    Its nodes have their places in the cache past that end, in blocks of their own.
    """
    write_target(tmp_path, max_position_embeddings=64)
    target = Target.from_pretrained(tmp_path, tap_layer_ids=TAPS)
    prompt = list(range(48))
    expected = plain(target, [prompt], 16)[0]
    in_all = [TOP_K**depth for depth in range(1, K + 1)]
    in_shape = [sum(len(path) == depth for path in PATHS) for depth in range(1, K + 1)]
    for tree, nodes in ((SHAPE, in_shape), (DraftTree.dynamic(64), in_all)):
        drafter = make_drafter(folders[1], 1, length=64, num_drafts=tree.num_nodes - 1, top_k=TOP_K)
        engine = SpeculativeEngine(target, drafter, max_requests=1, max_length=64, tree=tree)
        (completion,) = engine.generate([prompt], 16)
        assert completion.token_ids == expected
        for step in completion.steps[1:]:
            room = 64 - len(prompt) - step.offset
            assert step.num_drafts == min(sum(nodes[:room]), tree.num_nodes - 1)
        assert completion.steps[-1].num_drafts < tree.num_nodes - 1


def test_what_does_not_fit_is_refused(target: Target, folders: tuple[Path, Path]) -> None:
    drafter = make_drafter(folders[1], 1, top_k=2)
    options = {"max_requests": 1, "max_length": LENGTH}
    deep = DraftTree.chain(K + 1)
    for tree, message in (
        (deep, f"needs a drafter with num_speculative_tokens {K + 1} or more, got {K}"),
        (SHAPE, "needs a drafter with top_k 4 or more, got 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            SpeculativeEngine(target, drafter, tree=tree, **options)
    chain = DraftTree.chain(K)
    with pytest.raises(ConfigError, match="needs no policy of draft lengths"):
        SpeculativeEngine(target, drafter, tree=chain, draft_length=DraftLengthPolicy(K), **options)
    with pytest.raises(ConfigError, match="needs a drafter"):
        SpeculativeEngine(target, None, tree=chain, **options)
    for nodes in (1, 65):
        for make in (DraftTree.dynamic, lambda n: DraftTree.static([[0.5, 0.5]] * 9, n)):
            with pytest.raises(ConfigError, match=f"must have 2 to 64 nodes.* got {nodes}"):
                make(nodes)
    for tree, nodes, dynamic_k, message in (
        ("bush", None, False, "a tree must be one of chain, static, dynamic, got 'bush'"),
        ("chain", K + 2, False, f"must be 2 to {K + 1}, got {K + 2}"),
        ("static", None, True, "goes with no other tree"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_tree(tree, nodes, K, dynamic_k)
    for discount in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="off_spine_discount must be above 0"):
            DraftTree.dynamic(8, discount)
