"""Passes of a toy drafter over three requests, and what they must give, by the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

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


def propose(drafter: Drafter, step: Pass) -> Any:
    return drafter.propose(
        step.target_tokens, step.target_positions, step.taps, step.query_start, step.num_rejected,
        step.next_tokens, step.block_table,
    )  # fmt: skip


def reference_pass(  # noqa: ANN201
    path: Path,
    steps: list[Pass],
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    precision: str = "auto",
):
    """Logits and ids of the last pass by `reference.draft`, with weights and taps in `dtype`."""
    config = DrafterConfig.from_pretrained(path)
    # The weights the drafter has, in a wider type: the rounding of the checkpoint is not an error.
    working = load_drafter_weights(path, config, dtype=steps[0].taps[0].dtype, precision=precision)
    weights = _to(working, dtype)
    caches = allocate_cache(
        config.num_layers, 20, config.num_kv_heads, BLOCK_SIZE, config.head_dim, cache_dtype
    )
    for step in steps:
        inputs = reference.prepare_inputs(
            step.target_tokens, step.target_positions, step.query_start, step.num_rejected,
            step.next_tokens, step.block_table, K, config.mask_token_id, BLOCK_SIZE,
            config.max_position_embeddings,
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
    if x is None:
        return None
    kept = ("rope", "_scale")
    fields = {n: _to(v, dtype) for n, v in vars(x).items() if not n.endswith(kept)}
    return replace(x, **fields)
