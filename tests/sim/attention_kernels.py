"""The attention kernels as samples; see `project_kernels`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attention_cases import attention_case, expected
from op_cases import Arguments
from p_eagle_cuda import _C, ops
from sim.buffers import Buffer
from sim.params import params_type
from sim.sample import BF16_ERROR, Output, Run, Sample, source

NUM_BLOCKS, HEAD_DIM = 4, 64


def paged_attention(run: Run) -> None:
    """Four launches over one workspace, the third of which takes the first's result as its q.

    The first is causal, with requests that two, four and eight warps share, one of them divided
    among three blocks, the last of which it fills. The second has no rows; the order of the first
    and the third hangs on it. The third is of trees and windows, with two KV heads. The fourth has
    a row whose keys end where a warp's share does, and a narrow window. Scores are large, so that
    single keys show.
    """
    first, idle, third, fourth = _chain()
    buffer = _workspace(run)
    out = _attend(run, "", first, buffer)
    _attend(run, " of the second launch", idle, buffer)
    _attend(run, " of the third launch", third, buffer, q=out)
    _attend(run, " of the fourth launch", fourth, buffer)


@functools.cache
def _chain() -> tuple[Arguments, ...]:
    """The arguments of the four launches, the same for every planted bug."""
    lens, rows = [1340, 3, 130], [14, 1, 5]
    one_head = {"num_kv_heads": 1, "group": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = _case(lens, rows, has_sinks=True, **one_head)
        idle = _case([0, 0, 0], [0, 0, 0], **one_head)
        third = _case(lens, rows, num_kv_heads=2, group=4, is_tree=True, window=700)
        fourth = _case([65, 40], [3, 2], window=20, **one_head)
    third["q"] = _result(first).view(first["q"].shape).bfloat16()
    return first, idle, third, fourth


def paged_attention_bf16(run: Run) -> None:
    """A cache of the working dtype; one request divided among three blocks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a = _case([900, 3], [14, 1], num_kv_heads=1, group=8, cache_dtype=torch.bfloat16)
    _attend(run, "", a, _workspace(run))


def _case(lens: Sequence[int], rows: Sequence[int], **options: Any) -> Arguments:
    defaults = {"cache_dtype": torch.float8_e4m3fn, "num_blocks": NUM_BLOCKS, "q_scale": 4.0}
    a = attention_case(lens, rows, **(defaults | options))
    a["v_scale"].fill_(2.0)
    return a


def _result(a: Arguments) -> Tensor:
    """What `out` must hold after the call; rows past the last one stay as they are."""
    result = a["out"].double()
    result[: int(a["row_start"][-1])] = expected(a, torch.float64)
    return result


def _workspace(run: Run) -> Buffer:
    """Zero counters, which must be zero at the end, and NaN."""
    size = _C.attention_workspace_bytes(NUM_BLOCKS, HEAD_DIM)
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8)
    workspace[: 4 * NUM_BLOCKS] = 0
    buffer = Buffer.of_tensor("workspace", workspace, read_only=False)
    run.session.add(buffer)
    counters = buffer.tensor((NUM_BLOCKS,), torch.int32)
    run.outputs.append(Output("counters", counters, torch.zeros(NUM_BLOCKS), 0.0))
    return buffer


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
    if "result" not in a:
        a["result"] = _result(a)
    out = run.updated(f"out{label}", a["out"], a["result"], BF16_ERROR)
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
        block_size=block_size, max_blocks=a["block_table"].shape[1], num_blocks=NUM_BLOCKS,
    )  # fmt: skip
    run.launch("launch_paged_attention_from_c", ctypes.byref(params))
    return out


def plan_attention(run: Run) -> None:
    """Three launches, the third of which takes the first's map as its requests' lengths.

    The second has no rows; the order of the first and the third hangs on it. There are more
    requests and segments than threads; some have more rows than a tile, others none, and the row
    starts of some go back.
    """
    B, group, num_blocks = 400, 8, 40
    numbers = {"num_kv_heads": 2, "max_keys": 3000}
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
        size = _C.attention_work_size(R, B, group, num_blocks)
        work = torch.full((size,), 77, dtype=torch.int32)
        plan = work.clone()
        ops.plan_attention(
            row_start, seq_lens, positions, 2 * group, *numbers.values(), window, is_tree, plan
        )
        written = run.updated(f"work{label}", work, plan, 0.0)
        params = params_type("PlanAttentionParams")(
            row_start=run.given(f"row_start{label}", row_start),
            seq_lens=made or run.given(f"seq_lens{label}", seq_lens),
            positions=run.given(f"positions{label}", positions), work=written, num_rows=R,
            num_requests=B, group=group, window=window, num_blocks=num_blocks, is_tree=is_tree,
            **numbers,
        )  # fmt: skip
        run.launch("launch_plan_attention_from_c", ctypes.byref(params))
        return plan, written

    plan, made = launch("", starts.int(), lens.int(), is_tree=False, window=0)
    launch(" of the second launch", torch.zeros_like(starts).int(), lens.int(), is_tree=False,
           window=0)  # fmt: skip
    launch(" of the third launch", starts.int(), plan[:B], is_tree=True, window=50, made=made)


SAMPLES = {
    run.__name__: Sample(run, source(f"launch_{run.__name__}"))
    for run in (plan_attention, paged_attention, paged_attention_bf16)
}
