"""Toy checkpoints with random weights, in the formats that are found in the wild."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# The smallest sizes with grouped heads, a separate target width, and a head_dim kernels serve.
DRAFTER = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_size": 64,
    "target_hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 50,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "ptd_token_id": 49,
    "eagle_aux_hidden_state_layer_ids": [2, 4, 5],
}
TARGET = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 50,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def drafter_config(**overrides: object) -> dict[str, Any]:
    """A flat configuration; an override of None removes the field."""
    return _merged(DRAFTER, overrides)


def target_config(**overrides: object) -> dict[str, Any]:
    """A Llama configuration; an override of None removes the field."""
    return _merged(TARGET, overrides)


def drafter_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random float32 tensors of a drafter, named as in the AWS checkpoints.

    `config` is a flat configuration. Weights keep the variance of their input, norms are near 1.
    With a smaller draft vocabulary there are `d2t` and `t2d` for a random choice of tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    H = config["hidden_size"]
    target_hidden = config.get("target_hidden_size", H)
    num_taps = len(config.get("eagle_aux_hidden_state_layer_ids", [0, 0, 0]))
    V = config["vocab_size"]
    Vd = config.get("draft_vocab_size", V)
    tensors = {
        "embed_tokens.weight": torch.randn(V, H, generator=generator),
        "fc.weight": _linear(H, num_taps * target_hidden, generator),
        "mask_hidden": torch.randn(1, 1, num_taps * target_hidden, generator=generator),
        "norm.weight": _norm(H, generator),
        "lm_head.weight": _linear(Vd, H, generator),
        "midlayer.hidden_norm.weight": _norm(H, generator),
    }
    if config.get("norm_before_fc"):
        tensors["input_norm.weight"] = _norm(num_taps * target_hidden, generator)
    if config.get("fc_norm"):
        for tap in range(num_taps):
            tensors[f"fc_norm.{tap}.weight"] = _norm(target_hidden, generator)
    qk_norm = any("Qwen3" in name for name in config.get("architectures", []))
    for layer in range(config["num_hidden_layers"]):
        prefix = "midlayer." if layer == 0 else f"layers.{layer}."
        tensors |= _layer(config, prefix, 2 * H if layer == 0 else H, qk_norm, generator)
    if Vd < V:
        targets = torch.randperm(V, generator=generator)[:Vd].sort().values
        tensors["d2t"] = targets - torch.arange(Vd)
        tensors["t2d"] = torch.zeros(V, dtype=torch.bool).index_fill_(0, targets, True)
    return tensors


def target_tensors(config: Mapping[str, Any], seed: int = 1) -> dict[str, Tensor]:
    """Random float32 tensors of a Hugging Face Llama, Qwen2 or Qwen3 model."""
    generator = torch.Generator().manual_seed(seed)
    H, V = config["hidden_size"], config["vocab_size"]
    tensors = {
        "model.embed_tokens.weight": torch.randn(V, H, generator=generator),
        "model.norm.weight": _norm(H, generator),
    }
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = _linear(V, H, generator)
    for layer in range(config["num_hidden_layers"]):
        tensors |= _layer(
            config, f"model.layers.{layer}.", H, config["model_type"] == "qwen3", generator
        )
    return tensors


def write_drafter(
    path: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: object
) -> dict[str, Tensor]:
    """Write a flat drafter checkpoint into the folder `path`; return its tensors."""
    config = drafter_config(**overrides)
    return write_checkpoint(path, config, drafter_tensors(config, seed), dtype)


def write_target(
    path: Path, *, dtype: torch.dtype = torch.float32, seed: int = 1, **overrides: object
) -> dict[str, Tensor]:
    """Write a target checkpoint into the folder `path`; return its tensors."""
    config = target_config(**overrides)
    return write_checkpoint(path, config, target_tensors(config, seed), dtype)


def write_checkpoint(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Write `config.json` and `model.safetensors` with floats as `dtype`; return the tensors."""
    stored = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    return stored


# Fields that the nested formats keep in `transformer_layer_config`.
_LAYER_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "max_position_embeddings",
    "hidden_act",
    "attention_bias",
    "tie_word_embeddings",
)


def in_format(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A flat drafter's configuration and tensors, rewritten as a format of `FORMATS`."""
    return FORMATS[name](dict(config), dict(tensors))


def _vllm(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As AWS, with vLLM's names of the architecture and of the first layer."""
    config["architectures"] = ["PEagleDraftModel"]
    config["pard_token"] = config.pop("ptd_token_id")
    config["eagle_config"] = {
        "eagle_aux_hidden_state_layer_ids": config.pop("eagle_aux_hidden_state_layer_ids"),
        "norm_before_fc": config.pop("norm_before_fc", False),
    }
    return config, {_first_layer_numbered(name): tensor for name, tensor in tensors.items()}


def _nested(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The training format of AWS."""
    layer = {name: config.pop(name) for name in _LAYER_FIELDS if name in config}
    outer = {**config, "transformer_layer_config": layer, "para_depths": 8}
    return outer, {_first_layer_numbered(name): tensor for name, tensor in tensors.items()}


def _speculators(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As vLLM speculators writes it with transformers 5."""
    mask_token_id = config.pop("ptd_token_id")
    qk_norm = "PeagleQwen3ForCausalLM" in config["architectures"]
    outer, tensors = _nested(config, tensors)
    del outer["para_depths"]
    layer = outer["transformer_layer_config"]
    layer["model_type"] = "qwen3" if qk_norm else "llama"
    layer["rope_parameters"] = {
        "rope_type": "default",
        **layer.pop("rope_scaling", {}),
        "rope_theta": layer.pop("rope_theta"),
    }
    outer |= {
        "architectures": ["PEagleDraftModel"],
        "speculators_model_type": "peagle",
        "mask_token_id": mask_token_id,
        "speculators_config": {
            "algorithm": "peagle",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 8}],
            "verifier": {"name_or_path": "target"},
        },
    }
    return outer, tensors


def _automodel(
    config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As NeMo Automodel: most names behind `model.`, a config grown from a Qwen3 target's."""
    config |= {
        "architectures": ["LlamaEagle3DraftModel"],
        "model_type": "qwen3",
        "mask_token_id": config.pop("ptd_token_id"),
        "num_depths": 8,
        "parallel_drafting": True,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "layer_types": ["full_attention"] * config["num_hidden_layers"],
    }
    config.pop("eagle_aux_hidden_state_layer_ids")
    outside = ("lm_head.weight", "mask_hidden", "d2t", "t2d")
    return config, {
        name if name in outside else f"model.{_first_layer_numbered(name)}": tensor
        for name, tensor in tensors.items()
    }


FORMATS = {
    "aws": lambda config, tensors: (config, tensors),
    "vllm": _vllm,
    "nested": _nested,
    "speculators": _speculators,
    "automodel": _automodel,
}


def _first_layer_numbered(name: str) -> str:
    return name.replace("midlayer.", "layers.0.")


def _layer(
    config: Mapping[str, Any],
    prefix: str,
    input_size: int,
    qk_norm: bool,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    H, I, D = config["hidden_size"], config["intermediate_size"], config["head_dim"]  # noqa: E741
    q_rows, kv_rows = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    tensors = {
        "input_layernorm.weight": _norm(H, generator),
        "self_attn.q_proj.weight": _linear(q_rows, input_size, generator),
        "self_attn.k_proj.weight": _linear(kv_rows, input_size, generator),
        "self_attn.v_proj.weight": _linear(kv_rows, input_size, generator),
        "self_attn.o_proj.weight": _linear(H, q_rows, generator),
        "post_attention_layernorm.weight": _norm(H, generator),
        "mlp.gate_proj.weight": _linear(I, H, generator),
        "mlp.up_proj.weight": _linear(I, H, generator),
        "mlp.down_proj.weight": _linear(H, I, generator),
    }
    if config.get("attention_bias"):
        for name, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows), ("o", H)):
            tensors[f"self_attn.{name}_proj.bias"] = torch.randn(rows, generator=generator)
    if qk_norm:
        tensors["self_attn.q_norm.weight"] = _norm(D, generator)
        tensors["self_attn.k_norm.weight"] = _norm(D, generator)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _linear(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator) / columns**0.5


def _norm(size: int, generator: torch.Generator) -> Tensor:
    return 1 + 0.1 * torch.randn(size, generator=generator)


def _merged(base: Mapping[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
    return {name: v for name, v in {**base, **overrides}.items() if v is not None}
