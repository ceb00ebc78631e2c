"""What a drafter allocates beside its weights and caches: planned first, allocated once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from p_eagle_cuda._registry import compiled, wide_dtype
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.ops.attention import attention_blocks
from p_eagle_cuda.reference import STATISTIC_COLUMNS, PreparedInputs, PrunedRows

# Batches are padded to one of these many requests, so that as many graphs serve them all.
BATCH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class PassInputs(NamedTuple):
    """What the target has just computed and verified; `Drafter.propose` documents each."""

    target_tokens: Tensor  # [T] int64; of a batch that is given, also int32
    target_positions: Tensor  # [T] int64
    taps: tuple[Tensor, ...]  # n of [T, Ht], or one of [T, n Ht]
    query_start: Tensor  # [B + 1] int32
    num_rejected: Tensor  # [B] int32
    next_tokens: Tensor  # [B] int64; of a batch that is given, also int32
    block_table: Tensor  # [B, max_blocks] int32

    @property
    def num_rows(self) -> int:
        """T."""
        return self.target_tokens.numel()

    @property
    def num_requests(self) -> int:
        """B."""
        return self.num_rejected.numel()


@dataclass(frozen=True)
class PassLimits:
    """The largest passes of a drafter.

    Attributes:
        num_speculative_tokens: K.
        top_k: Candidates returned per position.
        max_requests: Requests in a pass.
        max_target_rows: Target rows of a pass that is not padded; more take several passes.
        max_blocks: Columns of the block table that are used.
        batch_sizes: Ascending; a batch with at most K + 1 target rows per request is padded to the
            next of these many requests.
        has_joined_taps: Whether the taps come side by side in one tensor.
    """

    num_speculative_tokens: int
    top_k: int
    max_requests: int
    max_target_rows: int
    max_blocks: int
    batch_sizes: tuple[int, ...]
    has_joined_taps: bool = False

    def batch_size(self, num_requests: int, num_target_rows: int) -> int | None:
        """What a batch is padded to; None if it is not."""
        for size in self.batch_sizes:
            if size >= num_requests:
                return size if num_target_rows <= self.padded_rows(size) else None
        return None

    def padded_rows(self, batch_size: int) -> int:
        """T of a padded batch: each request verifies K drafts and a token of the target's own."""
        return batch_size * (self.num_speculative_tokens + 1)

    @property
    def most_requests(self) -> int:
        """Of any pass, padded or not."""
        return max(self.max_requests, *self.batch_sizes)

    @property
    def most_rows(self) -> int:
        """R of the largest pass."""
        masks = self.num_speculative_tokens - 1
        padded = self.batch_sizes[-1]
        return max(
            self.max_target_rows + self.max_requests * masks,
            self.padded_rows(padded) + padded * masks,
        )


def batch_sizes_up_to(max_requests: int) -> tuple[int, ...]:
    """`BATCH_SIZES` below `max_requests`, and that; larger batches than 256 are not padded."""
    last = min(max_requests, BATCH_SIZES[-1])
    return (*(size for size in BATCH_SIZES if size < last), last)


class DeviceSize(NamedTuple):
    """What of a device decides how large workspaces are."""

    num_sms: int  # 0: a CPU, which needs none
    attention_blocks: int  # that share the attention of a pass

    @classmethod
    def of(cls, device: torch.device, head_dim: int) -> DeviceSize:
        """Of a device that is there."""
        num_sms = 0
        if device.type == "cuda":
            num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        return cls(num_sms, attention_blocks(device, head_dim))


@dataclass(frozen=True)
class BufferSpec:
    """A tensor to allocate."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_zeroed: bool = False

    @property
    def num_bytes(self) -> int:
        """Of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def allocate(self, device: torch.device) -> Tensor:
        """The tensor."""
        make = torch.zeros if self.is_zeroed else torch.empty
        return make(self.shape, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Buffers:
    """The buffers of a drafter, for its largest pass; smaller ones use their beginnings."""

    # What `prepare_inputs` writes.
    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    source_row: Tensor
    row_start: Tensor
    seq_lens: Tensor
    sample_rows: Tensor
    # What goes from layer to layer.
    hidden: Tensor
    residual: Tensor
    concat: Tensor
    q: Tensor
    attended: Tensor
    activated: Tensor
    sum_squares: Tensor
    # What the last layer goes on with where it prunes rows; these themselves go to `hidden`.
    pruned_positions: Tensor
    pruned_row_start: Tensor
    pruned_sample_rows: Tensor
    pruned_work: Tensor
    # What kernels keep to themselves.
    linear_workspace: Tensor
    head_workspace: Tensor
    attention_work: Tensor
    attention_workspace: Tensor
    # What a pass returns, and the drafts of a batch that takes several passes.
    top_ids: Tensor
    top_logits: Tensor
    lse: Tensor
    merged_ids: Tensor
    merged_logits: Tensor
    merged_lse: Tensor
    # A batch of several passes: where the rows of each request start, and end, in one of them.
    piece_start: Tensor
    piece_rejected: Tensor
    piece_tokens: Tensor
    # A padded batch, where graphs read it.
    static_tokens: Tensor
    static_positions: Tensor
    static_taps: Tensor
    static_query_start: Tensor
    static_rejected: Tensor
    static_next_tokens: Tensor
    static_block_table: Tensor
    no_rows: Tensor  # a `query_start` of requests without rows

    @classmethod
    def allocate(cls, plan: Mapping[str, BufferSpec], device: torch.device) -> Buffers:
        """Allocate what `plan_buffers` says."""
        buffers = cls(**{f.name: plan[f.name].allocate(device) for f in fields(cls)})
        # No column of the table has a block before a batch is staged.
        buffers.static_block_table.fill_(-1)
        return buffers

    def inputs(self, num_requests: int, num_rows: int, k: int) -> PreparedInputs:
        """Where a pass of this size has what `prepare_inputs` writes."""
        B, R = num_requests, num_rows
        return PreparedInputs(
            token_ids=self.token_ids[:R],
            positions=self.positions[:R],
            slots=self.slots[:R],
            source_row=self.source_row[:R],
            row_start=self.row_start[: B + 1],
            seq_lens=self.seq_lens[:B],
            sample_rows=self.sample_rows[: B * k],
        )

    def pruned(self, num_requests: int, k: int) -> PrunedRows:
        """Where a pass of this size has what `prune_rows` writes."""
        N = num_requests * k
        return PrunedRows(
            x=self.hidden[:N],
            positions=self.pruned_positions[:N],
            row_start=self.pruned_row_start[: num_requests + 1],
            sample_rows=self.pruned_sample_rows[:N],
        )

    def static_inputs(self, num_requests: int, num_rows: int) -> PassInputs:
        """Where a padded batch of this size lies."""
        B, T = num_requests, num_rows
        return PassInputs(
            target_tokens=self.static_tokens[:T],
            target_positions=self.static_positions[:T],
            taps=tuple(tap[:T] for tap in self.static_taps.unbind()),
            query_start=self.static_query_start[: B + 1],
            num_rejected=self.static_rejected[:B],
            next_tokens=self.static_next_tokens[:B],
            block_table=self.static_block_table[:B],
        )


def copy_together(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy the second tensor of each pair to the first, in as few launches as CUDA has for it.

    One launch is for all pairs of equal dtypes, whatever those are, and one for all that convert
    from one dtype to another. A pair of which one is not contiguous has a launch of its own. What
    lies in its place already is not copied.
    """
    together: dict[tuple[torch.dtype, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in pairs:
        if target.data_ptr() == source.data_ptr():
            continue
        if not (target.is_contiguous() and source.is_contiguous()):
            target.copy_(source)
            continue
        if target.dtype == source.dtype and not any(
            x.nbytes % 4 or x.data_ptr() % 4 for x in (target, source)
        ):
            target, source = (x.flatten().view(torch.int32) for x in (target, source))
        targets, sources = together.setdefault((target.dtype, source.dtype), ([], []))
        targets.append(target)
        sources.append(source)
    for targets, sources in together.values():
        torch._foreach_copy_(targets, sources)


def plan_buffers(
    config: DrafterConfig, limits: PassLimits, dtype: torch.dtype, device: DeviceSize
) -> dict[str, BufferSpec]:
    """Shapes and dtypes of `Buffers`; allocates nothing.

    Args:
        config: The drafter's.
        limits: Of its passes.
        dtype: Working dtype.
        device: Where they will be.
    """
    K, k = limits.num_speculative_tokens, limits.top_k
    B, R = limits.most_requests, limits.most_rows
    N, T = B * K, limits.padded_rows(limits.batch_sizes[-1])
    H, D, Nq, Nkv = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
    wide, i32, i64 = wide_dtype(dtype), torch.int32, torch.int64
    sizes, num_sms, blocks = compiled(), device.num_sms, device.attention_blocks
    work, pruned_work = (sizes.attention_work_size(rows, B, Nq // Nkv, blocks) for rows in (R, N))

    def workspace(num_bytes: int) -> BufferSpec:
        return BufferSpec((num_bytes if num_sms else 0,), torch.uint8, is_zeroed=True)

    joined = config.num_taps if limits.has_joined_taps else 1
    taps = (config.num_taps // joined, T, config.target_hidden_size * joined)
    return {
        "token_ids": BufferSpec((R,), i64),
        "positions": BufferSpec((R,), i64),
        "slots": BufferSpec((R,), i64),
        "source_row": BufferSpec((R,), i32),
        "row_start": BufferSpec((B + 1,), i32),
        "seq_lens": BufferSpec((B,), i32),
        "sample_rows": BufferSpec((N,), i32),
        "hidden": BufferSpec((R, H), dtype),
        "residual": BufferSpec((R, H), dtype),
        "concat": BufferSpec((R, 2 * H), dtype),
        "q": BufferSpec((R, Nq, D), dtype),
        "attended": BufferSpec((R, Nq * D), dtype),
        "activated": BufferSpec((R, config.intermediate_size), dtype),
        "sum_squares": BufferSpec((-(-H // STATISTIC_COLUMNS) * R,), wide),
        "pruned_positions": BufferSpec((N,), i64),
        "pruned_row_start": BufferSpec((B + 1,), i32),
        "pruned_sample_rows": BufferSpec((N,), i32),
        "pruned_work": BufferSpec((pruned_work,), i32, is_zeroed=True),
        "linear_workspace": workspace(sizes.linear_workspace_bytes(num_sms)),
        "head_workspace": workspace(sizes.lm_head_workspace_bytes(num_sms, N, k)),
        "attention_work": BufferSpec((work,), i32, is_zeroed=True),
        "attention_workspace": workspace(sizes.attention_workspace_bytes(blocks, D)),
        "top_ids": BufferSpec((N, k), i64),
        "top_logits": BufferSpec((N, k), wide),
        "lse": BufferSpec((N,), wide),
        "merged_ids": BufferSpec((N, k), i64),
        "merged_logits": BufferSpec((N, k), wide),
        "merged_lse": BufferSpec((N,), wide),
        "piece_start": BufferSpec((B + 1,), i32),
        "piece_rejected": BufferSpec((B,), i32),
        "piece_tokens": BufferSpec((B,), i64),
        "static_tokens": BufferSpec((T,), i64),
        "static_positions": BufferSpec((T,), i64),
        "static_taps": BufferSpec(taps, dtype),
        "static_query_start": BufferSpec((B + 1,), i32, is_zeroed=True),
        "static_rejected": BufferSpec((B,), i32, is_zeroed=True),
        "static_next_tokens": BufferSpec((B,), i64, is_zeroed=True),
        "static_block_table": BufferSpec((B, limits.max_blocks), i32),
        "no_rows": BufferSpec((B + 1,), i32, is_zeroed=True),
    }


def format_plan(plan: Mapping[str, BufferSpec]) -> str:
    """A line for each buffer, largest first, and their sum."""
    total = sum(spec.num_bytes for spec in plan.values())
    rows = [
        (name, "x".join(map(str, spec.shape)), str(spec.dtype).removeprefix("torch."),
         _mebibytes(spec.num_bytes))
        for name, spec in sorted(plan.items(), key=lambda item: -item[1].num_bytes)
    ]  # fmt: skip
    return _table([*rows, ("total", "", "", _mebibytes(total))])


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.3f} MiB"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                *(x.ljust(n) for x, n in zip(row[:-1], widths, strict=False)),
                row[-1].rjust(widths[-1]),
            ]
        )
        for row in rows
    )
