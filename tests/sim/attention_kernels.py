"""The attention kernels as samples; see `project_kernels`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from attention_cases import attention_case, expected
from op_cases import Arguments
from p_eagle_cuda import _C, ops
from sim.buffers import Buffer
from sim.params import params_type
from sim.sample import BF16_ERROR, CSRC, FOLDER, Output, Run, Sample, source


def paged_attention(run: Run) -> None:
    """Three launches over one workspace, the third of which takes the first's result as its q.

    The first is causal over bfloat16, with requests that two, four and eight warps share, one of
    them divided among three blocks. The second has no rows; the order of the first and the third
    hangs on it. The third is of trees, windows and FP8, with two KV heads.
    """
    lens, rows, num_blocks = [900, 3, 130], [14, 1, 5], 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = attention_case(
            lens, rows, num_kv_heads=1, group=8, has_sinks=True, num_blocks=num_blocks
        )
        idle = attention_case([0, 0, 0], [0, 0, 0], num_kv_heads=1, group=8, num_blocks=num_blocks)
        third = attention_case(
            lens, rows, num_kv_heads=2, group=4, is_tree=True, window=700, num_blocks=num_blocks,
            cache_dtype=torch.float8_e4m3fn,
        )  # fmt: skip
    workspace = first["workspace"].clone()
    workspace[_partials(num_blocks) :] = 0xFF  # NaN, also in the padding of the counters
    buffer = Buffer.of_tensor("workspace", workspace, read_only=False)
    run.session.add(buffer)
    counters = buffer.tensor((num_blocks,), torch.int32)
    run.outputs.append(Output("counters", counters, torch.zeros(num_blocks), 0.0))

    out = _attend(run, "", first, buffer)
    _attend(run, " of the second launch", idle, buffer)
    third["q"] = torch.cat([expected(first, torch.float64), first["out"][sum(rows) :]])
    third["q"] = third["q"].view(first["q"].shape).bfloat16()
    _attend(run, " of the third launch", third, buffer, q=out)


def _partials(num_blocks: int) -> int:
    """The bytes of the counters, rounded up to a vector."""
    partials = _C.attention_workspace_bytes(num_blocks, 64) - num_blocks * 2 * 128 * 66 * 4
    return int(partials)


def _attend(
    run: Run, label: str, a: Arguments, workspace: Buffer, q: ctypes.c_void_p | None = None
) -> ctypes.c_void_p:
    """Launch, and return the result; `q` is where another launch makes it."""
    given = (
        "k_cache", "v_cache", "k_scale", "v_scale", "block_table", "row_start", "positions",
        "tree_mask", "sinks", "work",
    )  # fmt: skip
    pointers = {
        name: run.given(name + label, a[name]) for name in given if isinstance(a[name], Tensor)
    }
    n, result = int(a["row_start"][-1]), a["out"].double()
    result[:n] = expected(a, torch.float64)
    out = run.updated(f"out{label}", a["out"], result, BF16_ERROR)
    strides = {
        f"{cache}_{name}_stride": a[f"{cache}_cache"].stride(i)
        for cache in "kv"
        for i, name in enumerate(("block", "head", "row"))
    }
    num_cache_blocks, num_kv_heads, block_size, head_dim = a["k_cache"].shape
    params = params_type("PagedAttentionParams")(
        **pointers, **strides, q=q or run.given(f"q{label}", a["q"]), out=out,
        workspace=workspace.address, softmax_scale=a["softmax_scale"], window=a["window"],
        num_rows=len(a["q"]), num_requests=len(a["seq_lens"]), num_heads=a["q"].shape[1],
        num_kv_heads=num_kv_heads, head_dim=head_dim, num_cache_blocks=num_cache_blocks,
        block_size=block_size, max_blocks=a["block_table"].shape[1], num_blocks=3,
    )  # fmt: skip
    run.launch("launch_paged_attention_from_c", ctypes.byref(params), a["k_cache"].element_size())
    return out


def plan_attention(run: Run) -> None:
    """Three launches, the third of which takes the first's map as its requests' lengths.

    The second has no rows; the order of the first and the third hangs on it. There are more
    requests and segments than threads; some have more rows than a tile, others none, and the row
    starts of some go back.
    """
    B, num_heads, num_kv_heads, num_blocks = 300, 16, 2, 40
    numbers = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "max_keys": 3000}
    request = torch.arange(B)
    rows = request % 4
    rows[77], rows[-1] = 130, 40
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), rows.cumsum(0)])
    R = int(starts[-1]) - 3  # the last request's are cut off
    starts[100] -= 5
    lens = (request * 37) % 3100
    of_row = torch.searchsorted(starts[1:].contiguous(), torch.arange(R), right=True).clamp(
        max=B - 1
    )
    positions = (lens[of_row] - 6).clamp(min=0) + torch.arange(R) % 4

    def launch(
        label: str, row_start: Tensor, seq_lens: Tensor, *, is_tree: bool, window: int,
        made: ctypes.c_void_p | None = None,
    ) -> tuple[Tensor, ctypes.c_void_p]:  # fmt: skip
        size = _C.attention_work_size(R, B, num_heads // num_kv_heads, num_blocks)
        work = torch.full((size,), 77, dtype=torch.int32)
        plan = work.clone()
        ops.plan_attention(row_start, seq_lens, positions, *numbers.values(), window, is_tree, plan)
        written = run.updated(f"work{label}", work, plan, 0.0)
        params = params_type("PlanAttentionParams")(
            row_start=run.given(f"row_start{label}", row_start),
            seq_lens=made or run.given(f"seq_lens{label}", seq_lens),
            positions=run.given(f"positions{label}", positions), work=written, num_rows=R,
            num_requests=B, window=window, num_blocks=num_blocks, is_tree=is_tree, **numbers,
        )  # fmt: skip
        run.launch("launch_plan_attention_from_c", ctypes.byref(params))
        return plan, written

    plan, made = launch("", starts.int(), lens.int(), is_tree=False, window=0)
    launch(" of the second launch", torch.zeros_like(starts).int(), lens.int(), is_tree=False,
           window=0)  # fmt: skip
    launch(" of the third launch", starts.int(), plan[:B], is_tree=True, window=50, made=made)


_COMMON = ["ops.h", "common/launch.h", "common/reduce.cuh", "common/attention_layout.h"]
_PLANNER = [*_COMMON, "common/scan.cuh", "common/attention_work.cuh"]

SAMPLES: dict[str, Sample] = {
    "plan_attention": Sample(
        plan_attention,
        source("launch_plan_attention"),
        included=[CSRC / name for name in (*_PLANNER, "kernels/plan_attention.cu")],
        includes=(FOLDER, CSRC),
    ),
    "paged_attention": Sample(
        paged_attention,
        source("launch_paged_attention"),
        included=[
            CSRC / name
            for name in (
                *_PLANNER, "common/attention_tiles.cuh", "common/attention_softmax.cuh",
                "kernels/paged_attention_pieces.cuh", "kernels/paged_attention.cuh",
            )
        ],
        includes=(FOLDER, CSRC),
    ),
}  # fmt: skip
