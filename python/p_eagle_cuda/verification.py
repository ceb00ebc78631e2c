"""Lossless verification of chains and trees, as the executable specification has it.

Whatever was drafted, the tokens that a step emits have the law of the target alone. Three rules:

``target``
    The target chooses at every node; where a child has its token, the walk goes on there. Lossless
    for any tree that was built without a look at the choice. At temperature 0 it is the argmax.
``rejection``
    Children are tried in order: x, drawn from q, is accepted with probability min(1, p(x) / q(x)),
    or else p becomes the normalised positive part of p - q, and q loses x. Lossless where the
    children of a node are a sample of q without replacement, in the order in which they were
    drawn, and their number does not depend on them. For a chain this is standard rejection.
``block``
    For chains alone: how many drafts are accepted is decided for all together (Sun et al., 2024),
    and never fewer in the mean than by rejection.

The law q of the drafts is the softmax over the k entries of a depth and nothing else, so p - q
differs from p in k tokens, and no law over the vocabulary is ever stored. Of a greedy draft q is
one at the draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from p_eagle_cuda.noise import Stream, fine_uniform
from p_eagle_cuda.tree import are_valid

Rule = Literal["target", "rejection", "block"]
RULES: tuple[Rule, ...] = ("target", "rejection", "block")


class Verified(NamedTuple):
    """What a step emits, and what the next pass of the drafter has to know. N nodes, B requests."""

    tokens: Tensor  # [B, N] int64, accepted drafts and the target's own token; -1 past them
    path: Tensor  # [B, N] int32, rows of the logits of the root and the accepted drafts; -1
    num_accepted: Tensor  # [B] int32, drafts
    num_rejected: Tensor  # [B] int32, rows of the request that are not in its path
    last_row: Tensor  # [B] int32, the last of the path; -1 for a request without rows
    next_tokens: Tensor  # [B] int64, the target's own; as it was for a request without rows


class Drafts(NamedTuple):
    """From what the drafts were drawn, which `rejection` and `block` must know."""

    ids: Tensor  # [B * K, k] int64
    logits: Tensor  # [B * K, k]
    temperature: Tensor  # [B] float32; 0: the drafts were not drawn


class Decisions(Protocol):
    """What chance decides; tests put all that can be in its place."""

    def accepts(self, probability: float, node: int) -> bool:
        """Whether the draft of a node is accepted."""

    def chooses(self, weights: Tensor, depth: int) -> int:
        """An index of weights, which need not add up to 1, for the token at this depth."""


class KeyedDecisions(NamedTuple):
    """Decisions by the noise of a request."""

    accept: Tensor  # [N] float64, in (0, 1), of each node
    choice: Tensor  # [N] float64, of the tokens at depth 1 and on

    def accepts(self, probability: float, node: int) -> bool:
        """Whether the node's uniform is below."""
        return float(self.accept[node]) < probability

    def chooses(self, weights: Tensor, depth: int) -> int:
        """The inverse of the cumulative weights at the uniform of the depth."""
        # The uniform is below 1 by more than a rounding, so the index has a weight above zero.
        cumulative = weights.cumsum(dim=0)
        goal = self.choice[depth - 1] * cumulative[-1]
        return int(torch.searchsorted(cumulative, goal, right=True))


def keyed_decisions(keys: Tensor, root_positions: Tensor, num_nodes: int) -> list[KeyedDecisions]:
    """Of each request, whose key and root position are given, ``[B]`` int64."""
    keys, positions = keys[:, None], root_positions[:, None]
    index = torch.arange(num_nodes, device=keys.device)
    accept = fine_uniform(keys, positions, index, Stream.ACCEPT.salt())
    choice = fine_uniform(keys, positions + 1 + index, index[:1], Stream.CHOICE.salt())
    return [KeyedDecisions(*rows) for rows in zip(accept, choice, strict=True)]


def logit_floors(
    logits: Tensor,  # [R, V]
    row_start: Tensor,  # [B + 1] int32
    temperature: Tensor,  # [B] float32
    top_k: Tensor | None = None,  # [B] int32
    top_p: Tensor | None = None,  # [B] float32
    min_p: Tensor | None = None,  # [B] float32
) -> Tensor:  # [R]
    """The smallest logit that top-k, top-p and min-p let through, of each row.

    See `p_eagle_cuda.ops.logit_floors`.
    """
    R, V = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    floors = torch.full((R,), float("-inf"), dtype=wide, device=logits.device)
    starts, decided = row_start.tolist(), set()
    for b, t in enumerate(temperature.double().tolist()):
        k = 0 if top_k is None else int(top_k[b])
        p = 1.0 if top_p is None else float(top_p[b])
        m = 0.0 if min_p is None else float(min_p[b])
        for row in range(max(starts[b], 0), min(starts[b + 1], R)):
            if row in decided:  # by a lower request, which is not to be
                continue
            decided.add(row)
            if t > 0:
                ordered = without_nan(logits[row]).to(wide).sort(descending=True).values
                floors[row] = _floor_of(ordered, t, k if 0 < k < V else 0, p, m)
    return floors


def _floor_of(ordered: Tensor, t: float, k: int, p: float, m: float) -> Tensor:
    """Of logits in descending order. k, p and m that ask for nothing: 0, 1, 0, and NaN."""
    nothing, largest = ordered.new_tensor(float("-inf")), ordered[0]
    if not bool(largest.isfinite()):
        return nothing
    floor = ordered[k - 1] if k > 0 else nothing
    if p < 1:
        mass = ((ordered - largest).double() / t).exp()
        mass = mass.masked_fill((ordered < floor) | ordered.isinf(), 0)
        is_before_goal = mass.cumsum(dim=0) - mass < p * mass.sum()
        floor = ordered[max(int((is_before_goal & (mass > 0)).sum()), 1) - 1]
    if m > 0:
        # Not a number where T is infinite and m is 1: then all probabilities are the largest.
        of_min_p = largest.double() + t * torch.tensor(min(m, 1.0), dtype=torch.float64).log()
        floor = floor.fmax(of_min_p.to(ordered))
    return floor


def without_nan(logits: Tensor) -> Tensor:
    """A NaN logit counts as -inf."""
    return logits.masked_fill(logits.isnan(), float("-inf"))


def target_law(logits: Tensor, temperature: float, floor: float | None) -> Tensor:
    """The probabilities [V] of a row's tokens, float64: softmax(logits / temperature).

    Of the tokens whose logits are not below `floor`.

    All on the largest logit, of equals the lower id, where the temperature is not above zero, the
    largest is infinite, or the floor is above it: of a row that says nothing, all on id 0.
    """
    wide = without_nan(logits).double()
    best = int(wide.argmax())
    largest = wide[best]
    nothing_is_kept = floor is not None and not bool(largest >= floor)
    if not temperature > 0 or not bool(largest.isfinite()) or nothing_is_kept:
        law = torch.zeros_like(wide)
        law[best] = 1
        return law
    scaled = ((wide - largest) / temperature).masked_fill(wide.isinf(), float("-inf"))
    if floor is not None:
        scaled = scaled.masked_fill(wide < floor, float("-inf"))
    return scaled.softmax(dim=0)


class Entries(NamedTuple):
    """The tokens that could be drawn at a depth, with their probabilities."""

    ids: Tensor  # [m] int64
    q: Tensor  # [m] float64


def draft_law(ids: Tensor, logits: Tensor, temperature: float, vocab_size: int) -> Entries:
    """Q of a depth: softmax(logits / temperature) over the valid of its k entries."""
    valid = are_valid(ids, logits, vocab_size)
    ids, wide = ids[valid], logits[valid].double()
    largest = wide.max() if len(wide) else 0.0
    return Entries(ids, ((wide - largest) / temperature).softmax(dim=0))


class Residual:
    """What is left of ``scale * p`` where drafts of law q have been rejected."""

    def __init__(self, p: Tensor, entries: Entries, scale: float = 1.0) -> None:
        self.p = p  # [V]
        self.ids, self.q = entries
        self.at_entries = scale * p[self.ids]
        self.outside = scale * p.index_fill(0, self.ids, 0)

    def find(self, token: int) -> int | None:
        """The entry that has this token, if it could be drawn."""
        found = ((self.ids == token) & (self.q > 0)).nonzero()
        return int(found[0]) if len(found) else None

    def subtract(self) -> float:
        """Take q away; returns what the positive part, which is what is left, adds up to."""
        self.at_entries = (self.at_entries - self.q).clamp(min=0)
        return float(self.at_entries.sum() + self.outside.sum())

    def reject(self, entry: int) -> None:
        """The draft that this entry is: p becomes the normalised residual, and q loses it."""
        total = self.subtract()
        if total > 0:
            self.at_entries, self.outside = self.at_entries / total, self.outside / total
        q = self.q.index_fill(0, torch.tensor(entry), 0)
        self.q = q / q.sum() if q.sum() > 0 else q

    def choose(self, decisions: Decisions, depth: int) -> int:
        """A token of what is left, the entries first; of p if nothing is."""
        weights = torch.cat([self.at_entries, self.outside])
        if not float(weights.sum()) > 0:
            return decisions.chooses(self.p, depth)
        index = decisions.chooses(weights, depth)
        return int(self.ids[index]) if index < len(self.ids) else index - len(self.ids)


class Request(NamedTuple):
    """What verification has of a request."""

    law: Callable[[int], Tensor]  # p after a node, [V]
    entries: Callable[[int], Entries]  # q of a depth; the children of the root have depth 1
    candidates: Sequence[int]
    next_token: Sequence[int]
    next_sibling: Sequence[int]
    decisions: Decisions

    def children(self, node: int) -> list[int]:
        """In order. A link that leads back or out ends them, so that every walk ends."""
        found, last, child = [], node, self.next_token[node]
        while last < child < len(self.candidates):
            found.append(child)
            last, child = child, self.next_sibling[child]
        return found


def walk(request: Request, rule: Rule) -> tuple[list[int], int]:
    """The accepted nodes, from the root on, and the target's own token after them."""
    if rule == "block":
        return _walk_block(request)
    step = _target_step if rule == "target" else _rejection_step
    path = [0]
    while True:
        child, token = step(request, path[-1], len(path))
        if child is None:
            return path, token
        path.append(child)


def _target_step(request: Request, node: int, depth: int) -> tuple[int | None, int]:
    token = request.decisions.chooses(request.law(node), depth)
    children = request.children(node)
    return next((c for c in children if request.candidates[c] == token), None), token


def _rejection_step(request: Request, node: int, depth: int) -> tuple[int | None, int]:
    p, children = request.law(node), request.children(node)
    if not children:
        return None, request.decisions.chooses(p, depth)
    residual = Residual(p, request.entries(depth))
    for child in children:
        entry = residual.find(request.candidates[child])
        if entry is None:  # nobody can have drawn it
            continue
        ratio = float(residual.at_entries[entry] / residual.q[entry])
        if request.decisions.accepts(min(1.0, ratio), child):
            return child, request.candidates[child]
        residual.reject(entry)
    return None, residual.choose(request.decisions, depth)


def _walk_block(request: Request) -> tuple[list[int], int]:
    """With M_0 = 1 and M_i = min(1, M_{i-1} p_i(x_i) / q_i(x_i)), the residuals are those of M_i p.

    R_i is what the residual after i drafts adds up to, and the longest i is accepted for which
    u_i < R_i / (R_i + 1 - M_i), or u_K < M_K.
    """
    path, joint = [0], 1.0
    accepted, left = 0, None
    while True:
        depth, p = len(path), request.law(path[-1])
        residual, child, entry = None, next(iter(request.children(path[-1])), None), None
        if child is not None:
            residual = Residual(p, request.entries(depth), joint)
            entry = residual.find(request.candidates[child])
        chance = joint
        if residual is not None and entry is not None:
            at_draft = float(residual.at_entries[entry] / residual.q[entry])
            total = residual.subtract()
            chance = min(1.0, total / (total + 1 - joint)) if total + 1 - joint > 0 else 1.0
        if depth == 1 or request.decisions.accepts(chance, path[-1]):
            accepted, left = depth - 1, (p, residual if entry is not None else None)
        if child is None or entry is None:
            break
        joint = min(1.0, at_draft)
        path.append(child)
    assert left is not None  # of the root at least
    p, residual = left
    if residual is None:
        token = request.decisions.chooses(p, accepted + 1)
    else:
        token = residual.choose(request.decisions, accepted + 1)
    return path[: accepted + 1], token


def verify(
    logits: Tensor,  # [R, V]
    row_start: Tensor,  # [B + 1] int32
    candidates: Tensor,  # [B, N] int64
    next_tokens: Tensor,  # [B] int64
    temperature: Tensor | None = None,  # [B] float32
    keys: Tensor | None = None,  # [B] int64
    root_positions: Tensor | None = None,  # [B] int64
    links: tuple[Tensor, Tensor] | None = None,  # next_token, next_sibling [B, N] int64
    floors: Tensor | None = None,  # [R]
    drafts: Drafts | None = None,
    rule: Rule = "target",
) -> Verified:
    """Accept what the target's law allows. See `p_eagle_cuda.ops.verify`."""
    (B, N), (R, V), device = candidates.shape, logits.shape, logits.device
    zeros = torch.zeros(B, device=device)
    t = zeros if temperature is None else temperature
    draft_t = zeros if drafts is None else drafts.temperature
    keys = zeros.long() if keys is None else keys
    root_positions = zeros.long() if root_positions is None else root_positions
    if links is None:
        chain = torch.arange(1, N + 1, device=device).expand(B, N)
        links = chain, torch.full_like(chain, -1)
    out = Verified(
        tokens=torch.full((B, N), -1, dtype=torch.int64, device=device),
        path=torch.full((B, N), -1, dtype=torch.int32, device=device),
        num_accepted=zeros.int(),
        num_rejected=zeros.int(),
        last_row=zeros.int() - 1,
        next_tokens=next_tokens.clone(),
    )
    starts, decisions = row_start.tolist(), keyed_decisions(keys, root_positions, N)
    for b in range(B):
        first, rows = starts[b], min(starts[b + 1] - starts[b], N)
        if rows < 1 or first < 0 or first + rows > R:
            continue

        def law(node: int, b: int = b, first: int = first) -> Tensor:
            floor = None if floors is None else float(floors[first + node])
            return target_law(logits[first + node], float(t[b]), floor)

        def entries(depth: int, b: int = b) -> Entries:
            assert drafts is not None
            K = len(drafts.ids) // B
            if depth > K:
                return Entries(drafts.ids[0, :0], drafts.logits[0, :0].double())
            i = b * K + depth - 1
            return draft_law(drafts.ids[i], drafts.logits[i], float(draft_t[b]), V)

        request = Request(
            law, entries, candidates[b, :rows].tolist(), links[0][b, :rows].tolist(),
            links[1][b, :rows].tolist(), decisions[b],
        )  # fmt: skip
        # Where nothing is drawn the other rules are the first, and need no law of drafts for it.
        is_drawn = bool(t[b] > 0) and bool(draft_t[b] > 0)
        path, token = walk(request, rule if is_drawn else "target")
        tokens = [request.candidates[node] for node in path[1:]] + [token]
        out.tokens[b, : len(tokens)] = torch.tensor(tokens)
        out.path[b, : len(path)] = first + torch.tensor(path)
        out.num_accepted[b] = len(path) - 1
        out.num_rejected[b] = starts[b + 1] - first - len(path)
        out.last_row[b] = first + path[-1]
        out.next_tokens[b] = token
    return out
