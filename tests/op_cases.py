"""Valid calls of every op at toy sizes, with poison where an op must not look.

Each case holds the op's arguments by name, in the order of its schema. Rows past `num_rows` and
whatever else is out of bounds hold NaN; outputs start out as the sentinel, to see what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from p_eagle_cuda import _C, ops, reference
from p_eagle_cuda.tree import topology
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
        **_NOT_FP8,
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
        "num_heads": NQ, "num_kv_heads": NKV, "max_keys": 4096, "window": 0, "is_tree": False,
        "work": work_map(R, B, NQ // NKV, device),
    }  # fmt: skip


def embed_norm_concat(device: str, dtype: torch.dtype) -> Arguments:
    source_row = torch.tensor([0, 1, -1, 2, -1, -1, 3, 4, -1], device=device, dtype=torch.int32)
    hidden = _rows(device, dtype, H)
    hidden[source_row < 0] = float("nan")
    return {
        "token_ids": torch.randint(V, (R,), device=device), "source_row": source_row,
        "num_rows": _count(device), "embedding": _randn(device, dtype, V, H), "hidden": hidden,
        "mask_hidden": _randn(device, dtype, H), "embed_weight": _norm(device, dtype, H),
        "hidden_weight": _norm(device, dtype, H), "eps": 1e-5, "norm_before_residual": False,
        "out": _output(device, dtype, R, 2 * H), "residual": _output(device, dtype, R, H),
    }  # fmt: skip


def project_taps(device: str, dtype: torch.dtype) -> Arguments:
    taps = [_randn(device, dtype, 5, HT) for _ in range(3)]
    for tap in taps:
        tap[4] = float("nan")  # a rejected row: nothing refers to it
    return {
        "taps": taps,
        "source_row": torch.tensor([0, 1, -1, 3, -1, -1, 4, 4, 4], device=device).int(),
        "num_rows": _count(device),
        "weight": _linear(device, dtype, H, 3 * HT),
        **_NOT_FP8,
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
        **_NOT_FP8,
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
        "fp8_activations": False,
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
        "token_ids": output(rows, torch.int64), "positions": output(rows, torch.int64),
        "slots": output(rows, torch.int64), "source_row": output(rows, torch.int32),
        "row_start": output(3, torch.int32), "seq_lens": output(2, torch.int32),
        "sample_rows": output(6, torch.int32), "work": work, "num_heads": NQ, "num_kv_heads": NKV,
        "window": 0,
    }  # fmt: skip


def prune_rows(device: str, dtype: torch.dtype) -> Arguments:
    """Three requests of 5, 0 and 4 rows, K = 3, so that 6 are kept; with a map."""
    int32, map_of = {"device": device, "dtype": torch.int32}, plan_attention(device, dtype)
    x, work = _randn(device, dtype, R, H), work_map(9, 3, NQ // NKV, device)
    x[[0, 1, 5]] = float("nan")
    work[:WORK_HEADER] = 0  # it has the counter of arrivals
    return {
        "x": x,
        "positions": torch.tensor([-9, -9, 5, 6, 7, -9, 1021, 1022, 1023], device=device),
        "row_start": torch.tensor([0, 5, 5, 9], **int32),
        "sample_rows": torch.tensor([2, 3, 4, -1, -1, -1, 6, 7, -1], **int32),
        "seq_lens": torch.tensor([8, 0, 1023], **int32),
        "out": _output(device, dtype, 9, H),
        **_filled(device, torch.int64, ["pruned_positions"], 9),
        **_filled(device, torch.int32, ["pruned_row_start"], 4),
        **_filled(device, torch.int32, ["pruned_sample_rows"], 9),
        "work": work,
        **{name: map_of[name] for name in ("num_heads", "num_kv_heads", "max_keys", "window")},
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


def gemm(device: str, dtype: torch.dtype) -> Arguments:
    a = linear_residual(device, dtype)
    names = ("x", "weight", "bias", "num_rows")
    out = _output(device, dtype, R, H)
    return {name: a[name] for name in names} | {"out": out, "workspace": _workspace(device)}


def gemm_residual(device: str, dtype: torch.dtype) -> Arguments:
    a = linear_residual(device, dtype)
    return {name: x for name, x in a.items() if name not in ("weight_scale", "fp8_activations")}


def gemm_swiglu(device: str, dtype: torch.dtype) -> Arguments:
    a = norm_swiglu(device, dtype)
    return {name: a[name] for name in ("x", "gate_up", "num_rows", "out", "workspace")}


def build_tree(device: str, dtype: torch.dtype) -> Arguments:
    """Two requests, K = 3, four entries of which some do not exist; drawn into a shape."""
    wide, N = _wide(dtype), 7
    logits = torch.randn(6, 4, device=device, dtype=wide).sort(descending=True).values
    logits[1, 2] = float("nan")
    ids = torch.arange(24, device=device).view(6, 4)
    ids[2, 1] = V
    shape = topology([(0,), (1,), (0, 0), (0, 1), (1, 2), (0, 0, 0), (0, 0, 2)])
    return {
        "ids": ids,
        "logits": logits,
        "lse": logits.nan_to_num().logsumexp(1),
        "root_tokens": torch.tensor([50, 51], device=device),
        "root_positions": torch.tensor([9, 2**33], device=device),
        "shape_parents": shape.parents.to(device),
        "shape_ranks": shape.ranks.to(device),
        "budgets": torch.tensor([7, 4], device=device, dtype=torch.int32),
        "noise_keys": torch.tensor([5, -(2**40)], device=device),
        "temperature": torch.tensor([0.7, 0.0], device=device),
        "step_costs": None,
        "log_discount": 0.0,
        "vocab_size": V,
        **_filled(device, torch.int64, ["candidates"], 2, N),
        **_filled(device, torch.int32, ["parents", "depths"], 2, N),
        **_filled(device, torch.int64, TREE_LINKS, 2, N),
        **_filled(device, torch.int32, ["num_nodes"], 2),
    }


TREE_LINKS = ["next_token", "next_sibling", "retrieve_index", "mask", "positions"]


def verify(device: str, dtype: torch.dtype) -> Arguments:
    """Three requests of 4, 0 and 3 rows, one of them at temperature 0; a row of nobody."""
    wide, N, k = _wide(dtype), 4, 3
    logits = torch.randn(8, V, device=device).to(dtype)
    logits[7] = float("nan")
    ids = torch.arange(3 * (N - 1) * k, device=device).view(-1, k)
    return {
        "logits": logits,
        "row_start": torch.tensor([0, 4, 4, 7], device=device, dtype=torch.int32),
        "candidates": torch.tensor([[1, 0, 3, 6], [9, 9, 9, 9], [2, 18, 21, 99]], device=device),
        "next_token": None,
        "next_sibling": None,
        "temperature": torch.tensor([0.8, 1.0, 0.0], device=device),
        "keys": torch.tensor([7, 8, -9], device=device),
        "root_positions": torch.tensor([3, 4, 2**33], device=device),
        "floors": torch.full((8,), -0.5, device=device, dtype=wide),
        "draft_ids": ids,
        "draft_logits": torch.randn(9, k, device=device, dtype=wide),
        "draft_temperature": torch.ones(3, device=device),
        "rule": 1,
        "lazy": False,
        **_filled(device, torch.int64, ["tokens"], 3, N),
        **_filled(device, torch.int32, ["path"], 3, N),
        **_filled(device, torch.int32, ["num_accepted", "num_rejected", "last_row"], 3),
        **_filled(device, torch.int64, ["next_tokens"], 3),
        "workspace": torch.zeros(_C.verify_workspace_bytes(8, V), dtype=torch.uint8, device=device),
    }


def compact_cache(device: str, dtype: torch.dtype) -> Arguments:
    """A tree of 6 rows whose path is 0, 2, 3, 5, and a chain of 3; an offset without a slot."""
    caches = torch.randn(BLOCKS, NKV, BLOCK, 2 * D, device=device).to(dtype)
    k_cache, v_cache = caches.split(D, dim=-1)
    int32 = {"device": device, "dtype": torch.int32}
    return {
        "path": torch.tensor([[0, 2, 3, 5], [6, 7, -1, -1]], **int32),
        "row_start": torch.tensor([0, 6, 9], **int32),
        "slots": torch.tensor([14, 15, 48, 49, 50, 51, 3, 4, -1], device=device),
        "k_cache": k_cache,
        "v_cache": v_cache,
    }


def logit_floors(device: str, dtype: torch.dtype) -> Arguments:
    a = verify(device, dtype)
    return {name: a[name] for name in ("logits", "row_start", "temperature")} | {
        "top_k": torch.tensor([5, 0, 1], device=device, dtype=torch.int32),
        "top_p": torch.tensor([0.9, 1.0, 0.0], device=device),
        "min_p": torch.tensor([0.05, 0.0, 1.0], device=device),
        "floors": _output(device, _wide(dtype), 8),
    }


def apply_penalties(device: str, dtype: torch.dtype) -> Arguments:
    """The requests of `verify`, whose nodes are trees here; tokens of paths in lists and not."""
    a = verify(device, dtype)
    logits = a["logits"]
    logits[7] = SENTINEL
    int32 = {"device": device, "dtype": torch.int32}
    ids = torch.tensor([[1, 3, 30, V, -1], [-1] * 5, [21, 2, 40, 0, 2**40]], device=device)
    return {
        "logits": logits,
        "row_start": a["row_start"],
        "candidates": a["candidates"],
        "parents": torch.tensor([[-1, 0, 1, 1], [-1] * 4, [-1, 0, 0, 2]], **int32),
        "token_ids": ids,
        "token_counts": torch.tensor([[2, 0, 7, 5, 5], [0] * 5, [0, 1, 3, -4, 9]], **int32),
        "repetition": torch.tensor([1.3, 0.5, 0.8], device=device),
        "frequency": torch.tensor([0.25, 0.0, -0.1], device=device),
        "presence": torch.tensor([0.5, 0.0, 0.3], device=device),
    }


CASES: dict[str, Callable[[str, torch.dtype], Arguments]] = {
    f.__name__: f
    for f in (
        prepare_inputs, project_taps, embed_norm_concat, qkv_rope_cache, plan_attention,
        paged_attention, linear_residual, norm_swiglu, lm_head_topk, gather_taps, norm_rows,
        gate_rows, rope_cache, gemm, gemm_residual, gemm_swiglu, prune_rows, build_tree, verify,
        logit_floors, apply_penalties, compact_cache,
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
    **dict.fromkeys(["norm_rows", "gate_rows", "gemm", "gemm_swiglu"], ("out",)),
    "rope_cache": ("q", "k_cache", "v_cache"),
    "gemm_residual": ("residual", "sum_squares"),
    "prune_rows": (
        "out", "pruned_positions", "pruned_row_start", "pruned_sample_rows", "work",
    ),
    "build_tree": ("candidates", "parents", "depths", *TREE_LINKS, "num_nodes"),
    "verify": ("tokens", "path", "num_accepted", "num_rejected", "last_row", "next_tokens"),
    "logit_floors": ("floors",),
    "apply_penalties": ("logits",),
    "compact_cache": ("k_cache", "v_cache"),
}  # fmt: skip

# What an op may leave anything in.
SCRATCH = {"workspace"}
_NOT_FP8 = {"weight_scale": None, "fp8_activations": False}


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


def _filled(device: str, dtype: torch.dtype, names: Sequence[str], *shape: int) -> Arguments:
    return {n: torch.full(shape, int(SENTINEL), dtype=dtype, device=device) for n in names}


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
