"""Ask vLLM's planning for the caches of whole drafters next to split targets.

    python plan_caches.py RESULT.json

The result: of each case, by name, why it cannot be, or null; and the groups of caches: number of
layers, positions of a block, and whether they are the drafter's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import CacheConfig
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.core import kv_cache_planning
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.kv_cache_layout import KVCacheLayout

from p_eagle_cuda.vllm_plugin.replication import cache_refusal

KV_HEADS, HEAD_DIM, BLOCK = 8, 64, 16  # of both models; gpt-oss and its drafter
GPT_OSS_120B, GPT_OSS_20B, NO_WINDOWS = (18, 18, 4), (12, 12, 4), (32, 0, 4)  # full, windows, ours
CASES = {
    **{f"gpt-oss-120b, TP {tp}": (tp, GPT_OSS_120B, None) for tp in (1, 2, 4, 8)},
    "gpt-oss-120b, TP 4, BLHNC": (4, GPT_OSS_120B, KVCacheLayout.BLHNC),
    "gpt-oss-120b, TP 2, LHBNC": (2, GPT_OSS_120B, KVCacheLayout.LHBNC),
    "gpt-oss-20b, TP 8": (8, GPT_OSS_20B, None),
    "no windows, TP 2": (2, NO_WINDOWS, None),
    "more layers than of a kind, TP 2": (2, (3, 9, 4), None),
}


class Layer(AttentionLayerBase):  # type: ignore[misc]  # vLLM has no types here
    """A layer with a cache, whose backend takes blocks as FlashAttention's does."""

    def __init__(self, spec: Any, layout: KVCacheLayout | None, *, is_draft: bool) -> None:
        self.spec, self.is_draft_layer = spec, is_draft
        self.backend = SimpleNamespace(
            customize_spec=lambda spec: spec, full_cls_name=lambda: ("tests", "Layer"),
            get_supported_kernel_block_sizes=lambda _: [MultipleOf(BLOCK)],
            supported_kv_cache_layouts=lambda: None if layout is None else (layout,),
        )  # fmt: skip

    def get_attn_backend(self) -> Any:
        return self.backend

    def get_kv_cache_spec(self, _: Any) -> Any:
        return self.spec


def plan(tp: int, layers: tuple[int, int, int], layout: KVCacheLayout | None) -> dict[str, Any]:
    """What `cache_refusal` says, and the groups that vLLM planned for it."""
    shape = {"block_size": BLOCK, "head_size": HEAD_DIM, "dtype": torch.bfloat16}
    specs = [
        FullAttentionSpec(num_kv_heads=KV_HEADS // tp, **shape),
        SlidingWindowSpec(num_kv_heads=KV_HEADS // tp, sliding_window=128, **shape),
        FullAttentionSpec(num_kv_heads=KV_HEADS, **shape),
    ]
    kinds = [kind for kind, number in enumerate(layers) for _ in range(number)]
    named = {
        f"layers.{i}.attn": Layer(specs[kind], layout, is_draft=kind == 2)
        for i, kind in enumerate(kinds)
    }
    part = SimpleNamespace
    config = part(
        compilation_config=part(static_forward_context=named), kv_transfer_config=None,
        attention_config=part(hisparse_config=None), cache_config=CacheConfig(block_size=BLOCK),
        scheduler_config=part(disable_hybrid_kv_cache_manager=False),
        model_config=part(supports_kv_cache_grouping=False), num_prefill_lookahead_tokens=0,
        speculative_config=part(use_eagle_block_drop=lambda: False),
    )  # fmt: skip
    groups: list[list[Any]] = []
    theirs = kv_cache_planning.get_kv_cache_groups

    def recording(*args: Any) -> Any:
        found = theirs(*args)
        groups.extend(
            [
                len(x.layer_names),
                x.kv_cache_spec.block_size,
                named[x.layer_names[-1]].is_draft_layer,
            ]
            for x in found
        )
        return found

    kv_cache_planning.get_kv_cache_groups = recording
    try:
        reason = cache_refusal(config)
    finally:
        kv_cache_planning.get_kv_cache_groups = theirs
    assert config.cache_config.kv_cache_layout is None, "the configuration has been changed"
    return {"reason": reason, "groups": groups}


if __name__ == "__main__":
    found = {name: plan(*case) for name, case in CASES.items()}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
