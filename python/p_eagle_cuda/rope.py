"""Cosine and sine of rotary position embedding, for every position at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from p_eagle_cuda.config import RopeConfig


def rope_table(rope: RopeConfig, head_dim: int, max_position: int) -> Tensor:
    """Cosine and sine of every position.

    Row p holds cos(p * w_j) for the D / 2 frequencies w_j, then sin(p * w_j). They turn element j
    of a head together with element j + D / 2 ("rotate half", as Hugging Face's Llama and vLLM's
    neox style do). The attention factor of `yarn` is folded in.

    Numerics: computed in float64 and rounded once, so an entry is within half a unit in the last
    place. Hosts that multiply in float32 are off by up to p * w_j * 2**-23 instead.

    Args:
        rope: the kind of embedding.
        head_dim: D, even.
        max_position: number of rows.

    Returns:
        `[max_position, head_dim]` float32.
    """
    positions = torch.arange(max_position, dtype=torch.float64)
    angles = torch.outer(positions, inverse_frequencies(rope, head_dim))
    table = torch.cat((angles.cos(), angles.sin()), dim=1) * attention_factor(rope)
    return table.to(torch.float32)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position, `[head_dim / 2]` float64, as `ROPE_INIT_FUNCTIONS` of transformers."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = rope.theta**-exponents
    if rope.rope_type == "linear":
        return frequencies / rope.factor
    if rope.rope_type == "llama3":
        # Turns within the original context: below `low` stretched, above `high` kept.
        turns = rope.original_max_position * frequencies / (2 * math.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        return _blend(frequencies, rope.factor, kept=(turns - low) / (high - low))
    if rope.rope_type == "yarn":
        first, last = _yarn_bounds(rope, head_dim)
        dims = torch.arange(head_dim // 2, dtype=torch.float64)
        return _blend(frequencies, rope.factor, kept=1 - (dims - first) / (last - first))
    return frequencies


def attention_factor(rope: RopeConfig) -> float:
    """What `yarn` multiplies cosine and sine with; 1 for every other type."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale is not None and rope.mscale_all_dim is not None:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _blend(frequencies: Tensor, factor: float, kept: Tensor) -> Tensor:
    """`kept` (cut off at 0 and 1) of each frequency, and the rest of it divided by `factor`."""
    kept = kept.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def _yarn_bounds(rope: RopeConfig, head_dim: int) -> tuple[float, float]:
    """The dimensions between which `yarn` goes over from keeping to stretching."""
    # The (real) dimension that makes so many turns within the original context.
    first, last = (
        head_dim
        * math.log(rope.original_max_position / (turns * 2 * math.pi))
        / (2 * math.log(rope.theta))
        for turns in (rope.beta_fast, rope.beta_slow)
    )
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    return first, last if last != first else last + 0.001  # a step, without dividing by zero


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
