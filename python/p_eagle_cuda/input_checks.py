"""What `Drafter.propose` checks of its arguments: shapes always, contents when debugging."""

from __future__ import annotations

import torch
from torch import Tensor

from p_eagle_cuda._registry import check, check_tensor
from p_eagle_cuda.buffers import PassInputs
from p_eagle_cuda.config import DrafterConfig

OP = "Drafter.propose"


def check_inputs(
    given: PassInputs,
    config: DrafterConfig,
    has_joined_taps: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise ValueError unless the tensors fit each other and the drafter. Reads no data."""
    joined = config.num_taps if has_joined_taps else 1
    check(
        len(given.taps) * joined == config.num_taps,
        f"{OP}: the checkpoint reads {config.num_taps} taps"
        f"{', joined in one tensor' if has_joined_taps else ''}, got {len(given.taps)}",
    )
    check(
        given.target_tokens.ndim == 1 and given.num_rejected.ndim == 1,
        f"{OP}: `target_tokens` and `num_rejected` must be 1-D, got shapes "
        f"{list(given.target_tokens.shape)} and {list(given.num_rejected.shape)}",
    )
    T, B = given.num_rows, given.num_requests
    table = given.block_table
    check(table.ndim == 2, f"{OP}: `block_table` must be [B, max_blocks], got {list(table.shape)}")
    expected: list[tuple[str, Tensor, torch.dtype, tuple[int, ...]]] = [
        ("target_tokens", given.target_tokens, _id_dtype(given.target_tokens), (T,)),
        ("target_positions", given.target_positions, torch.int64, (T,)),
        ("query_start", given.query_start, torch.int32, (B + 1,)),
        ("num_rejected", given.num_rejected, torch.int32, (B,)),
        ("next_tokens", given.next_tokens, _id_dtype(given.next_tokens), (B,)),
        ("block_table", table, torch.int32, (B, table.shape[1])),
    ]
    for i, tap in enumerate(given.taps):
        expected.append((f"taps[{i}]", tap, dtype, (T, config.target_hidden_size * joined)))
    for name, tensor, of, shape in expected:
        check(
            tensor.device == device,
            f"{OP}: `{name}` must be on the drafter's device {device}, got {tensor.device}",
        )
        check_tensor(OP, name, tensor, of, *shape)


def _id_dtype(ids: Tensor) -> torch.dtype:
    """What ids must have that have this: serving engines have int32."""
    return torch.int32 if ids.dtype == torch.int32 else torch.int64


def check_contents(given: PassInputs, vocab_size: int, num_blocks: int, block_size: int) -> None:
    """Raise ValueError unless the values make sense. Waits for the device; for debugging.

    Args:
        given: With the shapes that `check_inputs` wants.
        vocab_size: V, of the embedding.
        num_blocks: In the cache.
        block_size: Positions in a block.
    """
    T, B = given.num_rows, given.num_requests
    starts, rejected = given.query_start.tolist(), given.num_rejected.tolist()
    check(
        starts[0] == 0 and sorted(starts) == starts and starts[-1] <= T,
        f"{OP}: `query_start` must ascend from 0 to at most T = {T}, got {starts}",
    )
    for b in range(B):
        rows = starts[b + 1] - starts[b]
        check(
            0 <= rejected[b] <= rows,
            f"{OP}: `num_rejected` of request {b} must be 0 to its {rows} rows, got {rejected[b]}",
        )
    num_rows = starts[-1]
    _check_range("target_tokens", given.target_tokens[:num_rows], 0, vocab_size)
    has_rows = given.query_start[1:] - given.num_rejected > given.query_start[:-1]
    _check_range("next_tokens", given.next_tokens[has_rows], 0, vocab_size)
    for b, own in enumerate(given.target_positions[:num_rows].tensor_split(starts[1:-1])):
        # Positions past the end draft nothing, which is no mistake.
        check(
            len(own) == 0 or (int(own[0]) >= 0 and bool((own.diff() == 1).all())),
            f"{OP}: `target_positions` of request {b} must be consecutive and not negative, got "
            f"{own.tolist()}",
        )
        if len(own) > 0:
            blocks = given.block_table[b, : int(own[-1]) // block_size + 1]
            _check_range(f"block_table[{b}]", blocks, -1, num_blocks)


def _check_range(name: str, values: Tensor, first: int, end: int) -> None:
    """Raise unless every value is at least `first` and below `end`."""
    bad = ((values < first) | (values >= end)).nonzero()
    if len(bad):
        where = tuple(bad[0].tolist())
        raise ValueError(
            f"{OP}: `{name}` must be {first} to {end - 1}, got {int(values[where])} at "
            f"{list(where)}"
        )
