"""Drafter passes for tests: random requests that go through prefill and several ragged steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SimulatedRequest:
    """A request whose tokens and taps are random, in a cache of its own blocks."""

    tokens: list[int]  # the true text, prompt and everything that will be accepted
    taps: Tensor  # [len(tokens), n, Ht] hidden states at each position
    blocks: list[int]
    computed: int = 0  # positions that went through the drafter


@dataclass
class Pass:
    """One pass over all requests, and what each had valid after it."""

    target_tokens: Tensor
    target_positions: Tensor
    taps: list[Tensor]
    query_start: Tensor
    num_rejected: Tensor
    next_tokens: Tensor
    block_table: Tensor
    num_valid: list[int] = field(default_factory=list)  # positions of each request with a real row


def simulate(
    *,
    num_requests: int,
    num_steps: int,
    K: int,
    vocab_size: int,
    num_taps: int,
    target_hidden: int,
    block_size: int,
    prompt_lengths: Sequence[int],
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[list[SimulatedRequest], Iterator[Pass]]:
    """Requests of ragged lengths; the first pass is their prompts, then `num_steps` verifications.

    Each verification has K + 1 target rows a request, of which a random number is rejected; rows of
    rejected drafts hold random tokens and taps, which nothing may depend on.
    """
    g = torch.Generator().manual_seed(seed)
    total = [n + num_steps * (K + 1) + 1 for n in prompt_lengths]
    columns = -(-(max(total) + K) // block_size)
    order = (1 + torch.randperm(num_requests * columns, generator=g)).view(num_requests, columns)
    requests = [
        SimulatedRequest(
            tokens=torch.randint(vocab_size, (n,), generator=g).tolist(),
            taps=torch.randn(n, num_taps, target_hidden, generator=g, dtype=dtype),
            blocks=order[i].tolist(),
        )
        for i, n in enumerate(total)
    ]

    def passes() -> Iterator[Pass]:
        for step in range(num_steps + 1):
            tokens, positions, rows, starts, rejected, following, valid = (
                [],
                [],
                [],
                [0],
                [],
                [],
                [],
            )
            for request, prompt in zip(requests, prompt_lengths, strict=True):
                length = prompt if step == 0 else K + 1
                reject = 0 if step == 0 else int(torch.randint(K + 1, (1,), generator=g))
                kept = slice(request.computed, request.computed + length - reject)
                tokens += request.tokens[kept]
                tokens += torch.randint(vocab_size, (reject,), generator=g).tolist()
                rows.append(request.taps[kept])
                rows.append(torch.randn(reject, num_taps, target_hidden, generator=g, dtype=dtype))
                positions += range(request.computed, request.computed + length)
                starts.append(starts[-1] + length)
                request.computed = kept.stop
                rejected.append(reject)
                following.append(request.tokens[request.computed])
                valid.append(request.computed)
            taps = torch.cat(rows).unbind(1)
            yield Pass(
                target_tokens=torch.tensor(tokens),
                target_positions=torch.tensor(positions),
                taps=[t.contiguous() for t in taps],
                query_start=torch.tensor(starts, dtype=torch.int32),
                num_rejected=torch.tensor(rejected, dtype=torch.int32),
                next_tokens=torch.tensor(following),
                block_table=torch.tensor([r.blocks for r in requests], dtype=torch.int32),
                num_valid=valid,
            )

    return requests, passes()
