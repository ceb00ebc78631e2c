"""The operators of vLLM's compiled CPU library that a small Llama needs, in plain PyTorch.

vLLM's sources install without a compiler, and then lack that library. With these the real engine,
schedulers, caches and model runners work on a machine without a GPU. Slow, and for tests only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FP8 = {
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
_libraries: list[torch.library.Library] = []


def register() -> None:
    """Define the operators, unless the compiled library has them. vLLM calls this as a plugin."""
    if _libraries or hasattr(torch.ops._C, "init_cpu_memory_env"):
        return
    from vllm.triton_utils import tldevice

    if hasattr(tldevice, "log1p"):  # CUDA's, which Triton's interpreter takes for None
        tldevice.log1p = log1p
    library = torch.library.Library("_C", "FRAGMENT")
    for schema, function in OPERATORS.items():
        library.define(schema)
        library.impl(schema.split("(", 1)[0], function, "CompositeExplicitAutograd")
    _libraries.append(library)

    from vllm.v1.sample.ops import topk_topp_sampler

    # Triton's interpreter does not run this module's kernel; vLLM has the same in PyTorch.
    topk_topp_sampler.HAS_TRITON = False


def log1p(x: Any) -> Any:
    """``log(1 + x)`` of a tensor of Triton's interpreter, in a kernel."""
    from vllm.triton_utils import tl

    return tl.log(1.0 + x)


def init_cpu_memory_env(node_ids: list[int]) -> None:
    """Binds memory to nodes; not here."""


def get_scheduler_metadata(*_: object) -> Tensor:
    """Plans attention over threads; there is no plan."""
    return torch.empty(0, dtype=torch.int8)


def cpu_attn_reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    isa: str,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    kv_cache_dtype: str = "auto",
) -> None:
    """Store rows ``[rows, Nkv, D]`` in caches ``[blocks, Nkv, block, D]``; slot -1 is nowhere."""
    block_size = key_cache.shape[2]
    rows = (slot_mapping >= 0).nonzero().flatten()
    slots = slot_mapping[rows]
    fp8 = _FP8.get(kv_cache_dtype)
    for x, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        stored = x[rows]
        if fp8 is not None:
            limit = torch.finfo(fp8).max
            stored = (stored.float() / scale).clamp(-limit, limit).to(fp8).view(cache.dtype)
        cache[slots // block_size, :, slots % block_size] = stored


def cpu_attention_with_kv_cache(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    output: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    causal: bool,
    alibi_slopes: Tensor | None,
    sliding_window: int,
    block_table: Tensor,
    softcap: float,
    scheduler_metadata: Tensor,
    s_aux: Tensor | None,
    dynamic_causal: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    kv_cache_dtype: str = "auto",
) -> None:
    """Attention of ``[rows, Nq, D]`` over the caches; a request's rows are its last positions."""
    unknown = (alibi_slopes, s_aux, dynamic_causal)
    if any(x is not None for x in unknown) or softcap:
        raise NotImplementedError("the stand-in knows causal attention over all keys or a window")
    starts = query_start_loc.tolist()
    for request, length in enumerate(seq_lens.tolist()):
        rows = slice(starts[request], starts[request + 1])
        num_rows = rows.stop - rows.start
        if num_rows <= 0:
            continue
        blocks = block_table[request, : -(-length // key_cache.shape[2])].long()
        keys = _gather(key_cache, blocks, length, k_scale, kv_cache_dtype)
        values = _gather(value_cache, blocks, length, v_scale, kv_cache_dtype)
        group = query.shape[1] // keys.shape[1]
        keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[rows].float(), keys) * scale
        if causal:
            keys_at, last_key = (
                torch.arange(length),
                torch.arange(length - num_rows, length)[:, None],
            )
            scores = scores.masked_fill(keys_at > last_key, -torch.inf)
            if sliding_window > 0:
                scores = scores.masked_fill(keys_at <= last_key - sliding_window, -torch.inf)
        result = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        output[rows] = result.to(output.dtype)


def _gather(cache: Tensor, blocks: Tensor, length: int, scale: float, dtype: str) -> Tensor:
    """A request's keys or values ``[length, Nkv, D]`` in float32."""
    x = cache[blocks].transpose(1, 2).flatten(0, 1)[:length]
    fp8 = _FP8.get(dtype)
    return x.float() if fp8 is None else x.view(fp8).float() * scale


def silu_and_mul(out: Tensor, x: Tensor) -> None:
    """The gated activation; gates first."""
    gate, up = x.chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(gate) * up)


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    rope_dim_offset: int = 0,
    inverse: bool = False,
) -> None:
    """Rotate heads in place, the halves of a head being a pair."""
    if not is_neox or rope_dim_offset or inverse:
        raise NotImplementedError("the stand-in rotates halves of whole heads only")
    cos, sin = cos_sin_cache[positions.flatten()].float()[:, None].chunk(2, dim=-1)
    for x in (query, key):
        if x is not None:
            heads = x.view(len(x), -1, head_size)
            first, second = heads.float().chunk(2, dim=-1)
            rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
            heads.copy_(rotated.to(x.dtype))


def greedy_argmax(logits: Tensor) -> Tensor:
    """The largest of each row."""
    return logits.argmax(dim=-1)


def fused_gumbel_argmax(logits: Tensor, seeds: Tensor) -> Tensor:
    """A sample of each row's softmax."""
    noise = torch.stack(
        [
            torch.empty_like(row).exponential_(generator=torch.Generator().manual_seed(seed))
            for row, seed in zip(logits, seeds.tolist(), strict=True)
        ]
    )
    return (logits - noise.log()).argmax(dim=-1)


OPERATORS = {
    "init_cpu_memory_env(SymInt[] node_ids) -> ()": init_cpu_memory_env,
    "get_scheduler_metadata(int num_req, int num_heads_q, int num_heads_kv, int head_dim, "
    "Tensor seq_lens, ScalarType dtype, Tensor query_start_loc, bool casual, int window_size, "
    "str isa_hint, bool enable_kv_split, Tensor? dynamic_causal=None, "
    'str kv_cache_dtype="auto") -> Tensor': get_scheduler_metadata,
    "cpu_attn_reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, "
    "Tensor(b!) value_cache, Tensor slot_mapping, str isa, float k_scale=1., float v_scale=1., "
    'str kv_cache_dtype="auto") -> ()': cpu_attn_reshape_and_cache,
    "cpu_attention_with_kv_cache(Tensor query, Tensor key_cache, Tensor value_cache, "
    "Tensor(a!) output, Tensor query_start_loc, Tensor seq_lens, float scale, bool causal, "
    "Tensor? alibi_slopes, SymInt sliding_window_size, Tensor block_table, float softcap, "
    "Tensor scheduler_metadata, Tensor? s_aux, Tensor? dynamic_causal=None, float k_scale=1., "
    'float v_scale=1., str kv_cache_dtype="auto") -> ()': cpu_attention_with_kv_cache,
    "silu_and_mul(Tensor(a!) out, Tensor input) -> ()": silu_and_mul,
    "rotary_embedding(Tensor positions, Tensor(a!) query, Tensor(b!)? key, int head_size, "
    "Tensor cos_sin_cache, bool is_neox, int rope_dim_offset=0, bool inverse=False) -> ()": (
        rotary_embedding
    ),
    "greedy_argmax(Tensor logits) -> Tensor": greedy_argmax,
    "fused_gumbel_argmax(Tensor logits, Tensor seeds) -> Tensor": fused_gumbel_argmax,
}
