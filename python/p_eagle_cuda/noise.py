"""The noise of drafts and of their verification, as the executable specification has it.

It depends on nothing but the key of a request, an absolute position, an index there, and what it is
for: the same alone or in a batch, in a graph, on any device.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


class Stream(IntEnum):
    """What noise is for: the streams have nothing to do with each other.

    What decides in which order drafts are drawn and whether they are accepted is keyed by the
    position of the *root* of the step, and the depth or the node below it. Keyed by the position of
    a draft, it would be met again by the next step where this one rejects the draft, and that it
    did so says something of the noise: block verification would be biased. A choice ends a step and
    is never made again, so its key is the position of the token itself, and a token that the target
    chooses alone is the same whatever is drafted.
    """

    HEAD = 0  # Gumbel noise of draft ids, in `lm_head_topk`
    ORDER = 1  # Gumbel noise of the k entries of a depth, in `build_tree`
    ACCEPT = 2  # of the nodes of a tree, by their index
    CHOICE = 3  # of the target's own token, index 0

    def salt(self, depth: int = 0) -> int:
        """What is added to a counter, of a depth below the root."""
        return self + 4 * depth


class Noise(NamedTuple):
    """What makes the drafts of a sampled row random, and nothing else does. See `gumbel`."""

    keys: Tensor  # [N] int64, of the row's request: its seed, mixed with what tells it from others
    positions: Tensor  # [N] int64, absolute
    temperature: Tensor  # [N] float32; 0: no noise, and logits as they are


def gumbel(keys: Tensor, positions: Tensor, ids: Tensor, salt: int = 0) -> Tensor:
    """Standard Gumbel noise, float32: ``-log(-log1p(-u))``, where u is `noise_uniform`.

    1 - u is as uniform as u, and this way the largest noises, which decide, are the finest.
    """
    return -torch.log(-torch.log1p(-noise_uniform(keys, positions, ids, salt)))


def noise_uniform(keys: Tensor, positions: Tensor, ids: Tensor, salt: int = 0) -> Tensor:
    """A float32 number in (0, 1) that depends on nothing but a key, a position, an id and a salt.

    All int64, broadcast. The number is word ``id % 4`` of Philox4x32-10 with the halves of the key
    as its key, low half first, and ``id // 4``, the salt and the halves of the position as its
    counter; as a number the word w is ``w * 2**-32 + 2**-33`` in float32 arithmetic, and at most
    ``1 - 2**-24``.
    """
    keys, positions, ids = torch.broadcast_tensors(keys, positions, ids)
    words = torch.stack(_words(keys, positions, ids // 4, salt))
    word = words.gather(0, (ids % 4)[None])[0]
    return (word.float() * 2.0**-32 + 2.0**-33).clamp(max=1 - 2.0**-24)


def fine_uniform(keys: Tensor, positions: Tensor, index: Tensor, salt: int) -> Tensor:
    """The same with an index for the block of words, as a float64 number of 52 random bits.

    In (0, 1), and ``(w + 0.5) * 2**-52`` where w is word 0 above the upper 20 bits of word 1. A
    vocabulary has tokens that are rarer than a float32 number is fine.
    """
    keys, positions, index = torch.broadcast_tensors(keys, positions, index)
    first, second, *_ = _words(keys, positions, index, salt)
    return ((first << 20 | second >> 12).double() + 0.5) * 2.0**-52


def _words(keys: Tensor, positions: Tensor, block: Tensor, salt: int) -> tuple[Tensor, ...]:
    counter = (block, torch.full_like(keys, salt), *_halves(positions))
    return philox(counter, _halves(keys))


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
