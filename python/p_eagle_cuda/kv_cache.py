"""Allocates paged key/value caches, laid out as vLLM 0.27 and later lay out a drafter's."""

from __future__ import annotations

import torch

from p_eagle_cuda.reference import LayerCache


def allocate_cache(
    num_layers: int,
    num_blocks: int,
    num_kv_heads: int,
    block_size: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> list[LayerCache]:
    """One zeroed paged cache per layer.

    Keys and values of a layer are the two halves of one ``[blocks, Nkv, block_size, 2D]`` tensor,
    so a kernel that assumes contiguous keys fails here as it would in vLLM.

    Args:
        num_layers: Layers that have a cache.
        num_blocks: Blocks in each; a block is `block_size` positions of every head.
        num_kv_heads: Nkv.
        block_size: Positions in a block.
        head_dim: D.
        dtype: Of the stored values; float8_e4m3fn and float8_e5m2 store ``x / scale``.
        device: Where.
        k_scale: Scale of the keys.
        v_scale: Scale of the values.

    Raises:
        ValueError: A size is not positive, or a scale is not.
    """
    for name, value in (
        ("num_blocks", num_blocks), ("block_size", block_size), ("k_scale", k_scale),
        ("v_scale", v_scale),
    ):  # fmt: skip
        if not value > 0:
            raise ValueError(f"allocate_cache: {name} must be above 0, got {value}")

    def scale(value: float) -> torch.Tensor:
        return torch.full((1,), value, dtype=torch.float32, device=device)

    caches = []
    for _ in range(num_layers):
        shape = (num_blocks, num_kv_heads, block_size, 2 * head_dim)
        k, v = torch.zeros(shape, dtype=dtype, device=device).split(head_dim, dim=-1)
        caches.append(LayerCache(k, v, scale(k_scale), scale(v_scale)))
    return caches
