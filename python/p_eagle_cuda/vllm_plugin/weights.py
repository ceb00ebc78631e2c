"""The weights of vLLM's drafter module as this package's kernels take them, none of them twice.

But for the vocabulary of a target on several ranks: where the drafter has none of its own, the
shards are put together once, when it is loaded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.errors import CheckpointError
from p_eagle_cuda.precision import (
    FP8_ACTIVATIONS,
    FP8_LAYERS,
    QUANTIZED,
    check_weight_precision,
    quantize_rows,
)
from p_eagle_cuda.rope import rope_table
from p_eagle_cuda.vllm_plugin.replication import gather_vocabulary
from p_eagle_cuda.weights import DrafterWeights, LayerWeights, mask_row_heads, project_mask_taps


class Adopted(NamedTuple):
    """Weights, and what of vLLM's they do without."""

    weights: DrafterWeights
    replaced: tuple[Any, ...]  # the modules whose `weight` has become FP8 in `weights`
    gathered: frozenset[int]  # addresses of vocabularies put together from the target's shards


def adopt_weights(
    module: Any,  # noqa: ANN401 - vLLM's module
    config: DrafterConfig,
    max_position: int,
    precision: str = "auto",
) -> Adopted:
    """Weights that share their memory with a loaded `Eagle3LlamaForCausalLM` or the Qwen3 kind.

    vLLM packs queries, keys and values, and gates and ups, in the order that the kernels want.

    Args:
        module: vLLM's drafter, with all its weights on one device and not quantised.
        config: Of the same checkpoint.
        max_position: Positions of the rope table.
        precision: Of the matrices, as in `Drafter.from_pretrained`; those that become FP8 have
            memory of their own.

    Raises:
        CheckpointError: A weight is not there, or not as the configuration says.
        ConfigError: There is no such precision for the dtype of the weights.
    """
    replaced: list[Any] = []
    gathered: dict[int, Tensor] = {}  # by the address of the shard: head and embedding may be tied
    core = module.model
    H, V, Vd = config.hidden_size, config.vocab_size, config.draft_vocab_size
    taps_width = config.num_taps * config.target_hidden_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def weight(name: str, owner: Any, *shape: int, part: str = "weight") -> Tensor:  # noqa: ANN401
        found = getattr(owner, part, None)
        if not isinstance(found, Tensor):
            raise CheckpointError(f"vLLM's drafter has no {name}.{part}")
        found = found.detach()
        if found.ndim == len(shape) and name in ("embed_tokens", "lm_head"):
            if getattr(owner, "tp_size", 1) > 1:
                if found.data_ptr() not in gathered:
                    gathered[found.data_ptr()] = gather_vocabulary(found)
                found = gathered[found.data_ptr()]
            found = found[: shape[0]]  # they are padded to a multiple of 64
        if list(found.shape) != list(shape):
            raise CheckpointError(
                f"{name}.{part} of vLLM's drafter must have shape {list(shape)}, got "
                f"{list(found.shape)}"
            )
        return found

    def optional(name: str, owner: Any, *shape: int, part: str = "weight") -> Tensor | None:  # noqa: ANN401
        return (
            None if getattr(owner, part, None) is None else weight(name, owner, *shape, part=part)
        )

    def matrix(
        name: str,
        owner: Any,  # noqa: ANN401
        *shape: int,
        quantizing: tuple[str, ...] = FP8_LAYERS,
    ) -> tuple[Tensor, Tensor | None]:
        found = weight(name, owner, *shape)
        if precision not in quantizing:
            return found, None
        replaced.append(owner)
        return quantize_rows(found)

    def layer(index: int) -> LayerWeights:
        block, at = core.layers[index], f"layers.{index}"
        heads, width = block.self_attn, 2 * H if index == 0 else H
        rows = q_rows + 2 * kv_rows
        qkv, qkv_scale = matrix(f"{at}.qkv_proj", heads.qkv_proj, rows, width)
        o, o_scale = matrix(f"{at}.o_proj", heads.o_proj, H, q_rows)
        gate_up, gate_up_scale = matrix(
            f"{at}.gate_up_proj", block.mlp.gate_up_proj, 2 * config.intermediate_size, H
        )
        down, down_scale = matrix(
            f"{at}.down_proj", block.mlp.down_proj, H, config.intermediate_size
        )
        return LayerWeights(
            input_norm=weight(f"{at}.input_layernorm", block.input_layernorm, H),
            hidden_norm=(weight(f"{at}.hidden_norm", block.hidden_norm, H) if index == 0 else None),
            qkv=qkv,
            qkv_scale=qkv_scale,
            qkv_bias=optional(f"{at}.qkv_proj", heads.qkv_proj, rows, part="bias"),
            q_norm=(
                weight(f"{at}.q_norm", heads.q_norm, config.head_dim) if config.qk_norm else None
            ),
            k_norm=(
                weight(f"{at}.k_norm", heads.k_norm, config.head_dim) if config.qk_norm else None
            ),
            o=o,
            o_scale=o_scale,
            o_bias=optional(f"{at}.o_proj", heads.o_proj, H, part="bias"),
            post_norm=weight(f"{at}.post_attention_layernorm", block.post_attention_layernorm, H),
            gate_up=gate_up,
            gate_up_scale=gate_up_scale,
            down=down,
            down_scale=down_scale,
        )

    check_weight_precision(precision, weight("norm", core.norm, H).dtype)
    fc, fc_scale = matrix("fc", core.fc, H, taps_width)
    lm_head, lm_head_scale = matrix("lm_head", module.lm_head, Vd, H, quantizing=QUANTIZED)
    embedding = weight("embed_tokens", core.embed_tokens, V, H)
    input_norm = (
        weight("input_norm", core.input_norm, taps_width) if config.norm_before_fc else None
    )
    fc_norms = None
    if config.fc_norm:
        fc_norms = torch.stack(
            [
                weight(f"fc_norm.{i}", norm, config.target_hidden_size)
                for i, norm in enumerate(core.fc_norm)
            ]
        )
    mask_taps = module.mask_hidden.detach().flatten().to(device=fc.device, dtype=embedding.dtype)
    fp8_activations = precision in FP8_ACTIVATIONS
    mask_hidden = project_mask_taps(
        mask_taps, fc, fc_scale, input_norm, fc_norms, config.rms_norm_eps, fp8_activations
    )
    layers = tuple(layer(i) for i in range(config.num_layers))
    offsets = module.draft_id_to_target_id
    draft_to_target = None
    if offsets is not None:
        draft_to_target = torch.arange(Vd, device=fc.device) + offsets.detach()
    weights = DrafterWeights(
        embedding=embedding,
        fc=fc,
        fc_scale=fc_scale,
        input_norm=input_norm,
        fc_norms=fc_norms,
        mask_hidden=mask_hidden,
        mask_heads=mask_row_heads(
            layers[0],
            embedding[config.mask_token_id],
            mask_hidden,
            config.rms_norm_eps,
            fp8_activations,
        ),
        layers=layers,
        norm=weight("norm", core.norm, H),
        lm_head=lm_head,
        lm_head_scale=lm_head_scale,
        draft_to_target=draft_to_target,
        rope=rope_table(config.rope, config.head_dim, max_position).to(fc.device),
        fp8_activations=fp8_activations,
    )
    return Adopted(weights, tuple(replaced), frozenset(x.data_ptr() for x in gathered.values()))


def release_replaced(adopted: Adopted, target: Any) -> None:  # noqa: ANN401
    """Free what vLLM's drafter has of the matrices that have become FP8.

    Its own forward pass cannot run any more. What the target works with, too, stays.
    """
    of_target = {parameter.data_ptr() for parameter in target.parameters()}
    for owner in adopted.replaced:
        if owner.weight.data_ptr() not in of_target:
            owner.weight.data = owner.weight.data.new_empty(0)
