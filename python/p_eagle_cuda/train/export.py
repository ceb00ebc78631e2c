"""Target and drafter as Hugging Face folders: config, weights in bfloat16, tokenizer."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from .checkpointing import read_checkpoint
from .model import Drafter, Shape, Target
from .tokenizer import END_OF_TEXT_ID, MASK_ID


def export_target(folder: Path, model: Target, tokenizer_folder: Path) -> None:
    """Write a `LlamaForCausalLM` folder with tied embeddings."""
    shape = model.shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        **_common_config(shape),
        "num_hidden_layers": shape.target_layers,
        "tie_word_embeddings": True,
    }
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    _write_folder(folder, config, tensors)
    generation = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID}
    _write_json(folder / "generation_config.json", {**generation, "do_sample": False})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder / name, folder / name)


def export_drafter(folder: Path, model: Drafter, target_folder: Path, depths: int) -> None:
    """Write a P-EAGLE folder, tied by a hash to the target it was trained for.

    `num_depths`, as NeMo Automodel calls it, counts the rows of the deepest rollout of the
    training, its real row included.
    """
    shape = model.shape
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **_common_config(shape),
        "num_hidden_layers": shape.drafter_layers,
        "tie_word_embeddings": False,
        "draft_vocab_size": shape.vocab_size,
        "target_hidden_size": shape.hidden_size,
        "ptd_token_id": MASK_ID,
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": list(shape.tap_layers),
        "num_depths": depths,
        "target_sha256": file_sha256(target_folder / "model.safetensors"),
    }
    _write_folder(folder, config, model.state_dict())


def export_checkpoints(folder: Path, shape: Shape) -> None:
    """Write `target` and, where there is one, `drafter` from the checkpoints, finished or not.

    Raises:
        CheckpointError: There is no target checkpoint, or the drafter is another target's.
    """
    target = Target(shape)
    target.load_state_dict(read_checkpoint(folder / "target.ckpt", "target")["model"])
    export_target(folder / "target", target, folder / "tokenizer")
    path = folder / "drafter.ckpt"
    if not path.exists():
        return
    saved = read_checkpoint(path, "drafter")
    settings = saved["hyperparameters"]
    _check_target(path, settings["target_sha256"], folder / "target")
    drafter = Drafter(shape)
    drafter.load_state_dict(saved["model"])
    export_drafter(folder / "drafter", drafter, folder / "target", settings["depths"])


def load_target(folder: Path, shape: Shape) -> Target:
    """The exported target, its bfloat16 weights widened to float32: exactly what users will run.

    Raises:
        CheckpointError: There is no exported target, or one of another shape.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"{path}: not found; run the stage `target` first")
    model = Target(shape)
    tensors = load_file(path)
    try:
        model.load_state_dict(
            {name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()}
        )
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not have the shape asked for, {shape}") from error
    return model.eval().requires_grad_(False)


def load_drafter(folder: Path, target_folder: Path, shape: Shape) -> Drafter:
    """The exported drafter, widened to float32.

    Raises:
        CheckpointError: It is missing, or was trained for another target.
    """
    config_path = folder / "config.json"
    if not config_path.exists():
        raise CheckpointError(f"{config_path}: not found; run the stage `drafter` first")
    _check_target(folder, json.loads(config_path.read_text())["target_sha256"], target_folder)
    model = Drafter(shape)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval().requires_grad_(False)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_target(path: Path, trained_for: str, target_folder: Path) -> None:
    found = file_sha256(target_folder / "model.safetensors")
    if trained_for != found:
        raise CheckpointError(
            f"{path}: was trained for the target with sha256 {trained_for[:12]}, "
            f"found {found[:12]} in {target_folder}"
        )


def _common_config(shape: Shape) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": shape.max_positions,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
    }


def _write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Weights first, config last, each by a rename: a folder with a config is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    temporary = folder / "model.safetensors.tmp"
    save_file(rounded, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors lets only the owner read
    temporary.replace(folder / "model.safetensors")
    _write_json(folder / "config.json", config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
