"""The exact law of what verification emits: every draft and every decision that can be, enumerated.

Nothing is sampled. A decision has as many outcomes as have a probability above zero; a run is
repeated until all sequences of them have been taken. What a step emits is continued by the target
itself up to a fixed length, and the law of that must be the target's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from p_eagle_cuda.tree import Topology
from p_eagle_cuda.verification import Entries, Request, Rule, walk


@dataclass
class Branches:
    """Decisions that follow a script, and take the first outcome where it ends."""

    script: list[int] = field(default_factory=list)
    taken: list[tuple[int, list[float]]] = field(default_factory=list)  # outcome, probabilities

    def _decide(self, probabilities: list[float]) -> int:
        n = len(self.taken)
        possible = [i for i, p in enumerate(probabilities) if p > 0]
        outcome = self.script[n] if n < len(self.script) else possible[0]
        self.taken.append((outcome, probabilities))
        return outcome

    def accepts(self, probability: float, node: int) -> bool:
        assert 0 <= probability <= 1
        return self._decide([probability, 1 - probability]) == 0

    def chooses(self, weights: Tensor, depth: int) -> int:
        return self._decide((weights / weights.sum()).tolist())


def outcomes(run: Callable[[Branches], tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], float]]:
    """What `run` returns for each sequence of decisions, with its probability."""
    script: list[int] | None = []
    while script is not None:
        decisions = Branches(script)
        result = run(decisions)
        probability = 1.0
        for outcome, probabilities in decisions.taken:
            probability *= probabilities[outcome]
        yield result, probability
        script = _next_script(decisions.taken)


def _next_script(taken: list[tuple[int, list[float]]]) -> list[int] | None:
    for n in range(len(taken) - 1, -1, -1):
        outcome, probabilities = taken[n]
        rest = [i for i, p in enumerate(probabilities) if p > 0 and i > outcome]
        if rest:
            return [*(x for x, _ in taken[:n]), rest[0]]
    return None


# ---- Models --------------------------------------------------------------------------------------


@dataclass
class Models:
    """A target, and the law of drafts, over a small vocabulary: a law for each context."""

    target: dict[tuple[int, ...], Tensor]  # [V], of contexts up to the depth of the tree
    draft: dict[tuple[int, ...], Tensor]  # [V]; of a tree the same for all contexts of a length

    @property
    def vocab_size(self) -> int:
        return len(self.target[()])


def random_models(kind: str, seed: int, V: int, depth: int, is_parallel: bool) -> Models:
    """Laws of some kind; those of a parallel drafter depend on nothing but the position."""
    g = torch.Generator().manual_seed(seed)

    def law(spread: float) -> Tensor:
        weights = torch.rand(V, generator=g, dtype=torch.float64).log().mul(-spread).exp()
        return weights / weights.sum()

    def with_zeros() -> Tensor:
        zeroed = law(1.0).index_fill(0, torch.randperm(V, generator=g)[: V // 2], 0)
        return zeroed / zeroed.sum()

    def one_hot() -> Tensor:
        return torch.eye(V, dtype=torch.float64)[int(torch.randint(V, (), generator=g))]

    makers = {
        "any": (lambda: law(1.0), lambda: law(1.0)),
        "sharp": (lambda: law(6.0), lambda: law(6.0)),
        "zeros": (with_zeros, with_zeros),
        "sure target": (one_hot, lambda: law(1.0)),
        "sure draft": (lambda: law(1.0), one_hot),
        "uniform": (lambda: torch.full((V,), 1 / V, dtype=torch.float64),) * 2,
        "equal": (lambda: law(1.0), lambda: law(1.0)),
    }
    of_target, of_draft = makers[kind]
    contexts = [c for n in range(depth + 1) for c in itertools.product(range(V), repeat=n)]
    target = {c: of_target() for c in contexts}
    if is_parallel:
        marginals = [of_draft() for _ in range(depth + 1)]
        draft = {c: marginals[len(c)] for c in contexts}
    else:
        draft = {c: target[c] if kind == "equal" else of_draft() for c in contexts}
    return Models(target, draft)


KINDS = ["any", "sharp", "zeros", "sure target", "sure draft", "uniform", "equal"]

# ---- Laws ----------------------------------------------------------------------------------------


def exact_law(models: Models, length: int) -> Tensor:
    """Of the target's next tokens, [V] * length."""
    law = torch.zeros([models.vocab_size] * length, dtype=torch.float64)
    for tokens in itertools.product(range(models.vocab_size), repeat=length):
        law[tokens] = _continued(models, (), tokens)
    return law


def _continued(models: Models, prefix: tuple[int, ...], tokens: tuple[int, ...]) -> float:
    probability = 1.0
    for n in range(len(prefix), len(tokens)):
        probability *= float(models.target[tokens[:n]][tokens[n]])
    return probability


def distance(law: Tensor, exact: Tensor) -> float:
    """Total variation."""
    return 0.5 * float((law - exact).abs().sum())


@dataclass(frozen=True)
class Shape:
    """The nodes of a tree: parents and ranks, node 0 the root."""

    parents: Sequence[int]
    ranks: Sequence[int]

    @classmethod
    def of(cls, topology: Topology) -> Shape:
        return cls(topology.parents.tolist(), topology.ranks.tolist())

    def depth(self, node: int) -> int:
        return 0 if node == 0 else 1 + self.depth(self.parents[node])

    def links(self, nodes: Sequence[int]) -> tuple[list[int], list[int]]:
        """First child and next sibling, where only some of the nodes exist."""
        n = len(self.parents)
        first, following = [-1] * n, [-1] * n
        for parent in range(n):
            children = [i for i in nodes if i > 0 and self.parents[i] == parent]
            for child, after in itertools.pairwise(children):
                following[child] = after
            if children:
                first[parent] = children[0]
        return first, following


# The children of a depth, in the order of their draws, with the probability of that.
Draws = Iterator[tuple[tuple[int, ...], float]]


def without_replacement(law: Tensor, count: int) -> Draws:
    """Fewer than `count` where no more have a probability."""
    possible = law.nonzero().flatten().tolist()
    for tokens in itertools.permutations(possible, min(count, len(possible))):
        probability, left = 1.0, law.clone()
        for token in tokens:
            probability *= float(left[token] / left.sum())
            left[token] = 0
        yield tokens, probability


def likeliest(law: Tensor, count: int) -> Draws:
    """The best of the law, which is no draw at all."""
    order = law.sort(descending=True, stable=True).indices.tolist()
    yield tuple(token for token in order[:count] if law[token] > 0), 1.0


def emitted_law(
    models: Models,
    shape: Shape,
    rule: Rule,
    length: int,
    draws: Callable[[Tensor, int], Draws],
    judged: Callable[[Tensor], Tensor] = lambda law: law,
    exists: Callable[[Tensor, tuple[int, ...], int], bool] = lambda law, tokens, rank: True,
) -> Tensor:
    """The law of the first `length` tokens: those of a step, then the target's own.

    Args:
        models: Laws of target and drafts; those of a tree with siblings must be parallel.
        shape: Of the tree.
        rule: Of verification.
        length: Above the depth of the shape.
        draws: How the children of a depth come about.
        judged: The law that verification takes drafts to have been drawn from.
        exists: Whether the drawn child of this rank is in the tree; law and all draws are given.
    """
    law = torch.zeros([models.vocab_size] * length, dtype=torch.float64)
    for drawn, drawn_probability in _all_draws(models, shape, draws):
        tokens = [0] * len(shape.parents)
        contexts: dict[int, tuple[int, ...]] = {0: ()}
        for node in range(1, len(tokens)):
            parent = shape.parents[node]
            if parent not in contexts:
                continue
            context = contexts[parent]
            children, rank = drawn[len(context)], shape.ranks[node]
            if rank < len(children) and exists(models.draft[context], children, rank):
                tokens[node] = children[rank]
                contexts[node] = (*context, children[rank])
        run = _step(models, shape, rule, judged, tokens, contexts)
        for emitted, probability in outcomes(run):
            weight = drawn_probability * probability
            rest = length - len(emitted)
            for end in itertools.product(range(models.vocab_size), repeat=rest):
                law[(*emitted, *end)] += weight * _continued(models, emitted, (*emitted, *end))
    return law


def _step(
    models: Models,
    shape: Shape,
    rule: Rule,
    judged: Callable[[Tensor], Tensor],
    tokens: Sequence[int],
    contexts: dict[int, tuple[int, ...]],
) -> Callable[[Branches], tuple[int, ...]]:
    """A step of verification with these drafts, whose nodes come after these contexts."""
    links = shape.links(list(contexts))
    spine = {len(context): context for context in reversed(contexts.values())}

    def entries(depth: int) -> Entries:
        q = judged(models.draft[spine[depth][:-1]])
        return Entries(torch.arange(len(q)), q)

    def run(decisions: Branches) -> tuple[int, ...]:
        request = Request(
            lambda node: models.target[contexts[node]], entries, tokens, *links, decisions
        )
        path, token = walk(request, rule)
        return (*(tokens[node] for node in path[1:]), token)

    return run


def _all_draws(
    models: Models, shape: Shape, draws: Callable[[Tensor, int], Draws]
) -> Iterator[tuple[list[tuple[int, ...]], float]]:
    """The children of each depth; the law of a chain's depth may depend on those before."""
    depths = max(shape.depth(node) for node in range(len(shape.parents)))
    counts = [
        1 + max(r for i, r in enumerate(shape.ranks) if shape.depth(i) == d + 1)
        for d in range(depths)
    ]

    def extend(
        before: list[tuple[int, ...]], probability: float
    ) -> Iterator[tuple[list[tuple[int, ...]], float]]:
        if len(before) == depths:
            yield before, probability
            return
        context = tuple(tokens[0] for tokens in before)
        for tokens, p in draws(models.draft[context], counts[len(before)]):
            yield from extend([*before, tokens], probability * p)

    return extend([], 1.0)


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Of counts in classes that have these probabilities, all above zero."""
    expected = counts.sum() * probabilities.double()
    return float(((counts - expected).square() / expected).sum())
