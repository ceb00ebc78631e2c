"""A batch with more target rows than a pass may have, cut into passes on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from p_eagle_cuda.buffers import Buffers, PassInputs
from p_eagle_cuda.drafter_pass import Drafts


def run_in_chunks(
    run: Callable[[PassInputs, int], Drafts],
    given: PassInputs,
    k: int,
    chunk_rows: int,
    buffers: Buffers,
) -> Drafts:
    """Run passes of at most `chunk_rows` target rows, one after the other.

    Each pass has the rows of a range; a request with none in it has no rows in the pass. A request
    that goes on in the next range takes that range's first token after its last row here. What it
    drafts here is not used, and the keys and values of these mask rows are replaced by the rows
    that come. The host does not know which requests lie where, and need not.

    Args:
        run: Runs a pass.
        given: The batch.
        k: Tokens to draft for each request.
        chunk_rows: Most target rows of a pass.
        buffers: Of the drafter.

    Returns:
        The drafts of each request from the last pass in which it has rows.
    """
    T, B = given.num_rows, given.num_requests
    if chunk_rows >= T:
        return run(given, k)
    N = B * k
    tops = (buffers.top_ids[:N], buffers.top_logits[:N], buffers.lse[:N])
    merged = (buffers.merged_ids[:N], buffers.merged_logits[:N], buffers.merged_lse[:N])
    start, rejected = buffers.piece_start[: B + 1], buffers.piece_rejected[:B]
    following = buffers.piece_tokens[:B]
    for first in range(0, T, chunk_rows):
        end = min(first + chunk_rows, T)
        # Rows before `num_valid_end` are valid. What a request has in the range is valid up to
        # there, and rejected from there on.
        torch.sub(given.query_start[1:], given.num_rejected, out=rejected)
        following.copy_(given.next_tokens)
        if end < T:
            goes_on = rejected > end
            following.copy_(torch.where(goes_on, given.target_tokens[end], following))
        torch.clamp(given.query_start, first, end, out=start)
        torch.minimum(torch.maximum(rejected, start[:-1]), start[1:], out=rejected)
        torch.sub(start[1:], rejected, out=rejected)
        start.sub_(first)
        run(
            PassInputs(
                target_tokens=given.target_tokens[first:end],
                target_positions=given.target_positions[first:end],
                taps=tuple(tap[first:end] for tap in given.taps),
                query_start=start,
                num_rejected=rejected,
                next_tokens=following,
                block_table=given.block_table,
            ),
            k,
        )
        if first == 0:
            for kept, new in zip(merged, tops, strict=True):
                kept.copy_(new)
        else:
            has_rows = buffers.row_start[1 : B + 1] > buffers.row_start[:B]
            has_rows = has_rows.repeat_interleave(k, output_size=N)
            for kept, new in zip(merged, tops, strict=True):
                mask = has_rows[:, None] if new.ndim == 2 else has_rows
                torch.where(mask, new, kept, out=kept)
    return Drafts.of(*merged, k)
