"""Penalties for tokens that have occurred, as the executable specification has them.

A token that is in the prompt or in the output, c times in the latter, and whose logit is x, gets

    x' = x / repetition if x > 0 else x * repetition
    x'' = x' - frequency * c - (presence if c > 0 else 0)

which is vLLM's definition. The output before a draft is what has been emitted and the drafts on the
path to it, so that its row is what it would have been if these had been emitted one by one:
verification stays lossless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Occurrences(NamedTuple):
    """The different tokens of each of B requests so far, M at most."""

    ids: Tensor  # [B, M] int64, all different; negative: none
    counts: Tensor  # [B, M] int32, in the output; 0: only in the prompt


class Penalties(NamedTuple):
    """Of each request. What is not finite, or a repetition not above 0, is as if not asked for."""

    repetition: Tensor  # [B] float32; 1: none
    frequency: Tensor  # [B] float32; 0: none
    presence: Tensor  # [B] float32; 0: none


def count_tokens(
    prompts: Sequence[Tensor], outputs: Sequence[Tensor], max_tokens: int
) -> Occurrences:
    """Lists for `max_tokens` different tokens of each request, whose prompt and output are given.

    The output's last token is the one that the next step's drafts follow: node 0 of `candidates`.

    Raises:
        ValueError: A request has more of them.
    """
    ids = torch.full((len(prompts), max_tokens), -1)
    counts = torch.zeros(ids.shape, dtype=torch.int32)
    for b, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        tokens = torch.cat([prompt, output]).cpu()
        is_output = torch.arange(len(tokens)) >= len(prompt)
        different, index = tokens.unique(return_inverse=True)
        if len(different) > max_tokens:
            raise ValueError(
                f"request {b} must have at most max_tokens = {max_tokens} different tokens, "
                f"got {len(different)}"
            )
        ids[b, : len(different)] = different
        counts[b].index_add_(0, index, is_output.int())
    return Occurrences(ids, counts)


def add_tokens(occurrences: Occurrences, tokens: Tensor) -> None:
    """Count what a step has emitted, in place: `tokens` of `verify`, ``[B, N]`` int64, -1 is none.

    In plain PyTorch on the lists' device, without a look at them from the host, so that a CUDA
    graph can hold it. A list needs room for its new tokens: those for which there is none are not
    counted.
    """
    ids, counts = occurrences
    for token in tokens.unsqueeze(-1).unbind(1):  # [B, 1]
        is_it = (ids == token) & (token >= 0)
        is_free = (ids < 0) & (token >= 0) & ~is_it.any(dim=1, keepdim=True)
        is_new = is_free & (is_free.cumsum(dim=1) == 1)
        ids.copy_(torch.where(is_new, token, ids))
        counts.copy_(torch.where(is_new, 1, counts + is_it.int()))


def apply_penalties(
    logits: Tensor,  # [R, V]
    row_start: Tensor,  # [B + 1] int32
    candidates: Tensor,  # [B, N] int64
    occurrences: Occurrences,
    penalties: Penalties,
    parents: Tensor | None = None,  # [B, N] int32
) -> Tensor:  # [R, V]
    """The logits with penalties. See `p_eagle_cuda.ops.apply_penalties`."""
    (R, V), (B, N) = logits.shape, candidates.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    out, starts, decided = logits.clone(), row_start.tolist(), set()
    for b in range(B):
        first, rows = starts[b], min(starts[b + 1] - starts[b], N)
        if rows < 1 or first < 0 or first + rows > R:
            continue
        r, f, p = (x[b].to(wide) for x in penalties)
        r = r if bool(r > 0) and bool(r.isfinite()) else torch.ones_like(r)
        f, p = (x if bool(x.isfinite()) else torch.zeros_like(x) for x in (f, p))
        counts = torch.full((V,), -1)  # -1: has not occurred
        is_token = (occurrences.ids[b] >= 0) & (occurrences.ids[b] < V)
        of_list = occurrences.counts[b][is_token].long().clamp(min=0)
        counts[occurrences.ids[b][is_token]] = of_list
        links = list(range(-1, N - 1)) if parents is None else parents[b].tolist()
        for node in range(rows):
            if first + node in decided:  # by a lower request, which is not to be
                continue
            decided.add(first + node)
            count = counts.clone()
            for token in _path_tokens(candidates[b].tolist(), links, node):
                if 0 <= token < V:
                    count[token] = count[token].clamp(min=0) + 1
            x = logits[first + node].to(wide)
            repeated = torch.where(x > 0, x / r, x * r)
            counted = repeated - f * count.to(wide)
            penalised = torch.where(count > 0, counted - p, counted)
            out[first + node] = torch.where(count >= 0, penalised, x).to(logits.dtype)
    return out


def _path_tokens(candidates: Sequence[int], parents: Sequence[int], node: int) -> list[int]:
    """Of the drafts up to a node. A parent that is no node before its child ends the path."""
    tokens = []
    while node > 0:
        tokens.append(candidates[node])
        node = parents[node] if parents[node] < node else 0
    return tokens
