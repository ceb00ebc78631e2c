"""The least that a pass must move and compute, and how long that takes at measured rates.

Bytes: each weight once, the stored keys and values of the context once, and the rows that enter.
What one kernel hands to the next can stay in L2 and counts nothing, nor do the drafts. Operations:
of rows that exist. Rejected rows are none; in the first layer all mask rows have the same queries,
keys and values; in the last one only sampled rows go on after attention. A phase takes the longer
of its two times, and no phase overlaps another, although parts of them could.
"""

from __future__ import annotations

from typing import NamedTuple

from drafters import Case
from shapes import DrafterShape


class Phase(NamedTuple):
    """A part of a pass that reads its own weights, or keys and values."""

    name: str
    bytes: int
    flops: int


def phases(
    shape: DrafterShape,
    case: Case,
    *,
    weight_bytes: int = 2,
    head_bytes: int | None = None,
    kv_bytes: int = 2,
) -> list[Phase]:
    """All of a pass.

    Args:
        shape: The drafter's sizes.
        case: The batch.
        weight_bytes: Of an element of a weight.
        head_bytes: Of one of the head, if that is different.
        kv_bytes: Of an element of a key or a value.
    """
    accepted, contexts = case.num_accepted(), case.contexts()
    real = sum(a + 1 for a in accepted)
    rows = real + case.batch * (case.k - 1)
    sampled = case.batch * case.k
    H, V = shape.hidden_size, shape.vocab_size
    q_width = shape.num_heads * shape.head_dim
    kv_width = 2 * shape.num_kv_heads * shape.head_dim
    layers = shape.linear_layers()

    def linear(name: str, num_rows: int) -> Phase:
        N, K = layers[name]
        return Phase(name, N * K * weight_bytes, 2 * N * K * num_rows)

    # bf16 rows: the taps, and an embedding for each real row and one for all mask rows.
    taps = Phase("taps", 2 * real * shape.num_taps * H, 0)
    found = [taps, linear("fc", real), Phase("embedding", 2 * (real + 1) * H, 0)]
    for i in range(shape.num_layers):
        is_last = i == shape.num_layers - 1
        on = sampled if is_last else rows
        keys = sum(
            (n + (a + case.k) / 2) * (case.k if is_last else a + case.k)
            for n, a in zip(contexts, accepted, strict=True)
        )
        found += [
            linear("qkv of the first layer", real) if i == 0 else linear("qkv", rows),
            Phase("attention", sum(contexts) * kv_width * kv_bytes, int(4 * q_width * keys)),
            linear("o", on),
            linear("gate_up", on),
            linear("down", on),
        ]
    in_head = weight_bytes if head_bytes is None else head_bytes
    return [*found, Phase("head", V * H * in_head, 2 * V * H * sampled)]


def total_bytes(found: list[Phase]) -> int:
    """That a pass moves at least."""
    return sum(phase.bytes for phase in found)


def floor_us(found: list[Phase], bytes_per_s: float, flops_per_s: float) -> float:
    """Microseconds of a pass at least, at these rates."""
    return 1e6 * sum(max(p.bytes / bytes_per_s, p.flops / flops_per_s) for p in found)
