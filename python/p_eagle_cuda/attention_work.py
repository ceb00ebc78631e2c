"""How the attention of a pass is divided among thread blocks, once for all layers."""

from __future__ import annotations

import bisect
from typing import NamedTuple

import torch
from torch import Tensor


class AttentionWork(NamedTuple):
    """How the keys of a pass are divided among the thread blocks of the attention kernel.

    A segment is a tile of ATTENTION_TILE_ROWS packed rows of a request, whose keys every KV head
    reads in tiles of ATTENTION_TILE_KEYS. All tiles of all heads stand in one line: segments in
    order, in a segment the heads, in a head its tiles. Block i takes `tiles_per_block` of them,
    from ``i * tiles_per_block`` on.
    """

    segments: Tensor  # [S, 7] int32, columns as in ATTENTION_SEGMENT
    request_segment: Tensor  # [B] int32, the first segment of each request
    first_segment: Tensor  # [blocks] int32, where each block starts; S: it has nothing to do
    num_tiles: int
    tiles_per_block: int


ATTENTION_TILE_ROWS, ATTENTION_TILE_KEYS, ATTENTION_MIN_TILES = 128, 64, 4
ATTENTION_SEGMENT = (
    "request", "row_tile", "first_tile", "num_tiles", "line_start", "key_begin", "key_end",
)  # fmt: skip
TREE_ROWS = 64  # bits of a row's mask


def plan_attention(
    row_start: Tensor,  # [B + 1] int32
    seq_lens: Tensor,  # [B] int32
    positions: Tensor,  # [R] int64
    num_heads: int,
    num_kv_heads: int,
    max_keys: int,
    window: int,
    is_tree: bool,
    num_blocks: int,
    max_segments: int,
) -> AttentionWork:
    """Divide the keys that the rows of a pass may see. See `p_eagle_cuda.ops.plan_attention`."""
    R, group = positions.numel(), num_heads // num_kv_heads
    starts = [min(max(x, 0), R) for x in row_start.tolist()]
    segments: list[list[int]] = []
    request_segment, line = [], 0
    for b, length in enumerate(seq_lens.tolist()):
        request_segment.append(min(len(segments), max_segments))
        first, end = starts[b], max(starts[b], starts[b + 1])
        length = min(max(length, 0), max_keys)
        for row_tile in range(-(-(end - first) * group // ATTENTION_TILE_ROWS)):
            first_row = first + row_tile * ATTENTION_TILE_ROWS // group
            last_row = min(first + ((row_tile + 1) * ATTENTION_TILE_ROWS - 1) // group, end - 1)
            oldest = int(positions[first if is_tree else first_row])
            newest = int(positions[last_row])
            if is_tree:
                newest = oldest + min(end - first, TREE_ROWS) - 1
            key_end = min(max(newest + 1, 0), length)
            key_begin = min(max(oldest - window + 1, 0), key_end) if window else 0
            first_tile = key_begin // ATTENTION_TILE_KEYS
            num_tiles = max(-(-key_end // ATTENTION_TILE_KEYS) - first_tile, 1)
            if len(segments) < max_segments:
                segments.append([b, row_tile, first_tile, num_tiles, line, key_begin, key_end])
                line += num_tiles * num_kv_heads
    share = max(-(-line // num_blocks), ATTENTION_MIN_TILES)
    ends = [s[4] + s[3] * num_kv_heads for s in segments]
    return AttentionWork(
        segments=torch.tensor(segments, dtype=torch.int32).view(-1, len(ATTENTION_SEGMENT)),
        request_segment=torch.tensor(request_segment, dtype=torch.int32),
        first_segment=torch.tensor(
            [bisect.bisect_right(ends, i * share) for i in range(num_blocks)], dtype=torch.int32
        ),
        num_tiles=line,
        tiles_per_block=share,
    )
