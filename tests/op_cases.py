"""Valid calls of every op at toy sizes, with poison where an op must not look.

Each case holds the op's arguments by name, in the order of its schema. Rows past `num_rows` and
whatever else is out of bounds hold NaN; outputs start out as the sentinel, to see what was written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from p_eagle_cuda import _C, ops, reference
from sim.emulator import Settings

SENTINEL = 7.0
EMULATED_SMS = Settings().num_sms
R, N_REAL = 9, 6  # rows a buffer has, rows that exist
B, BLOCKS, BLOCK, NKV, NQ, D, H, HT, INTER, V = 2, 6, 16, 2, 4, 64, 128, 64, 192, 80
WORK_BLOCKS = 5  # thread blocks that share the attention
WORK_HEADER = 8  # elements of a map before its segments

Arguments = dict[str, Any]


def qkv_rope_cache(device: str, dtype: torch.dtype) -> Arguments:
    heads = NQ + 2 * NKV
    caches = torch.full((BLOCKS, NKV, BLOCK, 2 * D), SENTINEL, device=device).to(dtype)
    k_cache, v_cache = caches.split(D, dim=-1)
    x = _rows(device, dtype, H)
    return {
        "x": x,
        "norm_weight": _norm(device, dtype, H),
        "sum_squares": reference.sum_squares(x),
        "weight": _linear(device, dtype, heads * D, H),
        "weight_scale": None,
        "bias": _randn(device, dtype, heads * D),
        "mask_heads": torch.randn(heads * D, device=device, dtype=_wide(dtype)),
        "source_row": torch.tensor(
            [0, -1, -1, 1, 2, -1, 3, 4, 5], device=device, dtype=torch.int32
        ),
        "q_norm": _norm(device, dtype, D),
        "k_norm": _norm(device, dtype, D),
        "rope": _rope(device),
        "positions": torch.tensor([3, 4, 5, 20, 21, 22, 0, 0, 0], device=device),
        "slots": torch.tensor([19, 20, -1, 36, 37, 38, 90, 91, 92], device=device),
        "num_rows": _count(device),
        "k_scale": torch.ones(1, device=device),
        "v_scale": torch.ones(1, device=device),
        "eps": 1e-5,
        "q": _output(device, dtype, R, NQ, D),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "workspace": _workspace(device),
    }


def paged_attention(device: str, dtype: torch.dtype) -> Arguments:
    caches = torch.full((BLOCKS, NKV, BLOCK, 2 * D), float("nan"), device=device).to(dtype)
    block_table = torch.tensor([[3, 99], [1, 4]], device=device, dtype=torch.int32)
    for row, length in ((0, 6), (1, 23)):
        for start in range(0, length, BLOCK):
            block = int(block_table[row, start // BLOCK])
            used = min(BLOCK, length - start)
            caches[block, :, :used] = _randn(device, dtype, NKV, used, 2 * D)
    k_cache, v_cache = caches.split(D, dim=-1)
    arguments = {
        "q": _rows(device, dtype, NQ, D),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "k_scale": torch.ones(1, device=device),
        "v_scale": torch.ones(1, device=device),
        "block_table": block_table,
        "row_start": torch.tensor([0, 3, 6], device=device, dtype=torch.int32),
        "seq_lens": torch.tensor([6, 23], device=device, dtype=torch.int32),
        "positions": torch.tensor([3, 4, 5, 20, 21, 22, 0, 0, 0], device=device),
        "tree_mask": None,
        "sinks": torch.randn(NQ, device=device),
        "softmax_scale": D**-0.5,
        "window": 0,
        "work": work_map(R, B, NQ // NKV, device),
        "workspace": workspace(D, device),
        "out": _output(device, dtype, R, NQ * D),
    }
    plan(arguments)
    return arguments


def work_map(num_rows: int, num_requests: int, group: int, device: str) -> Tensor:
    """A map that nobody has written yet."""
    size = _C.attention_work_size(num_rows, num_requests, group, WORK_BLOCKS)
    return torch.full((size,), int(SENTINEL), dtype=torch.int32, device=device)


def workspace(head_dim: int, device: str) -> Tensor:
    size = _C.attention_workspace_bytes(WORK_BLOCKS, head_dim)
    return torch.zeros(size, dtype=torch.uint8, device=device)


def plan(arguments: Arguments) -> None:
    """Write the map of a call of paged_attention anew, by the CPU."""
    inputs = [arguments[name].cpu() for name in ("row_start", "seq_lens", "positions")]
    k_cache, work = arguments["k_cache"], arguments["work"].cpu()
    ops.plan_attention(
        *inputs, arguments["q"].shape[1], k_cache.shape[1],
        arguments["block_table"].shape[1] * k_cache.shape[2], arguments["window"],
        arguments["tree_mask"] is not None, work,
    )  # fmt: skip
    arguments["work"].copy_(work)


def plan_attention(device: str, dtype: torch.dtype) -> Arguments:
    return {
        "row_start": torch.tensor([0, 3, 6], device=device, dtype=torch.int32),
        "seq_lens": torch.tensor([6, 1023], device=device, dtype=torch.int32),
        "positions": torch.tensor([3, 4, 5, 1020, 1021, 1022, 0, 0, 0], device=device),
        "num_heads": NQ,
        "num_kv_heads": NKV,
        "max_keys": 4096,
        "window": 0,
        "is_tree": False,
        "work": work_map(R, B, NQ // NKV, device),
    }


def embed_norm_concat(device: str, dtype: torch.dtype) -> Arguments:
    source_row = torch.tensor([0, 1, -1, 2, -1, -1, 3, 4, -1], device=device, dtype=torch.int32)
    hidden = _rows(device, dtype, H)
    hidden[source_row < 0] = float("nan")
    return {
        "token_ids": torch.randint(V, (R,), device=device),
        "source_row": source_row,
        "num_rows": _count(device),
        "embedding": _randn(device, dtype, V, H),
        "hidden": hidden,
        "mask_hidden": _randn(device, dtype, H),
        "embed_weight": _norm(device, dtype, H),
        "hidden_weight": _norm(device, dtype, H),
        "eps": 1e-5,
        "norm_before_residual": False,
        "out": _output(device, dtype, R, 2 * H),
        "residual": _output(device, dtype, R, H),
    }


def project_taps(device: str, dtype: torch.dtype) -> Arguments:
    taps = [_randn(device, dtype, 5, HT) for _ in range(3)]
    for tap in taps:
        tap[4] = float("nan")  # a rejected row: nothing refers to it
    return {
        "taps": taps,
        "source_row": torch.tensor(
            [0, 1, -1, 3, -1, -1, 4, 4, 4], device=device, dtype=torch.int32
        ),
        "num_rows": _count(device),
        "weight": _linear(device, dtype, H, 3 * HT),
        "weight_scale": None,
        "input_norm": None,
        "fc_norms": _norm(device, dtype, 3, HT),
        "eps": 1e-5,
        "out": _output(device, dtype, R, H),
        "workspace": _workspace(device),
    }


def linear_residual(device: str, dtype: torch.dtype) -> Arguments:
    residual = _rows(device, dtype, H)
    residual[N_REAL:] = SENTINEL
    return {
        "x": _rows(device, dtype, INTER),
        "weight": _linear(device, dtype, H, INTER),
        "weight_scale": None,
        "bias": _randn(device, dtype, H),
        "num_rows": _count(device),
        "residual": residual,
        "sum_squares": _output(device, _wide(dtype), H // 64, R),
        "workspace": _workspace(device),
    }


def norm_swiglu(device: str, dtype: torch.dtype) -> Arguments:
    x = _rows(device, dtype, H)
    return {
        "x": x,
        "norm_weight": _norm(device, dtype, H),
        "sum_squares": reference.sum_squares(x),
        "gate_up": _linear(device, dtype, 2 * INTER, H),
        "gate_up_scale": None,
        "num_rows": _count(device),
        "eps": 1e-5,
        "out": _output(device, dtype, R, INTER),
        "workspace": _workspace(device),
    }


def lm_head_topk(device: str, dtype: torch.dtype) -> Arguments:
    x = _rows(device, dtype, H)
    return {
        "x": x,
        "sum_squares": reference.sum_squares(x),
        "sample_rows": torch.tensor([0, 2, -1, 5], device=device, dtype=torch.int32),
        "norm_weight": _norm(device, dtype, H),
        "weight": _linear(device, dtype, V, H),
        "weight_scale": None,
        "vocab_subset": torch.arange(V, device=device, dtype=torch.int32)[1::2].contiguous(),
        "draft_to_target": torch.arange(V, device=device) * 3,
        "noise_keys": torch.tensor([10, -(2**40), 10, 2**63 - 1], device=device),
        "noise_positions": torch.tensor([3, 4, 5, 2**33], device=device),
        "temperature": torch.tensor([0.5, 0.0, 1.0, 2.0], device=device),
        "eps": 1e-5,
        "ids": torch.full((4, 3), int(SENTINEL), device=device),
        "logits": _output(device, _wide(dtype), 4, 3),
        "lse": _output(device, _wide(dtype), 4),
        "workspace": _workspace(device, num_samples=4, top_k=3),
    }


def prepare_inputs(device: str, dtype: torch.dtype) -> Arguments:
    """Two requests of 4 and 1 target rows, K = 3, two drafts of the first rejected; with a map."""

    def output(size: int, dtype: torch.dtype) -> Tensor:
        return torch.full((size,), int(SENTINEL), device=device, dtype=dtype)

    rows = 5 + 2 * 2
    work = work_map(rows, 2, NQ // NKV, device)
    work[:WORK_HEADER] = 0  # it has the counter of arrivals
    int32 = {"device": device, "dtype": torch.int32}
    return {
        "target_tokens": torch.tensor([5, 6, 7, 8, 9], device=device),
        "target_positions": torch.tensor([14, 15, 16, 17, 0], device=device),
        "query_start": torch.tensor([0, 4, 5], **int32),
        "num_rejected": torch.tensor([2, 0], **int32),
        "next_tokens": torch.tensor([40, 41], device=device),
        "block_table": torch.tensor([[3, 5], [1, 0]], **int32),
        "num_speculative_tokens": 3,
        "mask_token_id": V - 1,
        "block_size": BLOCK,
        "max_position": 64,
        "token_ids": output(rows, torch.int64),
        "positions": output(rows, torch.int64),
        "slots": output(rows, torch.int64),
        "source_row": output(rows, torch.int32),
        "row_start": output(3, torch.int32),
        "seq_lens": output(2, torch.int32),
        "sample_rows": output(6, torch.int32),
        "work": work,
        "num_heads": NQ,
        "num_kv_heads": NKV,
        "window": 0,
    }


def gather_taps(device: str, dtype: torch.dtype) -> Arguments:
    a = project_taps(device, dtype)
    names = ("taps", "source_row", "num_rows", "input_norm", "fc_norms", "eps")
    return {name: a[name] for name in names} | {"out": _output(device, dtype, R, 3 * HT)}


def norm_rows(device: str, dtype: torch.dtype) -> Arguments:
    a = norm_swiglu(device, dtype)
    names = ("x", "norm_weight", "sum_squares", "num_rows", "eps")
    return {name: a[name] for name in names} | {"out": _output(device, dtype, R, H)}


def gate_rows(device: str, dtype: torch.dtype) -> Arguments:
    return {
        "gate_up": _rows(device, dtype, 2 * INTER),
        "num_rows": _count(device),
        "out": _output(device, dtype, R, INTER),
    }


def rope_cache(device: str, dtype: torch.dtype) -> Arguments:
    a = qkv_rope_cache(device, dtype)
    names = (
        "q_norm", "k_norm", "rope", "positions", "slots", "num_rows", "k_scale", "v_scale", "eps",
        "q", "k_cache", "v_cache",
    )  # fmt: skip
    heads = _rows(device, dtype, (NQ + 2 * NKV) * D)
    return {"heads": heads} | {name: a[name] for name in names}


CASES: dict[str, Callable[[str, torch.dtype], Arguments]] = {
    f.__name__: f
    for f in (
        prepare_inputs, project_taps, embed_norm_concat, qkv_rope_cache, plan_attention,
        paged_attention, linear_residual, norm_swiglu, lm_head_topk, gather_taps, norm_rows,
        gate_rows, rope_cache,
    )
}  # fmt: skip

# What an op writes for its caller. Of the other arguments no byte may change, but for workspaces.
OUTPUTS = {
    "prepare_inputs": (
        "token_ids", "positions", "slots", "source_row", "row_start", "seq_lens", "sample_rows",
        "work",
    ),
    "project_taps": ("out",),
    "embed_norm_concat": ("out", "residual"),
    "qkv_rope_cache": ("q", "k_cache", "v_cache"),
    "plan_attention": ("work",),
    "paged_attention": ("out",),
    "linear_residual": ("residual", "sum_squares"),
    "norm_swiglu": ("out",),
    "lm_head_topk": ("ids", "logits", "lse"),
    "gather_taps": ("out",),
    "norm_rows": ("out",),
    "gate_rows": ("out",),
    "rope_cache": ("q", "k_cache", "v_cache"),
}  # fmt: skip

# What an op may leave anything in.
SCRATCH = {"workspace"}


def _randn(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype)


def _rows(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    x = _randn(device, dtype, R, *shape)
    x[N_REAL:] = float("nan")
    return x


def _linear(device: str, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    return (torch.randn(rows, columns, device=device) / columns**0.5).to(dtype)


def _norm(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return (1 + 0.1 * torch.randn(*shape, device=device)).to(dtype)


def _output(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.full(shape, SENTINEL, device=device, dtype=dtype)


def _count(device: str) -> Tensor:
    return torch.tensor([N_REAL], device=device, dtype=torch.int32)


def _rope(device: str) -> Tensor:
    angles = torch.outer(torch.arange(64.0), 0.7 ** torch.arange(D // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(device)


def _workspace(device: str, **head: int) -> Tensor:
    """Of the linear layers, or with the sizes of an `lm_head_topk` of that."""
    if device == "cuda":
        allocate = ops.lm_head_workspace if head else ops.linear_workspace
        return allocate(torch.device(device), **head)
    count = _C.lm_head_workspace_bytes if head else _C.linear_workspace_bytes
    return torch.zeros(count(EMULATED_SMS, **head), dtype=torch.uint8)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
