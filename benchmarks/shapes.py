"""The sizes of the drafters that are measured.

Where a published checkpoint's intermediate size is not known, the one that fits its parameter count
best is taken, and marked.
"""

from __future__ import annotations

from dataclasses import dataclass

from p_eagle_cuda.config import DrafterConfig, RopeConfig
from p_eagle_cuda.planning import phases

EPS = 1e-5


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
        return phases.linear_layers(config_of(self))


def config_of(shape: DrafterShape, max_position: int = 4096) -> DrafterConfig:
    """Its configuration; the mask token is the last one."""
    return DrafterConfig(
        hidden_size=shape.hidden_size,
        target_hidden_size=shape.hidden_size,
        num_taps=shape.num_taps,
        tap_layer_ids=None,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        draft_vocab_size=shape.vocab_size,
        rms_norm_eps=EPS,
        rope=RopeConfig(),
        max_position_embeddings=max_position,
        mask_token_id=shape.vocab_size - 1,
    )


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
