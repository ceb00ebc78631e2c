"""Speculative decoding from end to end: a target, a drafter, and the loop around them.

The loop batches requests that are at different points: some read a chunk of their prompt, others
verify a tree of drafts (a chain is one), all in one target pass. It is the embedded counterpart of
a serving engine, for trying, testing and measuring a drafter where there is none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from p_eagle_cuda.draft_length import DraftLengthPolicy
from p_eagle_cuda.draft_tree import DraftTree
from p_eagle_cuda.drafter import Drafter
from p_eagle_cuda.errors import ConfigError, PEagleError, PromptError
from p_eagle_cuda.ops import Sampling, compact_cache, verify
from p_eagle_cuda.sampling import request_key
from p_eagle_cuda.statistics import Step
from p_eagle_cuda.target import Target, TargetRows
from p_eagle_cuda.tree import empty_tree
from p_eagle_cuda.verification import Verified

PREFILL_CHUNK = 512  # rows of one prompt in one pass; bounds the memory of the attention scores


@dataclass(frozen=True)
class Completion:
    """What one request has produced.

    Attributes:
        token_ids: The new tokens, without the prompt; the end token is included when it was drawn.
        finish_reason: ``stop`` (an end token) or ``length``.
        steps: The target passes that emitted tokens, in order.
    """

    token_ids: list[int]
    finish_reason: str
    steps: list[Step]


class _Nodes(NamedTuple):
    """A request's draft tree, as `tree.Tree` has it; node 0 is the last known token."""

    tokens: list[int]
    depths: list[int]
    mask: list[int]
    next_token: list[int]
    next_sibling: list[int]

    @classmethod
    def root(cls, token: int) -> _Nodes:
        """A tree without drafts."""
        return cls([token], [0], [1], [-1], [-1])


_NO_NODES = _Nodes([], [], [], [], [])


@dataclass
class _Request:
    """A request on its way: it holds a lane, which is a row of the block table."""

    index: int
    lane: int
    tokens: list[int]  # prompt and output
    prompt_length: int
    max_tokens: int
    num_computed: int = 0  # tokens whose keys and values the target has
    tree: _Nodes = _NO_NODES  # over the last token, once there is one that was generated
    entries: list[list[int]] = field(default_factory=list)  # the drafter's, of each depth
    steps: list[Step] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_length


class _Query(NamedTuple):
    """What the target reads for a request in one pass."""

    tokens: list[int]
    first: int  # position of the first
    offsets: Sequence[int]  # of each token's position from there
    nodes: _Nodes  # the last of the tokens, after which the target may choose; none in a prompt


class _Pass(NamedTuple):
    """The rows of a pass."""

    queries: list[_Query]
    rows: TargetRows
    sampled: list[int]  # rows of the nodes, whose logits are needed
    node_start: Tensor  # [B + 1] int32, where each request's begin in `sampled`


class SpeculativeEngine:
    """Continues prompts with a target, in fewer target steps where a drafter helps."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        *,
        max_requests: int,
        max_length: int,
        block_size: int = 16,
        draft_length: DraftLengthPolicy | None = None,
        tree: DraftTree | None = None,
    ) -> None:
        """Allocate the target's cache and the block table.

        Args:
            target: The model that decides every token.
            drafter: The model that drafts, or None for plain decoding. Built for at least
                `max_requests` requests, `max_target_rows(...)` rows and `num_blocks(...)` blocks.
            max_requests: Requests in flight at a time; others wait.
            max_length: Most tokens of a request, prompt and output.
            block_size: Positions in a cache block.
            draft_length: Chooses how many tokens are drafted in each step; the drafter's K if None.
                For chains.
            tree: Which of the drafts are verified; a chain of the drafter's K if None.

        Raises:
            ConfigError: The drafter cannot fill the tree, or `draft_length` and `tree` are both
                given.
        """
        self.target, self.drafter, self._draft_length = target, drafter, draft_length
        self.max_requests, self.max_length, self.block_size = max_requests, max_length, block_size
        if tree and (draft_length or not drafter):
            missing = "no policy of draft lengths" if draft_length else "a drafter"
            raise ConfigError(f"a draft tree needs {missing}")
        K = drafter.num_speculative_tokens if drafter else 0
        self._tree = tree or DraftTree.chain(max(K, 1))
        if drafter:
            self._tree.check_fits(K, drafter.top_k)
        num_drafts = max(K, self._tree.num_nodes - 1) if drafter else 0
        columns = _blocks_per_request(max_length, num_drafts, block_size)
        self._caches = target.allocate_cache(
            num_blocks(max_requests, max_length, num_drafts, block_size)
        )
        # Lanes interleave, as blocks do in a serving engine, and block 0 is nobody's, as there.
        blocks = 1 + torch.arange(columns * max_requests, dtype=torch.int32)
        self._block_table = blocks.view(columns, max_requests).t().contiguous()
        self._block_table = self._block_table.to(target.device)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Collection[int] = (),
        on_tokens: Callable[[int, list[int]], None] | None = None,
        on_finish: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Continue each prompt by up to `max_tokens` tokens.

        The result does not depend on the drafter, on K, on the tree, or on which requests share a
        batch, up to rounding in the working dtype of the target.

        Args:
            prompts: Token ids, at least one each.
            max_tokens: Most new tokens for each.
            temperature: 0 for greedy decoding.
            seed: Key of the random numbers together with a prompt's index and the position.
            stop: Token ids that end a request.
            on_tokens: Called with a prompt's index and its new tokens, after each step.
            on_finish: Called with a prompt's index when it has ended.

        Returns:
            One completion per prompt, in order.

        Raises:
            PromptError: A prompt is empty, holds an unknown token, or is too long; `max_tokens` or
                `temperature` is out of range.
        """
        if not 0 <= temperature < float("inf"):
            raise PromptError(f"temperature must be a finite number, 0 or above, got {temperature}")
        self._check_prompts(prompts, max_tokens)
        done: dict[int, Completion] = {}
        waiting = deque(enumerate(prompts))
        lanes = list(range(self.max_requests))
        active: list[_Request] = []
        while waiting or active:
            while waiting and lanes:
                index, prompt = waiting.popleft()
                active.append(_Request(index, lanes.pop(), list(prompt), len(prompt), max_tokens))
            before = [len(r.tokens) for r in active]
            self._step(active, temperature, seed, stop)
            for request, length in zip(active, before, strict=True):
                if on_tokens and len(request.tokens) > length:
                    on_tokens(request.index, request.tokens[length:])
                if request.finish_reason:
                    tokens = request.tokens[request.prompt_length :]
                    done[request.index] = Completion(tokens, request.finish_reason, request.steps)
                    lanes.append(request.lane)
                    if on_finish:
                        on_finish(request.index)
            active = [r for r in active if not r.finish_reason]
        return [done[i] for i in range(len(prompts))]

    def _check_prompts(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        if max_tokens < 1:
            raise PromptError(f"max_tokens must be at least 1, got {max_tokens}")
        vocab_size = self.target.config.vocab_size
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise PromptError(f"prompt {i} is empty: it must have at least one token")
            if min(prompt) < 0 or max(prompt) >= vocab_size:
                raise PromptError(
                    f"prompt {i} holds a token outside the target's vocabulary of {vocab_size}"
                )
            if len(prompt) + max_tokens > self.max_length:
                raise PromptError(
                    f"prompt {i} has {len(prompt)} tokens; with {max_tokens} new ones that exceeds "
                    f"the context of {self.max_length}"
                )

    def _step(
        self, active: Sequence[_Request], temperature: float, seed: int, stop: Collection[int]
    ) -> None:
        """One target pass over every active request, and one drafter pass behind it."""
        active = sorted(active, key=lambda r: r.num_generated > 0)  # prompts first
        given = self._lay_out(active, [_query(r) for r in active])
        sampled = self._int64(given.sampled)
        output = self.target.forward(given.rows, self._caches, sampled)
        verified = self._verify(output.logits, active, given, temperature, seed)
        slots = given.rows.slots[sampled]
        for cache in self._caches:
            compact_cache(verified.path, given.node_start, slots, cache.k, cache.v)
        for request, query, row in zip(
            active, given.queries, verified.tokens.tolist(), strict=True
        ):
            self._advance(request, query, [token for token in row if token >= 0], stop)
        if self.drafter and any(not r.finish_reason for r in active):
            self._draft(self.drafter, active, given, output.taps, verified)

    def _lay_out(self, active: Sequence[_Request], queries: list[_Query]) -> _Pass:
        token_ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []  # where in the cache: a tree's nodes one after the other
        tree_mask: list[int] = []
        lane_of_row: list[int] = []
        sampled: list[int] = []
        starts, node_start = [0], [0]
        for request, query in zip(active, queries, strict=True):
            n, num_nodes = len(query.tokens), len(query.nodes.tokens)
            token_ids += query.tokens
            positions += [query.first + offset for offset in query.offsets]
            places += range(query.first, query.first + n)
            tree_mask += query.nodes.mask if request.num_generated else [0] * n
            lane_of_row += [request.lane] * n
            starts.append(starts[-1] + n)
            sampled += range(starts[-1] - num_nodes, starts[-1])
            node_start.append(node_start[-1] + num_nodes)
        place = self._int64(places)
        block = self._block_table[self._int64(lane_of_row), place // self.block_size].long()
        rows = TargetRows(
            token_ids=self._int64(token_ids),
            positions=self._int64(positions),
            slots=block * self.block_size + place % self.block_size,
            row_start=self._int32(starts),
            seq_lens=self._int32([q.first + len(q.tokens) for q in queries]),
            block_table=self._block_table[self._int64([r.lane for r in active])],
            tree_mask=self._int64(tree_mask),
            num_causal=sum(not r.num_generated for r in active),
        )
        return _Pass(queries, rows, sampled, self._int32(node_start))

    def _verify(
        self,
        logits: Tensor,
        active: Sequence[_Request],
        given: _Pass,
        temperature: float,
        seed: int,
    ) -> Verified:
        """What each request emits; nothing where its prompt has not been read to the end."""
        if bool(logits.isnan().any()):
            raise PEagleError(
                "the target computed NaN logits: its weights or its dtype are at fault"
            )
        B, N = len(active), max(1, *(len(q.nodes.tokens) for q in given.queries))

        def padded(rows: Iterable[list[int]]) -> Tensor:
            return self._int64([row + [-1] * (N - len(row)) for row in rows])

        trees = empty_tree(B, N, self.target.device)._replace(
            candidates=padded(q.nodes.tokens for q in given.queries),
            next_token=padded(q.nodes.next_token for q in given.queries),
            next_sibling=padded(q.nodes.next_sibling for q in given.queries),
        )
        after = [q.first + len(q.tokens) for q in given.queries]
        next_tokens = [
            0 if query.nodes.tokens else request.tokens[end]
            for request, query, end in zip(active, given.queries, after, strict=True)
        ]
        # A tree's root comes first, a prompt's end last.
        roots = [end - len(q.nodes.tokens) for q, end in zip(given.queries, after, strict=True)]
        sampling = Sampling(
            torch.full((B,), temperature, device=self.target.device),
            self._int64([request_key(seed, r.index) for r in active]),
            self._int64(roots),
        )
        return verify(
            logits, given.node_start, trees.candidates, self._int64(next_tokens),
            sampling if temperature > 0 else None, tree=trees,
        )  # fmt: skip

    def _advance(
        self, request: _Request, query: _Query, tokens: Sequence[int], stop: Collection[int]
    ) -> None:
        """Take in what a request emits, which is nothing before the end of its prompt."""
        if not tokens:
            request.num_computed += len(query.tokens)
            return
        num_drafts, accepted = len(query.nodes.tokens) - 1, len(tokens) - 1
        request.num_computed += len(query.tokens) - num_drafts + accepted
        ranks = self._ranks(tokens, request.entries) if num_drafts else ()
        request.steps.append(Step(request.num_generated, num_drafts, accepted, ranks))
        if self._draft_length:
            self._draft_length.observe(num_drafts, accepted)
        for token in tokens:
            request.tokens.append(token)
            if token in stop:
                request.finish_reason = "stop"
            elif request.num_generated == request.max_tokens:
                request.finish_reason = "length"
            if request.finish_reason:
                break

    def _ranks(self, tokens: Sequence[int], entries: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Where each token stood among its depth's entries that the target knows; -1: nowhere."""
        ranks = []
        for token, of_depth in zip(tokens, entries, strict=False):
            known = [i for i in of_depth if 0 <= i < self.target.config.vocab_size]
            ranks.append(known.index(token) if token in known else -1)
        return tuple(ranks)

    def _draft(
        self,
        drafter: Drafter,
        active: Sequence[_Request],
        given: _Pass,
        taps: Sequence[Tensor],
        verified: Verified,
    ) -> None:
        """The tree that each request has verified in the next pass.

        The drafter reads the rows that are kept: of a tree those of the accepted path, which then
        follow each other.
        """
        kept: list[int] = []
        positions: list[int] = []
        starts, row_start = [0], given.rows.row_start.tolist()
        roots: list[int] = []
        for b, (query, path) in enumerate(zip(given.queries, verified.path.tolist(), strict=True)):
            kept += range(row_start[b], row_start[b + 1] - len(query.nodes.tokens))
            kept += [given.sampled[row] for row in path if row >= 0]
            roots.append(query.first + len(kept) - starts[-1])
            positions += range(query.first, roots[-1])
            starts.append(len(kept))
        rows = self._int64(kept)
        drafts = drafter.propose(
            given.rows.token_ids[rows], self._int64(positions), [tap[rows] for tap in taps],
            self._int32(starts), self._int32([0] * len(active)), verified.next_tokens,
            given.rows.block_table,
            k=self._draft_length.choose(len(active)) if self._draft_length else None,
        )  # fmt: skip
        goes_on = [r.num_generated > 0 and not r.finish_reason for r in active]
        made = self._tree.build(
            drafts, verified.next_tokens, self._int64(roots),
            self._int32([self._tree.num_nodes * goes for goes in goes_on]),
            self.target.config.vocab_size, self.target.config.max_position_embeddings,
        )  # fmt: skip
        fields = made.candidates, made.depths, made.mask, made.next_token, made.next_sibling
        for request, entries, n, *nodes in zip(
            active, drafts.top_ids.tolist(), made.num_nodes.tolist(), *(x.tolist() for x in fields),
            strict=True,
        ):  # fmt: skip
            request.tree, request.entries = _Nodes(*(x[:n] for x in nodes)), entries

    def _int32(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.target.device)

    def _int64(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.target.device)


def max_target_rows(max_requests: int, num_speculative_tokens: int) -> int:
    """Most target rows of one pass, for building the drafter of an engine."""
    return max_requests * max(PREFILL_CHUNK, num_speculative_tokens + 1)


def num_blocks(max_requests: int, max_length: int, num_drafts: int, block_size: int) -> int:
    """Cache blocks that an engine addresses, for building its drafter; block 0 is not used.

    Args:
        max_requests: As for the engine.
        max_length: Likewise.
        num_drafts: K, or the nodes of a tree without its root if these are more.
        block_size: Positions in a block.
    """
    return 1 + max_requests * _blocks_per_request(max_length, num_drafts, block_size)


def _blocks_per_request(max_length: int, num_drafts: int, block_size: int) -> int:
    # A pass has a place for each of its drafts past the last token that is kept.
    return -(-(max_length + num_drafts) // block_size)


def _query(request: _Request) -> _Query:
    """What the target reads for this request in this pass: of its prompt, or its tree."""
    first = request.num_computed
    if request.num_generated:
        nodes = request.tree if request.tree.tokens else _Nodes.root(request.tokens[-1])
        return _Query(nodes.tokens, first, nodes.depths, nodes)
    tokens = request.tokens[first : first + PREFILL_CHUNK]
    is_end = first + len(tokens) == len(request.tokens)
    nodes = _Nodes.root(tokens[-1]) if is_end else _NO_NODES
    return _Query(tokens, first, range(len(tokens)), nodes)
