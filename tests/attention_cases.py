"""Attention of requests of any lengths over a cache that is NaN wherever nobody may look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from numerics import assert_as_accurate_as_torch
from op_cases import SENTINEL, Arguments, plan
from p_eagle_cuda import _C, reference

SPARE_ROWS = 3  # of the buffers, past the last request's
GARBAGE = (99, -7, 2**31 - 1)  # in block tables, past a request's blocks


def attention_case(
    lens: Sequence[int],
    rows: Sequence[int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype | None = None,
    head_dim: int = 64,
    num_kv_heads: int = 2,
    group: int = 4,
    block_size: int = 16,
    window: int = 0,
    is_tree: bool = False,
    has_sinks: bool = False,
    num_blocks: int = 5,
    q_scale: float = 1.0,
    separate: bool = False,
) -> Arguments:
    """The arguments of paged_attention; the last keys of each request are those of its rows.

    The caches are views of one tensor, or with `separate` tensors of other strides. A tree's rows
    see random rows of their request, and have its first row's position or one above.
    """
    cache_dtype, num_heads = cache_dtype or dtype, num_kv_heads * group
    starts = [0]
    for n in rows:
        starts.append(starts[-1] + n)
    R = starts[-1] + SPARE_ROWS
    positions = torch.zeros(R, dtype=torch.int64)
    for begin, n, length in zip(starts, rows, lens, strict=False):
        new = torch.arange(n)
        positions[begin : begin + n] = length - n + (new.clamp(max=1) if is_tree else new)
    arguments = {
        "q": torch.randn(R, num_heads, head_dim) * q_scale,
        **_cache(lens, rows, cache_dtype, num_kv_heads, head_dim, block_size, separate),
        "row_start": torch.tensor(starts, dtype=torch.int32),
        "seq_lens": torch.tensor(lens, dtype=torch.int32),
        "positions": positions,
        "tree_mask": torch.randint(-(2**63), 2**63 - 1, (R,)) if is_tree else None,
        "sinks": torch.randn(num_heads) if has_sinks else None,
        "softmax_scale": head_dim**-0.5,
        "window": window,
        "work": torch.zeros(
            _C.attention_work_size(R, len(lens), group, num_blocks), dtype=torch.int32
        ),
        "workspace": torch.zeros(
            _C.attention_workspace_bytes(num_blocks, head_dim), dtype=torch.uint8
        ),
        "out": torch.full((R, num_heads * head_dim), SENTINEL, dtype=dtype),
    }
    arguments["q"] = arguments["q"].to(dtype)
    arguments["q"][starts[-1] :] = float("nan")
    poison(arguments)
    plan(arguments)
    return arguments


def _cache(
    lens: Sequence[int], rows: Sequence[int], dtype: torch.dtype, num_kv_heads: int, head_dim: int,
    block_size: int, separate: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Random keys and values with their scales, and a table of blocks in random order."""
    used = [-(-n // block_size) for n in lens]
    blocks = sum(used) + 2
    order = iter(torch.randperm(blocks).tolist())
    columns = max([*used, 0]) + 2
    table = torch.tensor(GARBAGE).repeat(columns)[:columns].repeat(len(lens), 1)
    for b, n in enumerate(used):
        table[b, :n] = torch.tensor([next(order) for _ in range(n)])
    if separate:  # [blocks, block_size, Nkv, D], as older engines have it
        caches = [torch.randn(blocks, block_size, num_kv_heads, head_dim) for _ in "kv"]
        k, v = (x.to(dtype).transpose(1, 2) for x in caches)
    else:
        both = torch.randn(blocks, num_kv_heads, block_size, 2 * head_dim).to(dtype)
        k, v = both.split(head_dim, dim=-1)
    is_fp8 = dtype.itemsize == 1
    return {
        "k_cache": k,
        "v_cache": v,
        "k_scale": torch.tensor([0.5 if is_fp8 else 3.0]),  # of FP8 caches only
        "v_scale": torch.tensor([0.125 if is_fp8 else 3.0]),
        "block_table": table.int(),
    }


def seen_slots(a: Arguments) -> Tensor:
    """[blocks, block_size] bool, the slots of the cache that some row sees by its position."""
    blocks, _, block_size, _ = a["k_cache"].shape
    seen = torch.zeros(blocks, block_size, dtype=torch.bool)
    starts = a["row_start"].tolist()
    for b, length in enumerate(a["seq_lens"].tolist()):
        positions = a["positions"][starts[b] : starts[b + 1]]
        if not len(positions) or not length:
            continue
        first = max(int(positions[0]) - a["window"] + 1, 0) if a["window"] else 0
        end = min(int(positions[0]) + min(len(positions), 64), length)
        if a["tree_mask"] is None:
            end = min(int(positions[-1]) + 1, length)
        keys = torch.arange(first, end)
        seen[a["block_table"][b, keys // block_size].long(), keys % block_size] = True
    return seen


def poison(a: Arguments) -> None:
    """NaN in every slot that no row sees."""
    unseen = ~seen_slots(a)
    for name in ("k_cache", "v_cache"):
        storage, nan = a[name], float("nan")
        if storage.dtype.itemsize == 1:
            storage, nan = storage.view(torch.uint8), 0x7F  # in e4m3fn and e5m2
        storage.transpose(1, 2)[unseen] = nan


def expected(a: Arguments, dtype: torch.dtype) -> Tensor:
    """The reference's result for the rows that exist, with the arithmetic of `dtype`."""
    n = int(a["row_start"][-1])
    caches = []
    for name in ("k_cache", "v_cache"):
        storage = a[name].view(torch.uint8) if a[name].dtype.itemsize == 1 else a[name]
        clean = storage.clone().contiguous()
        clean.transpose(1, 2)[~seen_slots(a)] = 0
        caches.append(clean.view(a[name].dtype))
    mask = a["tree_mask"] if a["tree_mask"] is None else a["tree_mask"][:n]
    return reference.paged_attention(
        a["q"][:n].to(dtype), *caches, a["k_scale"], a["v_scale"], a["block_table"], a["row_start"],
        a["seq_lens"], a["positions"][:n], a["softmax_scale"], mask, a["sinks"], a["window"],
    )  # fmt: skip


def assert_right(a: Arguments) -> None:
    """`out` is the reference's, and untouched past the last row."""
    n = int(a["row_start"][-1])
    exact, unfused = expected(a, torch.float64), expected(a, a["q"].dtype)
    assert_as_accurate_as_torch("out", a["out"][:n], exact, unfused)
    assert (a["out"][n:] == SENTINEL).all(), "wrote rows that do not exist"
