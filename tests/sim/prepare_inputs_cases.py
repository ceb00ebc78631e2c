"""Calls of prepare_inputs on the emulator, and what must come out of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from op_cases import OUTPUTS, WORK_HEADER
from p_eagle_cuda import _C, ops, reference
from sim import torch_ops
from sim.emulator import FOUR, Launch, Settings
from sim.torch_ops import Arguments

NAME = "prepare_inputs"
SENTINEL = -777  # no output
RACE = FOUR["in-order-race"]

ROWS = [name for name in OUTPUTS[NAME] if name != "work"]


def batch(
    lengths: Sequence[int],
    rejected: Sequence[int] | None = None,
    starts: Sequence[int] | None = None,
    *,
    K: int = 3,
    block_size: int = 4,
    max_blocks: int = 40,
    max_position: int = 1000,
    num_unused: int = 2,
) -> Arguments:
    """Requests of `lengths` target rows from positions `starts` on, with blocks for all.

    The target's buffers have `num_unused` rows more, with positions that nobody may look at.
    """
    B, T = len(lengths), sum(lengths) + num_unused
    R = T + B * (K - 1)
    positions = [
        torch.arange(start, start + length)
        for start, length in zip(starts or [7] * B, lengths, strict=True)
    ]
    int32: dict[str, Any] = {"dtype": torch.int32}
    sizes = {"row_start": B + 1, "seq_lens": B, "sample_rows": B * K}
    outputs = {
        name: torch.full(
            (sizes.get(name, R),),
            SENTINEL,
            dtype=torch.int64 if name in ("token_ids", "positions", "slots") else torch.int32,
        )
        for name in ROWS
    }
    return {
        "target_tokens": torch.randint(1, 1000, (T,)),
        "target_positions": torch.cat([*positions, torch.full((num_unused,), SENTINEL)]).long(),
        "query_start": torch.tensor([0, *lengths], **int32).cumsum(0).int(),
        "num_rejected": torch.tensor(rejected or [0] * B, **int32),
        "next_tokens": torch.randint(1000, 2000, (B,)),
        "block_table": torch.randint(100, (B, max_blocks), **int32),
        "num_speculative_tokens": K,
        "mask_token_id": 5000,
        "block_size": block_size,
        "max_position": max_position,
        **outputs,
        "work": None,
        "num_heads": 0,
        "num_kv_heads": 0,
        "window": 0,
    }


def with_map(
    arguments: Arguments,
    *,
    num_heads: int = 8,
    num_kv_heads: int = 2,
    window: int = 0,
    num_blocks: int = 6,
) -> Arguments:
    """The same call, asked for a map of the attention, too."""
    B, R = arguments["num_rejected"].numel(), arguments["token_ids"].numel()
    size = _C.attention_work_size(R, B, num_heads // num_kv_heads, num_blocks)
    work = torch.full((size,), SENTINEL, dtype=torch.int32)
    work[:WORK_HEADER] = 0
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
    return arguments | heads | {"window": window, "work": work}


def random_batch(seed: int, max_requests: int = 40) -> Arguments:
    """Requests with and without rows, blocks and positions, and more rejected than there were."""
    g = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    B, longest, block_size = integer(1, max_requests), integer(1, 30), integer(1, 16)
    lengths = [integer(0, longest) for _ in range(B)]
    arguments = batch(
        lengths,
        [integer(0, length + 2) if integer(0, 3) else 0 for length in lengths],
        [integer(0, 60) for _ in lengths],
        K=integer(1, 9),
        block_size=block_size,
        max_blocks=integer(0, 90 // block_size),
        max_position=integer(1, 120),
        num_unused=integer(0, 5),
    )
    table = arguments["block_table"]
    table[torch.rand(table.shape, generator=g) < 0.05] = -1
    if seed % 2:
        return arguments
    num_kv_heads, window = integer(1, 4), integer(0, 1) * integer(1, 40)
    return with_map(
        arguments, num_heads=num_kv_heads * integer(1, 40), num_kv_heads=num_kv_heads,
        window=window, num_blocks=integer(1, 30),
    )  # fmt: skip


def expected_of(arguments: Arguments) -> dict[str, Tensor]:
    return reference.prepare_inputs(*list(arguments.values())[:10])._asdict()


def assert_right(arguments: Arguments) -> None:
    for name, expected in expected_of(arguments).items():
        wrong = (arguments[name] != expected).nonzero().flatten().tolist()
        assert not wrong, (
            f"{name}{wrong[:8]}: expected {expected[wrong[:8]].tolist()}, "
            f"got {arguments[name][wrong[:8]].tolist()}"
        )


def assert_map(arguments: Arguments) -> None:
    """The map has the bits of plan_attention for the rows as they are, and no arrivals."""
    a = arguments
    expected = torch.full_like(a["work"], SENTINEL)
    ops.plan_attention(
        a["row_start"], a["seq_lens"], a["positions"], a["num_heads"], a["num_kv_heads"],
        a["block_table"].shape[1] * a["block_size"], a["window"], False, expected,
    )  # fmt: skip
    assert a["work"].tolist() == expected.tolist()


def run(arguments: Arguments, settings: Settings = RACE) -> Launch:
    """Launches once, and compares."""
    (launch,) = torch_ops.call(NAME, arguments, settings)
    assert_right(arguments)
    if arguments["work"] is not None:
        assert_map(arguments)
    return launch
