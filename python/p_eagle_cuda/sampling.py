"""Lossless verification of drafted chains: the target chooses, drafts only save it steps.

Each position has one random number, keyed by (seed, request, position), and the target's choice
there is the inverse of its distribution at that number (its argmax at temperature 0). A draft is
accepted when it is that choice. The emitted text is thus the very text that the target alone would
emit with the same seed: not only its distribution but every token is unchanged, at any temperature.
A greedy draft x is accepted with probability p(x), as in rejection sampling with a one-hot draft.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1


def keyed_uniform(seed: int, request: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its key; 53 random bits.

    Three rounds of the SplitMix64 finaliser (Steele, Lea and Flood, 2014), one for each part of
    the key.
    """
    state = 0
    for part in (seed, request, position):
        state = (state + part + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


def choose(logits: Tensor, temperature: float, uniforms: Sequence[float]) -> Tensor:
    """The target's own token of each row.

    Args:
        logits: ``[N, V]``; equal logits: the lower id first.
        temperature: 0 for the argmax, else the softmax of ``logits / temperature``.
        uniforms: N numbers in [0, 1), not used at temperature 0.

    Returns:
        ``[N]`` int64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    # The maximum goes first: a tiny temperature must not turn it into infinity.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).double() / temperature
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)
    # u is at most 1 - 2**-53 and the sum is 1 up to rounding, so their product stays below the sum
    # and the token found has a probability above zero.
    u = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]


def count_accepted(drafts: Sequence[int], choices: Sequence[int]) -> int:
    """How many leading drafts are the target's own choices."""
    for i, draft in enumerate(drafts):
        if draft != choices[i]:
            return i
    return len(drafts)
