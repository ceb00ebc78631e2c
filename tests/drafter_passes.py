"""Passes of a toy drafter over three requests, and what they must give, by the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p_eagle_cuda import Drafter, reference
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.weights import load_drafter_weights
from pass_cases import Pass, simulate

K, BLOCK_SIZE, TOP_K = 4, 16, 3
PROMPTS = [1, 17, 40]
SIZES: dict[str, Any] = {
    "num_speculative_tokens": K,
    "max_requests": len(PROMPTS),
    "max_target_rows": sum(PROMPTS),
    "num_blocks": 20,
    "block_size": BLOCK_SIZE,
    "top_k": TOP_K,
}


def passes(config: DrafterConfig, dtype: torch.dtype, num_steps: int = 2) -> list[Pass]:
    _, steps = simulate(
        num_requests=len(PROMPTS), num_steps=num_steps, K=K, vocab_size=config.vocab_size,
        num_taps=config.num_taps, target_hidden=config.target_hidden_size, block_size=BLOCK_SIZE,
        prompt_lengths=PROMPTS, dtype=dtype,
    )  # fmt: skip
    return list(steps)


def padded(step: Pass, num_requests: int, num_rows: int, absent: Sequence[int] = ()) -> Pass:
    """The step in a bucket for so many requests and target rows, without the requests `absent`.

    These and the bucket's further requests have no rows; they and rows of nobody hold garbage.
    """
    lengths = step.query_start.diff()
    is_present = torch.ones(len(lengths), dtype=torch.bool)
    is_present[list(absent)] = False
    is_kept = is_present.repeat_interleave(lengths)

    def fill(x: Tensor, size: int, garbage: float) -> Tensor:
        return torch.cat([x, x.new_full((size - len(x), *x.shape[1:]), garbage)])

    def per_request(x: Tensor, garbage: float) -> Tensor:
        x = x.clone()
        x[~is_present] = garbage
        return fill(x, num_requests, garbage)

    starts = torch.cat([torch.zeros(1, dtype=torch.int64), (lengths * is_present).cumsum(0)])
    return Pass(
        target_tokens=fill(step.target_tokens[is_kept], num_rows, -(2**40)),
        target_positions=fill(step.target_positions[is_kept], num_rows, -(2**40)),
        taps=[fill(tap[is_kept], num_rows, torch.nan) for tap in step.taps],
        query_start=fill(starts.int(), num_requests + 1, int(starts[-1])),
        num_rejected=per_request(step.num_rejected, 3),
        next_tokens=per_request(step.next_tokens, 2**40),
        block_table=per_request(step.block_table, 2**31 - 1),
    )


def propose(drafter: Drafter, step: Pass) -> Any:
    return drafter.propose(
        step.target_tokens, step.target_positions, step.taps, step.query_start, step.num_rejected,
        step.next_tokens, step.block_table,
    )  # fmt: skip


def reference_pass(
    path: Path,
    steps: list[Pass],
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    max_position: int | None = None,
    precision: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, logits and lse of the last pass by `reference.draft`, with weights and taps in `dtype`.

    Args:
        path: Of the drafter.
        steps: Its passes.
        dtype: Of the weights.
        cache_dtype: Of the cache.
        max_position: Rows of the rope table; the config's if None.
        precision: Of the drafter's matrices.
    """
    config = DrafterConfig.from_pretrained(path)
    # The weights the drafter has, in a wider type: the rounding of the checkpoint is not an error.
    working = load_drafter_weights(
        path, config, dtype=steps[0].taps[0].dtype, max_position=max_position, precision=precision
    )
    weights = _to(working, dtype)
    caches = allocate_cache(
        config.num_layers, 20, config.num_kv_heads, BLOCK_SIZE, config.head_dim, cache_dtype
    )
    for step in steps:
        inputs = reference.prepare_inputs(
            step.target_tokens, step.target_positions, step.query_start, step.num_rejected,
            step.next_tokens, step.block_table, K, config.mask_token_id, BLOCK_SIZE,
            len(weights.rope),
        )  # fmt: skip
        result = reference.draft(
            weights, caches, inputs, [t.to(dtype) for t in step.taps], step.block_table,
            eps=config.rms_norm_eps, norm_before_residual=config.norm_before_residual, top_k=TOP_K,
        )  # fmt: skip
    return result


def _to(x: Any, dtype: torch.dtype) -> Any:
    """Weights in `dtype`; the rope table and scales stay float32, quantised matrices e4m3."""
    if isinstance(x, torch.Tensor):
        return x.to(dtype) if x.is_floating_point() and x.dtype.itemsize > 1 else x
    if isinstance(x, tuple):
        return tuple(_to(item, dtype) for item in x)
    if x is None or isinstance(x, bool):
        return x
    kept = ("rope", "_scale")
    fields = {n: _to(v, dtype) for n, v in vars(x).items() if not n.endswith(kept)}
    return replace(x, **fields)
