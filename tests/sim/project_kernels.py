"""The project's kernels as samples: one function each, and its entry in `SAMPLES`.

A function makes the buffers, queues launches that would show what a bug does - above all a launch
that depends on one before - and says what must come out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from p_eagle_cuda import _C, ops, reference
from sim.params import params_type
from sim.sample import BF16_ERROR, Run, Sample, randn, source


def prepare_inputs(run: Run) -> None:
    """Three launches, the third of which takes the first's rows as its target rows.

    The second has no requests; the order of the first and the third hangs on it. The third has a
    few of the requests only. Positions of the first go past the last one allowed, those of the
    third past the columns of the block table. All write maps of their attention.
    """
    group, num_kv_heads, window, num_blocks = 4, 2, 9, 6

    def launch(
        label: str,
        inputs: dict[str, Tensor],
        made: dict[str, ctypes.c_void_p],
        max_position: int = 590,
    ) -> tuple[reference.PreparedInputs, dict[str, ctypes.c_void_p]]:
        """Returns the rows; `made` are the inputs that another launch makes."""
        numbers = {
            "num_speculative_tokens": 3, "mask_token_id": 5000, "block_size": 2,
            "max_position": max_position,
        }  # fmt: skip
        rows = reference.prepare_inputs(**inputs, **numbers)
        pointers = {
            name: run.given(name + label, x) for name, x in inputs.items() if name not in made
        }
        # Filled with 77, which no output is; what a buffer starts out as is -1, which some are.
        outputs = {
            name: run.updated(name + label, torch.full_like(x, 77), x, 0.0)
            for name, x in rows._asdict().items()
        }
        R, (B, max_blocks) = len(rows.token_ids), inputs["block_table"].shape
        max_keys = max_blocks * numbers["block_size"]
        size = _C.attention_work_size(R, B, group, num_blocks)
        work = torch.full((size,), 77, dtype=torch.int32)
        work[:8] = 0  # the header
        plan = ops.plan_attention(
            rows.row_start, rows.seq_lens, rows.positions, group * num_kv_heads, num_kv_heads,
            max_keys, window, False, work.clone(),
        )  # fmt: skip
        attention = params_type("PlanAttentionParams")(
            **{name: outputs[name] for name in ("row_start", "seq_lens", "positions")},
            work=run.updated(f"work{label}", work, plan, 0.0), num_rows=R, num_requests=B,
            group=group, num_kv_heads=num_kv_heads, max_keys=max_keys, window=window,
            num_blocks=num_blocks,
        )  # fmt: skip
        params = params_type("PrepareInputsParams")(
            **pointers, **made, **outputs, **numbers, max_rows=R,
            num_target_rows=len(inputs["target_tokens"]), num_requests=B, max_blocks=max_blocks,
            attention=attention,
        )  # fmt: skip
        run.launch("launch_prepare_inputs_from_c", ctypes.byref(params))
        return rows, outputs

    inputs = _ragged_requests(block_size=2)
    rows, outputs = launch("", inputs, {})
    nothing = {name: x[: name == "query_start"] for name, x in inputs.items()}
    launch(" of the second launch", nothing, {})
    few = {name: inputs[name][:20] for name in ("num_rejected", "next_tokens", "block_table")}
    chained = {
        "target_tokens": rows.token_ids, "target_positions": rows.positions,
        "query_start": rows.row_start[:21],
    }  # fmt: skip
    made = zip(chained, (outputs[x] for x in ("token_ids", "positions", "row_start")), strict=True)
    launch(" of the third launch", few | chained, dict(made), max_position=1000)


def _ragged_requests(block_size: int) -> dict[str, Tensor]:
    """What prepare_inputs takes: a tile of requests and a bit, at positions below 600.

    Request 10 comes to the end of the block table. Request 100 has more columns of it than a warp
    looks at together, two of them without a block, which the same lane looks at. The last has more
    rows than the target.
    """
    B, max_position = 262, 600
    request = torch.arange(B)
    lengths, starts = request % 3, request * 7 % max_position
    starts[10] = max_position - 1
    lengths[100], starts[100] = 590, 1
    lengths[-1], starts[-1] = 2, 580
    query_start = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    row = torch.arange(int(query_start[-1]))
    of_row = torch.repeat_interleave(request, lengths)
    positions = starts[of_row] + row - query_start[of_row]
    query_start[-1] += 3
    block_table = (11 * request[:, None] + torch.arange(max_position // block_size)) % 1000
    block_table[20::2, 0] = -1  # before most requests' first position
    block_table[request[::5], starts[::5] // block_size] = -1
    block_table[100, [0, 261, 261 + 32]] = torch.tensor([0, -1, -1])
    return {
        "target_tokens": row + 1,
        "target_positions": positions,
        "query_start": query_start.int(),
        "num_rejected": 2 * (request % 7 == 4).int(),
        "next_tokens": request + 6000,
        "block_table": block_table.int(),
    }


def prune_rows(run: Run) -> None:
    """Three launches, the third of which prunes what the first has left.

    The first has more requests than a block has threads, some without rows; the last row of all has
    no slot. The second has no rows; the order of the first and the third hangs on it. All write
    maps.
    """
    group, num_kv_heads, num_blocks, longest = 4, 2, 6, 700

    def launch(
        label: str, x: Tensor, positions: Tensor, lengths: Tensor, K: int,
        made: Sequence[ctypes.c_void_p] = (),
    ) -> tuple[reference.PrunedRows, list[ctypes.c_void_p]]:  # fmt: skip
        """Returns what comes out; `made` are x and positions, if another launch makes them."""
        B = len(lengths)
        row_start = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
        sampled = row_start[1:, None] - K + torch.arange(K)
        sampled[lengths == 0] = -1
        sampled[-1, -1] = -1
        sample_rows, seq_lens = sampled.int().flatten(), torch.full((B,), longest).int()
        pruned = reference.prune_rows(x, positions, row_start, sample_rows)
        outputs = [
            run.output(f"out{label}", x.dtype, pruned.x, 0.0),
            run.output(f"positions{label}", torch.int64, pruned.positions, 0.0),
            *(
                run.updated(f"{name}{label}", torch.full_like(expected, 77), expected, 0.0)
                for name, expected in (
                    ("row_start", pruned.row_start), ("sample_rows", pruned.sample_rows)
                )
            ),
        ]  # fmt: skip
        N = B * K
        work = torch.full((_C.attention_work_size(N, B, group, num_blocks),), 77).int()
        work[:8] = 0  # the header
        kept = torch.zeros(N, dtype=torch.int64)
        kept[: len(pruned.positions)] = pruned.positions
        plan = ops.plan_attention(
            pruned.row_start, seq_lens, kept, group * num_kv_heads, num_kv_heads, longest, 0,
            False, work.clone(),
        )  # fmt: skip
        attention = params_type("PlanAttentionParams")(
            row_start=outputs[2], seq_lens=run.given(f"seq_lens{label}", seq_lens),
            positions=outputs[1], work=run.updated(f"work{label}", work, plan, 0.0), num_rows=N,
            num_requests=B, group=group, num_kv_heads=num_kv_heads, max_keys=longest,
            num_blocks=num_blocks,
        )  # fmt: skip
        x_pointer, positions_pointer = made or (
            run.given(f"x{label}", x), run.given(f"given positions{label}", positions)
        )  # fmt: skip
        params = params_type("PruneRowsParams")(
            x=x_pointer, positions=positions_pointer,
            row_start=run.given(f"given row_start{label}", row_start),
            sample_rows=run.given(f"given sample_rows{label}", sample_rows), out=outputs[0],
            pruned_positions=outputs[1], pruned_row_start=outputs[2],
            pruned_sample_rows=outputs[3], num_rows=len(x), num_requests=B, num_kept=K,
            row_bytes=x.shape[1] * x.element_size(), attention=attention,
        )  # fmt: skip
        run.launch("launch_prune_rows_from_c", ctypes.byref(params))
        return pruned, outputs

    lengths = torch.tensor([0 if b % 5 == 3 else 2 for b in range(132)])
    positions = 10 + torch.arange(int(lengths.sum()))
    x = randn(len(positions), 16, dtype=torch.bfloat16)
    first, outputs = launch("", x, positions, lengths, 1)
    launch(" of the second launch", x, positions, torch.zeros(3).long(), 2)
    lengths = torch.tensor([5, 0, 3, 4])
    launch(" of the third launch", first.x, first.positions, lengths, 3, outputs[:2])


def embed_norm_concat(run: Run) -> None:
    """Three launches, the third of which takes the first's residual as its hidden states.

    The second has fewer rows and nothing to do with them. So the order of the first and the third
    hangs on what the second's surplus blocks do.
    """
    dtype, rows, H, V, eps = torch.bfloat16, 5, 1048, 11, 1e-2
    embedding, mask_hidden = randn(V, H, dtype=dtype), randn(1, H, dtype=dtype)[0]
    weights = 1 + randn(2, H, dtype=dtype) / 4
    token_ids = torch.tensor([3, 0, V - 1, 3, 7])
    source_row = torch.tensor([0, 1, -1, 2, -1], dtype=torch.int32)
    hidden = randn(rows, H, dtype=dtype)
    constants = {
        "token_ids": run.given("token_ids", token_ids),
        "source_row": run.given("source_row", source_row),
        "embedding": run.given("embedding", embedding),
        "mask_hidden": run.given("mask_hidden", mask_hidden),
        "embed_weight": run.given("embed_weight", weights[0]),
        "hidden_weight": run.given("hidden_weight", weights[1]),
    }
    hidden[source_row < 0] = torch.nan  # must not be read
    first_hidden = run.given("hidden", hidden)

    def launch(label: str, n: int, x: Tensor, x_pointer: ctypes.c_void_p) -> ctypes.c_void_p:
        """Returns the residual; its rows are those of `x`, except for mask rows."""
        embed_norm = _rms_norm(embedding[token_ids], weights[0], eps)
        residual = torch.where(source_row[:, None] < 0, mask_hidden, x)
        out = torch.cat([embed_norm, _rms_norm(residual, weights[1], eps)], 1)
        out_pointer = run.output(f"out{label}", dtype, out[:n], BF16_ERROR)
        residual_pointer = run.output(f"residual{label}", dtype, residual[:n], 0.0)
        count = run.given(f"num_rows{label}", torch.tensor([n], dtype=torch.int32))
        params = params_type("EmbedNormConcatParams")(
            **constants, num_rows=count, hidden=x_pointer, out=out_pointer,
            residual=residual_pointer, max_rows=rows, hidden_size=H, vocab_size=V, eps=eps,
        )  # fmt: skip
        run.launch("launch_embed_norm_concat_from_c", ctypes.byref(params), 0)
        return residual_pointer

    residual_pointer = launch("", rows, hidden, first_hidden)
    launch(" of the second launch", rows - 2, hidden, first_hidden)
    launch(" of the third launch", rows, hidden, residual_pointer)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


SAMPLES = {
    run.__name__: Sample(run, source(f"launch_{run.__name__}"))
    for run in (prepare_inputs, prune_rows, embed_norm_concat)
}
