"""vLLM's paged caches of the drafter's layers, read and written where they lie."""

from __future__ import annotations

from typing import Any

import torch

from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.errors import ConfigError
from p_eagle_cuda.reference import LayerCache

_FP8 = {
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def adopt_caches(module: Any, config: DrafterConfig, dtype: torch.dtype) -> list[LayerCache]:  # noqa: ANN401
    """Views of the keys and values of each layer, with the layer's own scales.

    vLLM 0.27 and later keep ``[blocks, Nkv, block, 2D]`` in whatever strides the platform likes.

    Args:
        module: vLLM's drafter, whose layers have been given their caches.
        config: Of its checkpoint.
        dtype: What the drafter computes in.

    Raises:
        ConfigError: A cache is of another kind.
    """
    caches = []
    for i, layer in enumerate(module.model.layers[: config.num_layers]):
        attention = layer.self_attn.attn
        stored = attention.kv_cache
        fp8 = _FP8.get(str(attention.kv_cache_dtype))
        if fp8 is not None:
            stored = stored.view(fp8)
        elif stored.dtype != dtype:
            raise ConfigError(
                f"the cache of layer {i} must have dtype {dtype} or an FP8 one, got {stored.dtype}"
            )
        expected = (config.num_kv_heads, 2 * config.head_dim)
        if stored.ndim != 4 or (stored.shape[1], stored.shape[3]) != expected:
            raise ConfigError(
                f"the cache of layer {i} must be [blocks, {expected[0]}, block, {expected[1]}], "
                f"got {list(stored.shape)}"
            )
        k, v = stored.split(config.head_dim, dim=-1)
        caches.append(LayerCache(k, v, attention._k_scale.view(1), attention._v_scale.view(1)))
    return caches
