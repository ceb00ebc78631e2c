"""The sizes of the drafters that are measured.

Where a published checkpoint's intermediate size is not known, the one that fits its parameter count
best is taken, and marked.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DrafterShape:
    """What decides the sizes of a drafter's weights."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_taps: int
    vocab_size: int
    assumed: tuple[str, ...] = ()  # fields that are not known
    num_layers: int = 4

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """``[rows, columns]`` of each weight that a pass streams, but for the head's."""
        H = self.hidden_size
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return {
            "fc": (H, self.num_taps * H),
            "qkv of the first layer": (qkv, 2 * H),
            "qkv": (qkv, H),
            "o": (H, self.num_heads * self.head_dim),
            "gate_up": (2 * self.intermediate_size, H),
            "down": (H, self.intermediate_size),
        }


DRAFTERS = {
    "gpt-oss-20b": DrafterShape(2880, 14336, 64, 8, 64, 3, 201088, ("intermediate_size",)),
    "gpt-oss-120b": DrafterShape(2880, 11520, 64, 8, 64, 3, 201088, ("intermediate_size",)),
    "Qwen3-Coder-30B": DrafterShape(
        2048, 6144, 32, 4, 128, 3, 151936,
        ("intermediate_size", "num_heads", "num_kv_heads", "head_dim"),
    ),
    "Qwen3-8B": DrafterShape(4096, 12288, 32, 8, 128, 3, 151936),
    "bundled": DrafterShape(256, 384, 4, 2, 64, 3, 512),
}  # fmt: skip
