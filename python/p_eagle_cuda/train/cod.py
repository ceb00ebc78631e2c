"""Conditional drop sampling: which rows a drafter is trained on, and what each of them sees.

A row is (anchor, depth). The anchor is the last position whose target hidden state is known; depth
0 predicts from it, depth d > 0 is the d-th mask row of the rollout that starts there. A row stands
at position anchor + depth and predicts the token at anchor + depth + 2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_rows(
    num_anchors: int, depths: int, rate: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose the rows of one training step.

    Depth 0 keeps every anchor; depth d keeps `num_anchors * rate^d` of the anchors of depth d - 1,
    so that a row's shallower rows, which it attends to, are always there. An anchor is dropped
    from the depths whose label would lie behind the text.

    Returns:
        Anchors and depths, int64 [R] each, sorted by depth, then by anchor.
    """
    kept = torch.arange(num_anchors)
    anchors = [kept]
    for depth in range(1, depths):
        inside = kept[kept + depth < num_anchors]
        size = min(int(num_anchors * rate**depth), len(inside))
        kept = inside[torch.randperm(len(inside), generator=generator)[:size]].sort().values
        anchors.append(kept)
    sizes = torch.tensor([len(kept) for kept in anchors])
    return torch.cat(anchors), torch.arange(depths).repeat_interleave(sizes)


def visible(anchors: Tensor, depths: Tensor) -> Tensor:
    """Bool [R, R]: whether a row (first index) sees another.

    Every row sees the real rows up to its anchor; a mask row also sees its own rollout's mask rows
    up to itself. At inference this is plain causal attention over prefix and mask rows.
    """
    real = (depths[None] == 0) & (anchors[None] <= anchors[:, None])
    own = (anchors[None] == anchors[:, None]) & (depths[None] <= depths[:, None])
    return real | (own & (depths[None] > 0))


def on_policy(text: Tensor, argmax: Tensor, positions: Tensor, depths: Tensor) -> Tensor:
    """Bool [B, R]: whether a row could occur in greedy decoding.

    A row of depth d is read only when the d drafted tokens before it were accepted, that is, when
    the text up to the row's label is the target's own choice. On other rows the label depends on
    tokens that no drafter can foresee.

    Args:
        text: Token ids [B, T].
        argmax: The target's choice after each position, [B, T].
        positions: Of the rows, [R].
        depths: Of the rows, [R].
    """
    indices = torch.arange(text.shape[1])
    foreign = torch.ones_like(text, dtype=torch.bool)
    foreign[:, 1:] = text[:, 1:] != argmax[:, :-1]
    # The last position, up to and including each, whose token is not the target's choice.
    last_foreign = torch.where(foreign, indices, -1).cummax(1).values
    return positions + 1 - last_foreign[:, positions + 1] >= depths
