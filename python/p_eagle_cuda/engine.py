"""Speculative decoding from end to end: a target, a drafter, and the loop around them.

The loop batches requests that are at different points: some read a chunk of their prompt, others
verify K drafts, all in one target pass. It is the embedded counterpart of a serving engine, for
trying, testing and measuring a drafter where there is none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from p_eagle_cuda.draft_length import DraftLengthPolicy
from p_eagle_cuda.drafter import Drafter
from p_eagle_cuda.errors import PEagleError, PromptError
from p_eagle_cuda.sampling import choose, count_accepted, keyed_uniform
from p_eagle_cuda.statistics import Step
from p_eagle_cuda.target import Target, TargetRows

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


@dataclass
class _Request:
    """A request on its way: it holds a lane, which is a row of the block table."""

    index: int
    lane: int
    tokens: list[int]  # prompt and output
    prompt_length: int
    max_tokens: int
    num_computed: int = 0  # tokens whose keys and values the target has
    drafts: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_length


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
        """
        self.target, self.drafter, self._draft_length = target, drafter, draft_length
        self.max_requests, self.max_length, self.block_size = max_requests, max_length, block_size
        K = drafter.num_speculative_tokens if drafter else 0
        columns = _blocks_per_request(max_length, K, block_size)
        self._caches = target.allocate_cache(num_blocks(max_requests, max_length, K, block_size))
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

        The result does not depend on the drafter, on K, or on which requests share a batch, up to
        rounding in the working dtype of the target.

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
        queries = [self._query(r) for r in active]
        rows, sampled = self._rows(active, queries)
        output = self.target.forward(rows, self._caches, sampled)
        choices = self._choose(output.logits, active, queries, temperature, seed)

        num_rejected, next_tokens = [], []
        for request, query in zip(active, queries, strict=True):
            rejected, token = self._advance(request, query, choices, stop)
            num_rejected.append(rejected)
            next_tokens.append(token)
        if self.drafter and any(not r.finish_reason for r in active):
            k = self._draft_length.choose(len(active)) if self._draft_length else None
            drafts = self.drafter.propose(
                rows.token_ids, rows.positions, output.taps, rows.row_start,
                self._int32(num_rejected), self._int64(next_tokens), rows.block_table,
                k=k,
            ).token_ids.tolist()  # fmt: skip
            vocab_size = self.target.config.vocab_size
            for request, draft in zip(active, drafts, strict=True):
                # A drafter's table may be padded past the target's, and there is no draft past the
                # last position; the chain ends there.
                request.drafts = list(takewhile(lambda token: 0 <= token < vocab_size, draft))

    def _query(self, request: _Request) -> list[int]:
        """The tokens that the target reads for this request in this pass."""
        known = request.tokens[request.num_computed :]
        if len(known) > 1 or not request.num_generated:
            return known[:PREFILL_CHUNK]
        # The last row's choice may still be kept, so every row must have a position.
        room = self.target.config.max_position_embeddings - len(request.tokens)
        return known + request.drafts[: max(room, 0)]

    def _rows(
        self, active: Sequence[_Request], queries: Sequence[Sequence[int]]
    ) -> tuple[TargetRows, Tensor]:
        """The pass's rows, and the indices of those whose logits are needed."""
        token_ids: list[int] = []
        positions: list[int] = []
        lane_of_row: list[int] = []
        sampled: list[int] = []
        starts = [0]
        for request, query in zip(active, queries, strict=True):
            first = request.num_computed
            if _reaches_end(request, query):
                rows = len(query) if request.num_generated else 1
                sampled += range(starts[-1] + len(query) - rows, starts[-1] + len(query))
            token_ids += query
            positions += range(first, first + len(query))
            lane_of_row += [request.lane] * len(query)
            starts.append(starts[-1] + len(query))
        lanes = self._int64([r.lane for r in active])
        position = self._int64(positions)
        block = self._block_table[self._int64(lane_of_row), position // self.block_size].long()
        lengths = [r.num_computed + len(q) for r, q in zip(active, queries, strict=True)]
        rows_of_pass = TargetRows(
            token_ids=self._int64(token_ids),
            positions=position,
            slots=block * self.block_size + position % self.block_size,
            row_start=self._int32(starts),
            seq_lens=self._int32(lengths),
            block_table=self._block_table[lanes],
        )
        return rows_of_pass, self._int64(sampled)

    def _choose(
        self,
        logits: Tensor,
        active: Sequence[_Request],
        queries: Sequence[Sequence[int]],
        temperature: float,
        seed: int,
    ) -> Iterator[int]:
        """The target's token after each sampled row, in the order of the rows."""
        uniforms = []
        if temperature > 0:
            for request, query in zip(active, queries, strict=True):
                if _reaches_end(request, query):
                    # The position of the chosen token, which is one past that of its row.
                    last = request.num_computed + len(query)
                    first = request.num_computed + 1 if request.num_generated else last
                    uniforms += [
                        keyed_uniform(seed, request.index, p) for p in range(first, last + 1)
                    ]
        if bool(logits.isnan().any()):
            raise PEagleError(
                "the target computed NaN logits: its weights or its dtype are at fault"
            )
        return iter(choose(logits, temperature, uniforms).tolist())

    def _advance(
        self,
        request: _Request,
        query: Sequence[int],
        choices: Iterator[int],
        stop: Collection[int],
    ) -> tuple[int, int]:
        """Take in the target's choices; returns the rejected rows and the token after the rest."""
        if not _reaches_end(request, query):
            request.num_computed += len(query)
            return 0, request.tokens[request.num_computed]
        drafts = query[1:] if request.num_generated else []
        own = [next(choices) for _ in range(len(drafts) + 1)]
        accepted = count_accepted(drafts, own)
        request.num_computed += len(query) - len(drafts) + accepted
        request.steps.append(Step(request.num_generated, len(drafts), accepted))
        if self._draft_length:
            self._draft_length.observe(len(drafts), accepted)
        for token in own[: accepted + 1]:
            request.tokens.append(token)
            if token in stop:
                request.finish_reason = "stop"
            elif request.num_generated == request.max_tokens:
                request.finish_reason = "length"
            if request.finish_reason:
                break
        return len(drafts) - accepted, own[accepted]

    def _int32(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.target.device)

    def _int64(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.target.device)


def max_target_rows(max_requests: int, num_speculative_tokens: int) -> int:
    """Most target rows of one pass, for building the drafter of an engine."""
    return max_requests * max(PREFILL_CHUNK, num_speculative_tokens + 1)


def num_blocks(
    max_requests: int, max_length: int, num_speculative_tokens: int, block_size: int
) -> int:
    """Cache blocks that an engine addresses, for building its drafter; block 0 is not used."""
    return 1 + max_requests * _blocks_per_request(max_length, num_speculative_tokens, block_size)


def _blocks_per_request(max_length: int, num_speculative_tokens: int, block_size: int) -> int:
    # A pass may verify K drafts past the last token that is kept.
    return -(-(max_length + num_speculative_tokens) // block_size)


def _reaches_end(request: _Request, query: Sequence[int]) -> bool:
    """Whether the rows include the request's last known token, so that the target may choose."""
    return request.num_computed + len(query) >= len(request.tokens)
