"""Verification: its exact law by enumeration, biased rules that this finds, and its contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from exact_laws import (
    KINDS,
    Shape,
    chi_square,
    distance,
    emitted_law,
    exact_law,
    likeliest,
    random_models,
    without_replacement,
)  # fmt: skip
from p_eagle_cuda import verification
from p_eagle_cuda.noise import Stream, fine_uniform, gumbel
from p_eagle_cuda.tree import build_tree, chain, topology
from p_eagle_cuda.verification import (
    Drafts,
    KeyedDecisions,
    Residual,
    Rule,
    keyed_decisions,
    logit_floors,
    verify,
)

EXACT = 1e-12  # total variation of laws that are added up in float64
SEEDS = range(4)

CHAIN = Shape.of(chain(2))
TREE = Shape.of(topology([(0,), (1,), (0, 0), (1, 0), (0, 1)]))
ONE_NODE = Shape.of(topology([(0,), (1,)]))


def worst_distance(
    shape: Shape, rule: Rule, draws: Callable[..., Any], kinds: list[str] = KINDS, **changes: Any
) -> float:
    V, depth = 3 if shape is TREE else 4, max(shape.depth(i) for i in range(len(shape.parents)))
    worst = 0.0
    for kind in kinds:
        for seed in SEEDS:
            is_parallel = max(shape.ranks) > 0
            models = random_models(kind, seed, V, depth, is_parallel)
            law = emitted_law(models, shape, rule, depth + 1, draws, **changes)
            worst = max(worst, distance(law, exact_law(models, depth + 1)))
    return worst


LOSSLESS: list[tuple[str, Shape, Rule, Callable[..., Any]]] = [
    ("target choice, drawn chain", CHAIN, "target", without_replacement),
    ("target choice, greedy chain", CHAIN, "target", likeliest),
    ("target choice, drawn tree", TREE, "target", without_replacement),
    ("target choice, best tree", TREE, "target", likeliest),
    ("standard rejection, drawn chain", CHAIN, "rejection", without_replacement),
    ("block verification, drawn chain", CHAIN, "block", without_replacement),
    ("rejection without replacement, tree", TREE, "rejection", without_replacement),
]


@pytest.mark.parametrize(
    ("name", "shape", "rule", "draws"), LOSSLESS, ids=[x[0].replace(" ", "-") for x in LOSSLESS]
)
def test_lossless(
    name: str, shape: Shape, rule: Rule, draws: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    worst = worst_distance(shape, rule, draws)
    with capsys.disabled():
        print(f"\n    {name}: worst total variation {worst:.1e}", end="")
    assert worst < EXACT


def test_target_choice_is_lossless_however_a_tree_is_pruned() -> None:
    assert worst_distance(
        TREE, "target", without_replacement,
        exists=lambda law, tokens, rank: float(law[tokens[rank]]) >= 0.3,
    ) < EXACT  # fmt: skip


def test_a_sibling_may_depend_on_the_draws_before_it() -> None:
    assert worst_distance(
        ONE_NODE, "rejection", without_replacement,
        exists=lambda law, tokens, rank: rank == 0 or float(law[tokens[0]]) < 0.5,
    ) < EXACT  # fmt: skip


# ---- Rules that are biased: the test of the test -------------------------------------------------


def sorted_draws(law: Tensor, count: int) -> Any:
    for tokens, probability in without_replacement(law, count):
        yield tuple(sorted(tokens, key=lambda token: -float(law[token]))), probability


def truncated_draws(law: Tensor, count: int) -> Any:
    """From the better half of the law, renormalised."""
    yield from without_replacement(truncated(law), count)


def truncated(law: Tensor) -> Tensor:
    kept = law.masked_fill(law < law.sort(descending=True).values[len(law) // 2 - 1], 0)
    return kept / kept.sum()


BIASED: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    ("rejection of siblings that were not drawn", likeliest, {}),
    ("siblings sorted by their law", sorted_draws, {}),
    (
        "a sibling pruned by its own law",
        without_replacement,
        {"exists": lambda law, tokens, rank: rank == 0 or float(law[tokens[rank]]) >= 0.2},
    ),
    ("drawn from a truncated law, judged by the whole", truncated_draws, {}),
]


@pytest.mark.parametrize(
    ("name", "draws", "changes"), BIASED, ids=[x[0].replace(" ", "-") for x in BIASED]
)
def test_bias_is_found(
    name: str, draws: Callable[..., Any], changes: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    worst = worst_distance(ONE_NODE, "rejection", draws, ["any"], **changes)
    with capsys.disabled():
        print(f"\n    {name}: total variation {worst:.2f}", end="")
    assert worst > 0.01


def test_a_truncated_law_judged_by_itself_is_lossless() -> None:
    """The draft law of this project: the softmax over the entries that were there to be drawn."""
    assert worst_distance(
        CHAIN, "rejection", truncated_draws, ["any", "sharp"], judged=truncated
    ) < EXACT  # fmt: skip


def test_siblings_that_are_judged_independently_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each accepted with min(1, p / q) of the node, as one published kernel does."""
    choose = Residual.choose

    def choose_after_all(self: Residual, *arguments: Any) -> int:
        self.subtract()
        return choose(self, *arguments)

    monkeypatch.setattr(Residual, "reject", lambda self, entry: None)
    monkeypatch.setattr(Residual, "choose", choose_after_all)
    for draws in (likeliest, without_replacement):
        assert worst_distance(ONE_NODE, "rejection", draws, ["any"]) > 0.01
    assert worst_distance(CHAIN, "rejection", without_replacement, ["any"]) < EXACT


def test_block_verification_accepts_more() -> None:
    """The mean number of accepted drafts, by enumeration, over random laws."""
    gains = []
    for seed in SEEDS:
        models = random_models("any", seed, 4, 2, False)
        means = [mean_accepted(models, rule) for rule in ("rejection", "block")]
        gains.append(means[1] - means[0])
    assert min(gains) >= -EXACT
    assert max(gains) > 0.01


def mean_accepted(models: Any, rule: Rule) -> float:
    mean = 0.0
    original = verification.walk

    def walk_and_count(request: Any, rule: Rule) -> tuple[list[int], int]:
        path, _ = original(request, rule)
        return [0], len(path) - 1  # emits how many were accepted, as a token

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exact_laws.walk", walk_and_count)
        patch.setattr("exact_laws._continued", lambda *_: 1 / 16)  # of two more tokens
        law = emitted_law(models, CHAIN, rule, 3, without_replacement)
    for count in range(3):
        mean += count * float(law[count].sum())
    return mean


# ---- Keyed decisions -----------------------------------------------------------------------------


def random_step(B: int, N: int, V: int, seed: int = 0, k: int = 3) -> dict[str, Any]:
    """A batch of chains, in `verify`'s arguments, whose drafts are likely to be accepted."""
    g = torch.Generator().manual_seed(seed)
    draft_logits = torch.randn(B * (N - 1), k, generator=g)
    draft_ids = torch.stack([torch.randperm(V, generator=g)[:k] for _ in range(B * (N - 1))])
    logits = torch.randn(B, N, V, generator=g)
    logits[:, :-1].scatter_(2, draft_ids.view(B, N - 1, k), 2 + draft_logits.view(B, N - 1, k))
    drafts = draft_ids[:, 0].view(B, N - 1)
    return {
        "logits": logits.view(B * N, V),
        "row_start": torch.arange(B + 1, dtype=torch.int32) * N,
        "candidates": torch.cat([torch.full((B, 1), 77), drafts], dim=1),
        "next_tokens": torch.full((B,), -7),
        "temperature": torch.full((B,), 0.8),
        "keys": torch.randint(2**62, (B,), generator=g),
        "root_positions": torch.randint(2**34, (B,), generator=g),
        "drafts": Drafts(draft_ids, draft_logits, torch.ones(B)),
    }


def request_of(step: dict[str, Any], b: int, N: int, k: int = 3) -> dict[str, Any]:
    """The same for one of its requests."""
    own = {name: x[b : b + 1] for name, x in step.items() if isinstance(x, Tensor)}
    K = N - 1
    ids, logits, t = step["drafts"]
    return own | {
        "logits": step["logits"][b * N : b * N + N],
        "row_start": torch.tensor([0, N], dtype=torch.int32),
        "drafts": Drafts(ids[b * K : b * K + K], logits[b * K : b * K + K], t[b : b + 1]),
    }


@pytest.mark.parametrize("rule", ["target", "rejection", "block"])
def test_a_request_is_the_same_alone_and_in_a_batch(rule: Rule) -> None:
    step = random_step(12, 4, 9)
    batch = verify(**step, rule=rule)
    assert 0 < int(batch.num_accepted.sum()) < 36
    for b in range(12):
        alone = verify(**request_of(step, b, 4), rule=rule)
        for name in ("tokens", "num_accepted", "num_rejected", "next_tokens"):
            assert torch.equal(getattr(alone, name)[0], getattr(batch, name)[b]), name


def test_outputs_agree_with_each_other() -> None:
    N = 5
    step = random_step(60, N, 7)
    out = verify(**step, rule="rejection")
    for b, accepted in enumerate(out.num_accepted.tolist()):
        drafts, padding = (
            step["candidates"][b, 1 : accepted + 1].tolist(),
            [-1] * (N - accepted - 1),
        )
        assert out.tokens[b].tolist() == [*drafts, int(out.next_tokens[b]), *padding]
        assert out.path[b].tolist() == [*range(b * N, b * N + accepted + 1), *padding]
        assert int(out.last_row[b]) == b * N + accepted
        assert int(out.num_rejected[b]) == N - 1 - accepted
    assert set(out.num_accepted.tolist()) == {0, 1, 2, 3, 4}


def test_what_the_target_chooses_does_not_depend_on_the_drafts() -> None:
    """Step by step with drafts of any quality, the tokens of plain sampling with the same key."""
    V, length = 5, 12
    g = torch.Generator().manual_seed(0)
    table = torch.randn(V, V, generator=g)
    key, t = torch.tensor([99]), torch.tensor([0.9])

    def generate(num_drafts: int) -> list[int]:
        tokens = [0]
        while len(tokens) < length:
            drafts = torch.randint(V, (num_drafts,), generator=g).tolist()
            nodes = [tokens[-1], *drafts]
            out = verify(
                table[nodes], torch.tensor([0, len(nodes)], dtype=torch.int32),
                torch.tensor([nodes]), torch.tensor([0]), t, key, torch.tensor([len(tokens) - 1]),
            )  # fmt: skip
            tokens += [x for x in out.tokens[0].tolist() if x >= 0]
        return tokens[:length]

    plain = generate(0)
    assert len(set(plain)) > 2
    for num_drafts in (1, 3, 6):
        assert generate(num_drafts) == plain


def simulate(rule: Rule, num_requests: int, temperature: float = 1.0) -> Tensor:
    """Counts [V, V, V] of the first three tokens after the root 0, drawn drafts and keyed noise.

    The target's law depends on the token before, the drafts' on the root alone.
    """
    table, marginal = markov_models()
    V = len(table)
    shape = chain(2) if rule != "rejection" else topology([(0,), (1,), (0, 0), (1, 0)])
    roots, positions = torch.zeros(num_requests).long(), torch.zeros(num_requests).long()
    keys = torch.arange(num_requests) * 977 + 5
    texts: list[list[int]] = [[] for _ in range(num_requests)]
    active = torch.arange(num_requests)
    while len(active):
        B = len(active)
        ids = torch.arange(V).repeat(2 * B, 1)
        logits = marginal[roots[active]].view(2 * B, V)
        ones = torch.ones(B)
        tree = build_tree(
            ids, logits, logits.logsumexp(1), roots[active], positions[active],
            len(shape.parents), V, shape, noise_keys=keys[active], temperature=ones,
        )  # fmt: skip
        N = tree.candidates.shape[1]
        out = verify(
            table[tree.candidates.clamp(min=0)].view(B * N, V),
            torch.arange(B + 1, dtype=torch.int32) * N, tree.candidates, roots[active],
            ones * temperature, keys[active], positions[active],
            None if rule == "block" else (tree.next_token, tree.next_sibling), None,
            Drafts(ids, logits, ones), rule,
        )  # fmt: skip
        for i, b in enumerate(active.tolist()):
            texts[b] += [x for x in out.tokens[i].tolist() if x >= 0]
            roots[b], positions[b] = texts[b][-1], len(texts[b])
        active = torch.tensor([b for b in active.tolist() if len(texts[b]) < 3], dtype=torch.int64)
    counts = torch.zeros(V, V, V)
    for text in texts:
        counts[tuple(text[:3])] += 1
    return counts


def markov_models() -> tuple[Tensor, Tensor]:
    """Logits of the target [V, V], and of the drafter's two depths [V, 2, V]."""
    target = torch.tensor([[0.5, 0.5], [0.4, 0.6]]).log()
    draft = torch.tensor([[[0.9, 0.1], [0.9, 0.1]], [[0.8, 0.2], [0.9, 0.1]]]).log()
    return target, draft


def markov_law() -> Tensor:
    p = markov_models()[0].exp()
    return p[0][:, None, None] * p[:, :, None] * p[None]


ONE_IN_A_THOUSAND = 24.3  # of chi-square with 7 degrees of freedom


@pytest.mark.parametrize("rule", ["target", "rejection", "block"])
def test_steps_one_after_another_with_keyed_noise(rule: Rule) -> None:
    counts = simulate(rule, 1000)
    assert chi_square(counts.flatten(), markov_law().flatten()) < ONE_IN_A_THOUSAND


def test_block_verification_would_be_biased_by_noise_of_absolute_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why what decides is keyed by the root: a rejected position would meet its noise again."""

    def decisions(keys: Tensor, root_positions: Tensor, num_nodes: int) -> list[KeyedDecisions]:
        own = keyed_decisions(keys, root_positions, num_nodes)
        positions = root_positions[:, None] + torch.arange(num_nodes)
        accept = fine_uniform(keys[:, None], positions, torch.tensor(0), Stream.ACCEPT)
        return [x._replace(accept=row) for x, row in zip(own, accept, strict=True)]

    def noise(keys: Tensor, positions: Tensor, ids: Tensor, salt: int) -> Tensor:
        return gumbel(keys, positions + salt // 4, ids, Stream.ORDER)

    monkeypatch.setattr(verification, "keyed_decisions", decisions)
    monkeypatch.setattr("p_eagle_cuda.tree.gumbel", noise)
    counts = simulate("block", 1000)
    assert chi_square(counts.flatten(), markov_law().flatten()) > ONE_IN_A_THOUSAND


def test_what_filters_take_away_is_not_emitted() -> None:
    """By no rule, also where it was drafted; and what is left keeps its proportions."""
    step = random_step(60, 3, 9)
    floors = logit_floors(
        step["logits"], step["row_start"], step["temperature"], torch.full((60,), 2).int()
    )
    for rule in ("target", "rejection", "block"):
        out = verify(**step, floors=floors, rule=rule)  # type: ignore[arg-type]
        for b, accepted in enumerate(out.num_accepted.tolist()):
            for i, token in enumerate(out.tokens[b, : accepted + 1].tolist()):
                row = step["logits"][3 * b + i]
                assert int((row > row[token]).sum()) < 2


# ---- Odd requests --------------------------------------------------------------------------------


def test_requests_of_any_length() -> None:
    """Without rows nothing is emitted and the next token is kept; a root alone emits one."""
    logits = torch.eye(5)[[1, 2, 3, 4, 4]]
    out = verify(
        logits, torch.tensor([0, 0, 1, 4, 4, 5], dtype=torch.int32),
        torch.tensor([[9, 9, 9], [0, 9, 9], [0, 2, 3], [9, 9, 9], [0, 4, 4]]),
        torch.tensor([40, 41, 42, 43, 44]),
    )  # fmt: skip
    assert out.next_tokens.tolist() == [40, 1, 4, 43, 4]
    assert out.num_accepted.tolist() == [0, 0, 2, 0, 0]
    assert out.num_rejected.tolist() == [0] * 5
    assert out.last_row.tolist() == [-1, 0, 3, -1, 4]
    assert out.tokens.tolist() == [[-1] * 3, [1, -1, -1], [2, 3, 4], [-1] * 3, [4, -1, -1]]


def test_rows_past_the_nodes_are_rejected() -> None:
    logits = torch.eye(4)[[1, 2, 3, 0]]
    out = verify(
        logits, torch.tensor([0, 4], dtype=torch.int32), torch.tensor([[0, 1]]), torch.tensor([9])
    )
    assert out.tokens.tolist() == [[1, 2]]
    assert out.num_rejected.tolist() == [2]


def test_greedy_takes_the_lowest_of_equals_and_no_nan() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [
        [1.0, 2.0, 2.0], [nan, 0.0, nan], [nan] * 3, [-inf] * 3, [0.0, inf, inf], [-inf, -inf, 0.0],
    ]  # fmt: skip
    expected = [1, 1, 0, 0, 1, 2]
    row_start = torch.arange(7, dtype=torch.int32)
    for t in (0.0, -1.0, nan, 1e-30, 0.5):
        temperature = torch.full((6,), t)
        out = verify(
            torch.tensor(rows), row_start, torch.zeros(6, 1).long(), torch.zeros(6).long(),
            temperature, torch.arange(6), torch.arange(6),
        )  # fmt: skip
        assert out.next_tokens[1:].tolist() == expected[1:]
        # Where chance decides, equal logits have equal chances.
        assert int(out.next_tokens[0]) in ([1, 2] if t == 1e-30 else [0, 1, 2] if t == 0.5 else [1])


def test_links_that_lead_nowhere() -> None:
    """Back, to itself, out, or to a node of another request: lists end, walks end."""
    logits = torch.eye(4)[[1, 2, 3, 0]]
    for first, following in (
        ([0, -1, -1, -1], [-1] * 4), ([4, -1, -1, -1], [-1] * 4), ([-9, 0, 0, 0], [2] * 4),
        ([2, 3, 1, 1], [-1, -1, 1, 0]), ([3, 0, 0, 3], [0, 1, 2, 3]),
    ):  # fmt: skip
        out = verify(
            logits, torch.tensor([0, 4], dtype=torch.int32), torch.tensor([[0, 1, 2, 3]]),
            torch.tensor([9]), links=(torch.tensor([first]), torch.tensor([following])),
        )  # fmt: skip
        assert out.num_accepted.tolist() == [0]
        assert out.tokens[0].tolist() == [1, -1, -1, -1]


def test_candidates_and_entries_outside_the_vocabulary() -> None:
    step = random_step(40, 3, 6)
    step["candidates"][:20, 1] = torch.tensor([-1, 6, 2**40, -(2**62)]).repeat(5)
    step["drafts"].ids[::3, 0] = 2**33
    for rule in ("target", "rejection", "block"):
        out = verify(**step, rule=rule)  # type: ignore[arg-type]
        assert (out.num_accepted[:20] == 0).all()
        assert out.tokens[:, 0].min() >= 0
        assert out.tokens.max() < 6


def test_a_draft_that_nobody_can_have_drawn_is_skipped() -> None:
    step = random_step(40, 3, 6)
    ids = step["drafts"].ids.view(40, 2, 3)
    missing = [next(x for x in range(6) if x not in row) for row in ids[:, 0].tolist()]
    step["candidates"][:, 1] = torch.tensor(missing)
    for rule in ("rejection", "block"):
        out = verify(**step, rule=rule)  # type: ignore[arg-type]
        assert (out.num_accepted == 0).all()
