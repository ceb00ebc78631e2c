"""Drafters of the published sizes with random weights, and batches that decode, for benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from p_eagle_cuda import Drafter, reference
from p_eagle_cuda.buffers import PassInputs
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.planning.phases import Batch
from p_eagle_cuda.precision import (
    FP8_ACTIVATIONS,
    FP8_LAYERS,
    quantize_activations,
    quantize_rows,
)
from p_eagle_cuda.rope import rope_table
from p_eagle_cuda.weights import DrafterWeights, LayerWeights
from shapes import EPS

BLOCK_SIZE = 16
PATTERNS = ("0", "mean", "K", "ragged")
KV_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
WEIGHT_PRECISIONS = ("bf16", "fp8_head", "fp8", "w8a8")  # as in `Drafter.from_pretrained`


@dataclass(frozen=True)
class Case:
    """A batch that decodes: every request has verified K drafts, and some were accepted.

    The patterns: none accepted; two fifths of K, which is about what is published for the gpt-oss
    drafters (2 of 5, 3 of 7); all; or ragged, 0 to K in turn, with contexts from a quarter of
    `context` to seven quarters.
    """

    batch: int
    k: int
    context: int  # positions before the rows that were verified
    accepted: str = "mean"

    def num_accepted(self) -> list[int]:
        """Of each request."""
        if self.accepted == "ragged":
            return [b % (self.k + 1) for b in range(self.batch)]
        of_all = {"0": 0, "mean": round(0.4 * self.k), "K": self.k}
        return [of_all[self.accepted]] * self.batch

    def contexts(self) -> list[int]:
        """Of each request."""
        if self.accepted != "ragged":
            return [self.context] * self.batch
        quarters = [1, 7, 3, 5]
        return [max(self.context * quarters[b % 4] // 4, 1) for b in range(self.batch)]

    def as_batch(self) -> Batch:
        """For the count of bytes and operations."""
        return Batch(self.k, self.num_accepted(), self.contexts())

    def positions(self) -> list[int]:
        """How many each request has room for: its context, and all rows before rejection."""
        return [context + 2 * self.k for context in self.contexts()]

    def num_blocks(self) -> int:
        """In the caches."""
        return sum(-(-n // BLOCK_SIZE) for n in self.positions())


def random_weights(
    config: DrafterConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> DrafterWeights:
    """Weights that keep the variance of their input, made where they stay."""

    def randn(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=device)

    def linear(rows: int, columns: int) -> Tensor:
        return randn(rows, columns).mul_(columns**-0.5)

    def norm(size: int) -> Tensor:
        return randn(size).mul_(0.1).add_(1)

    H, D, V = config.hidden_size, config.head_dim, config.vocab_size
    heads = (config.num_heads + 2 * config.num_kv_heads) * D
    layers = tuple(
        LayerWeights(
            input_norm=norm(H),
            hidden_norm=norm(H) if i == 0 else None,
            qkv=linear(heads, 2 * H if i == 0 else H),
            qkv_bias=None,
            q_norm=None,
            k_norm=None,
            o=linear(H, config.num_heads * D),
            o_bias=None,
            post_norm=norm(H),
            gate_up=linear(2 * config.intermediate_size, H),
            down=linear(H, config.intermediate_size),
        )
        for i in range(config.num_layers)
    )
    embedding, mask_hidden, first = randn(V, H), randn(H), layers[0]
    return DrafterWeights(
        embedding=embedding,
        fc=linear(H, config.num_taps * config.target_hidden_size),
        input_norm=None,
        fc_norms=None,
        mask_hidden=mask_hidden,
        mask_heads=_mask_heads(first, embedding[-1], mask_hidden),
        layers=layers,
        norm=norm(H),
        lm_head=linear(V, H),
        draft_to_target=None,
        rope=rope_table(config.rope, D, config.max_position_embeddings).to(device),
    )


def _mask_heads(
    first: LayerWeights, embedding: Tensor, mask_hidden: Tensor, *, fp8_activations: bool = False
) -> Tensor:
    """Not a product by cuBLAS, whose kernels a sanitizer would take long to look at."""
    assert first.hidden_norm is not None
    mask_row = torch.cat([
        reference.rms_norm(reference.widen(embedding), first.input_norm, EPS),
        reference.rms_norm(reference.widen(mask_hidden), first.hidden_norm, EPS),
    ])  # fmt: skip
    if fp8_activations:
        mask_row = quantize_activations(mask_row)
    return (reference.widen(first.qkv) * mask_row).sum(dim=1)


def quantized(weights: DrafterWeights, precision: str) -> DrafterWeights:
    """The same with the matrices in FP8 that `precision` says."""
    if precision == "bf16":
        return weights
    changes: dict[str, Any] = _quantized(weights, "lm_head")
    if precision in FP8_LAYERS:
        fp8_activations = precision in FP8_ACTIVATIONS
        names = ("qkv", "o", "gate_up", "down")
        layers = tuple(replace(x, **_quantized(x, *names)) for x in weights.layers)
        changes |= {**_quantized(weights, "fc"), "layers": layers}
        first = replace(layers[0], **_widened(layers[0], weights.dtype))
        changes["fp8_activations"] = fp8_activations
        changes["mask_heads"] = _mask_heads(
            first, weights.embedding[-1], weights.mask_hidden, fp8_activations=fp8_activations
        )
    return replace(weights, **changes)


def _quantized(owner: object, *names: str) -> dict[str, Tensor]:
    changes = {}
    for name in names:
        changes[name], changes[f"{name}_scale"] = quantize_rows(getattr(owner, name))
    return changes


def widened(weights: DrafterWeights) -> DrafterWeights:
    """The same drafter with all matrices in the working dtype, which holds FP8 values exactly."""
    layers = tuple(replace(x, **_widened(x, weights.dtype)) for x in weights.layers)
    changes: dict[str, Any] = _widened(weights, weights.dtype)
    return replace(weights, **changes, layers=layers, fp8_activations=False)


def _widened(owner: object, dtype: torch.dtype) -> dict[str, Tensor | None]:
    changes: dict[str, Tensor | None] = {}
    for name, scale in vars(owner).items():
        if name.endswith("_scale") and scale is not None:
            matrix = name.removesuffix("_scale")
            changes[name] = None
            changes[matrix] = getattr(owner, matrix).to(dtype).mul_(scale[:, None].to(dtype))
    return changes


def random_caches(
    config: DrafterConfig, num_blocks: int, dtype: torch.dtype, device: torch.device
) -> list[reference.LayerCache]:
    """Paged caches whose keys and values are all stored already."""
    caches = allocate_cache(
        config.num_layers, num_blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim, dtype,
        device,
    )  # fmt: skip
    for cache in caches:
        for x in (cache.k, cache.v):
            if dtype.itemsize == 1:
                x.view(torch.uint8).random_(0, 0x38)  # 0 to 1 in e4m3; torch has no random FP8
            else:
                x.uniform_(-1, 1)
    return caches


def drafter_of(
    config: DrafterConfig,
    weights: DrafterWeights,
    caches: list[reference.LayerCache],
    k: int,
    batches: list[int],
    **options: Any,  # noqa: ANN401 - the drafter has their types
) -> Drafter:
    """A drafter that pads to the batch sizes that are measured, and to no others."""
    most = max(batches)
    return Drafter(
        config, weights, caches, num_speculative_tokens=k, max_requests=most,
        max_target_rows=most * (k + 1), batch_sizes=sorted(set(batches)), **options,
    )  # fmt: skip


def fill_batch(drafter: Drafter, case: Case, seed: int = 0) -> PassInputs:
    """Write the batch to the drafter's static buffers, as a serving engine would.

    Blocks of a request lie all over the cache, and those of other requests between them.
    """
    g = torch.Generator().manual_seed(seed)
    B, K = case.batch, case.k
    T, V = B * (K + 1), drafter.config.vocab_size
    static = drafter.static_inputs(B, T)
    counts = [-(-n // BLOCK_SIZE) for n in case.positions()]
    blocks = torch.randperm(sum(counts), generator=g, dtype=torch.int32).split(counts)
    table = torch.full(static.block_table.shape, -1, dtype=torch.int32)
    for row, own in zip(table, blocks, strict=True):
        row[: len(own)] = own
    first = torch.tensor(case.contexts())
    static.target_tokens.copy_(torch.randint(V, (T,), generator=g))
    static.target_positions.copy_((first[:, None] + torch.arange(K + 1)).flatten())
    static.query_start.copy_(torch.arange(B + 1, dtype=torch.int32) * (K + 1))
    static.num_rejected.copy_(K - torch.tensor(case.num_accepted(), dtype=torch.int32))
    static.next_tokens.copy_(torch.randint(V, (B,), generator=g))
    static.block_table.copy_(table)
    for tap in static.taps:
        tap.copy_(torch.randn(tap.shape, generator=g))
    return static
