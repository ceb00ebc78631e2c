"""The noise of probabilistic drafts, as the executable specification has it.

An id of a row gets noise that depends on nothing but the row's key, its position and the id: the
same alone or in a batch, in a graph, on any device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


class Noise(NamedTuple):
    """What makes the drafts of a sampled row random, and nothing else does. See `gumbel`."""

    keys: Tensor  # [N] int64, of the row's request: its seed, mixed with what tells it from others
    positions: Tensor  # [N] int64, absolute
    temperature: Tensor  # [N] float32; 0: no noise, and logits as they are


def gumbel(keys: Tensor, positions: Tensor, draft_ids: Tensor) -> Tensor:
    """Standard Gumbel noise, float32: ``-log(-log1p(-u))``, where u is `noise_uniform`.

    1 - u is as uniform as u, and this way the largest noises, which decide, are the finest.
    """
    return -torch.log(-torch.log1p(-noise_uniform(keys, positions, draft_ids)))


def noise_uniform(keys: Tensor, positions: Tensor, draft_ids: Tensor) -> Tensor:
    """A float32 number in (0, 1) that depends on nothing but a key, a position and a draft id.

    All int64, broadcast. The number is word ``draft_id % 4`` of Philox4x32-10 with the halves of
    the key as its key, low half first, and ``draft_id // 4``, 0 and the halves of the position as
    its counter; as a number the word w is ``w * 2**-32 + 2**-33`` in float32 arithmetic, and at
    most ``1 - 2**-24``.
    """
    keys, positions, draft_ids = torch.broadcast_tensors(keys, positions, draft_ids)
    counter = (draft_ids // 4, torch.zeros_like(keys), *_halves(positions))
    words = torch.stack(philox(counter, _halves(keys)))
    word = words.gather(0, (draft_ids % 4)[None])[0]
    return (word.float() * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24)


def philox(
    counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., 2011): four words from four and two, as int64."""
    (a, b, c, d), (first, second) = counter, key
    for _ in range(10):
        (a_high, a_low), (c_high, c_low) = _multiply(0xD2511F53, a), _multiply(0xCD9E8D57, c)
        a, b, c, d = c_high ^ b ^ first, c_low, a_high ^ d ^ second, a_low
        first, second = (first + 0x9E3779B9) & _WORD, (second + 0xBB67AE85) & _WORD
    return a, b, c, d


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of int64."""
    return x & _WORD, (x >> 32) & _WORD


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low half of a product of 32-bit words, in int64 without overflow."""
    low = (b & 0xFFFF) * a
    high = (b >> 16) * a + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF
