"""How the kernels cut their work into tiles, as far as the bytes that they move depend on it."""

from __future__ import annotations

import math
from itertools import pairwise

from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.planning.phases import Batch, Phase

BLOCK_COLUMNS = 64  # of a weight, that stay together; mirrors csrc/linear/tiles.h
# Rows for which a kernel reads a weight once: the sizes of its tiles, the largest for all above.
TILE_TOKENS = {
    "mma.sync": (8, 16, 32), "wgmma": (64, 128, 256), "wgmma fp8": (128, 256),
    "head": (8, 16, 32, 64, 128, 256),
}  # fmt: skip
ATTENTION_BLOCKS_PER_SM = {64: 2, 128: 1}  # by head size
OCTET, TURN_TOKENS = 8, 32  # tokens of partial sums that wgmma's kernel writes, and reads, at once
# Of a tile of CUTLASS's kernels; with more rows than those in its buffers two such are a cluster.
COLLECTIVE_ROWS, COLLECTIVE_CLUSTER_ROWS = 128, 512
ATTENTION_TILE_ROWS = 128  # of one KV head: the rows of a request, times its query heads


def tile_tokens(runs_on: str, rows: int) -> int:
    """Tokens of the smallest tile that holds so many rows, or of the largest."""
    sizes = TILE_TOKENS[runs_on]
    return next((size for size in sizes if rows <= size), sizes[-1])


def partial_bytes(
    phase: Phase,
    config: DrafterConfig,
    batch: Batch,
    runs_on: str,
    num_sms: int,
    attention_blocks: int | None = None,
) -> int:
    """What thread blocks leave for each other where they share a tile, written and read.

    Args:
        phase: Of the pass.
        config: The drafter's.
        batch: What it is a pass of.
        runs_on: A kernel of the linear layers, or "attention"; others share next to nothing.
        num_sms: Of the GPU.
        attention_blocks: Of the attention kernel, as many as fit the SMs if None.
    """
    if runs_on == "attention":
        group = config.num_heads // config.num_kv_heads
        rows = min(round(phase.num_rows(batch)[0] / batch.size * group), ATTENTION_TILE_ROWS)
        blocks = attention_blocks or ATTENTION_BLOCKS_PER_SM[config.head_dim] * num_sms
        return 2 * blocks * rows * config.head_dim * 4
    if runs_on not in ("mma.sync", "wgmma", "wgmma fp8"):
        return 0
    existing_rows, padded_rows = phase.num_rows(batch)
    tokens = tile_tokens(runs_on, padded_rows)
    if padded_rows > tokens:
        return 0  # several tiles of tokens: tiles of the weight are not cut
    is_wgmma = runs_on.startswith("wgmma")
    is_high = is_wgmma or (phase.kernel == "qkv_rope_cache" and config.head_dim == 128)
    tile_rows, ctas_per_sm = (128, 1) if is_high else (64, 2)
    rows, columns = phase.matrix
    parts = num_parts(-(-rows // tile_rows), columns // BLOCK_COLUMNS, ctas_per_sm * num_sms)
    written = round_up(existing_rows, OCTET) if is_wgmma else tokens
    read = round_up(existing_rows, TURN_TOKENS) if is_wgmma else tokens
    return parts * tile_rows * (written + read) * 4


def collective_rows(rows: float, padded_rows: int) -> int:
    """Rows that CUTLASS's kernels multiply; mirrors csrc/linear/tiles.h."""
    cluster = 1 if padded_rows <= COLLECTIVE_CLUSTER_ROWS else 2
    return round_up(rows, COLLECTIVE_ROWS * cluster)


def round_up(rows: float, multiple: int) -> int:
    """The least multiple that is not below."""
    return math.ceil(rows / multiple) * multiple


def num_parts(num_tiles: int, tile_blocks: int, max_ctas: int) -> int:
    """Of tiles that equal runs of blocks cut; mirrors csrc/linear/partition.h."""
    blocks = num_tiles * tile_blocks
    ctas = min(blocks, max_ctas)
    ends = [cta * blocks // ctas for cta in range(ctas + 1)]
    parts = 0
    for begin, end in pairwise(ends):
        first, last = begin // tile_blocks, (end - 1) // tile_blocks
        is_begun, is_ended = begin % tile_blocks == 0, end % tile_blocks == 0
        if first == last:
            parts += not (is_begun and is_ended)
        else:
            parts += (not is_begun) + (not is_ended)
    return parts
