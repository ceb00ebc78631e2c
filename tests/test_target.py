"""The embedded target against the Hugging Face models it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from checkpoints import write_target
from p_eagle_cuda.errors import CheckpointError, ConfigError
from p_eagle_cuda.target import Target, TargetConfig, TargetRows

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "bias": {"attention_bias": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "yarn": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}
BLOCK_SIZE = 16


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_taps_equal_hugging_face(variant: str, tmp_path: Path) -> None:
    """A prompt in two chunks and blocks out of order, against one dense pass."""
    write_target(tmp_path, **VARIANTS[variant])
    taps = (1, 3, 6)
    target = Target.from_pretrained(tmp_path, tap_layer_ids=taps, dtype=torch.float64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids = torch.randint(target.config.vocab_size, (37,))
    with torch.no_grad():
        expected = model(ids[None], output_hidden_states=True)

    caches = target.allocate_cache(4, BLOCK_SIZE)
    block_table = torch.tensor([[3, 1, 2]], dtype=torch.int32)
    logits, hidden = [], []
    for start, end in ((0, 20), (20, 37)):
        positions = torch.arange(start, end)
        rows = TargetRows(
            token_ids=ids[start:end],
            positions=positions,
            slots=block_table[0, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
            row_start=torch.tensor([0, end - start], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
            block_table=block_table,
        )
        output = target.forward(rows, caches, torch.arange(end - start))
        logits.append(output.logits)
        hidden.append(torch.stack(output.taps))
    torch.testing.assert_close(torch.cat(logits), expected.logits[0], rtol=1e-5, atol=1e-5)
    # hidden_states[i] enters layer i; the one after the last layer is normed there, unlike a tap.
    for tap, layer in zip(torch.cat(hidden, dim=1)[:-1], taps[:-1], strict=True):
        torch.testing.assert_close(tap, expected.hidden_states[layer][0], rtol=1e-5, atol=1e-5)
    last = model.model.norm(torch.cat(hidden, dim=1)[-1])
    torch.testing.assert_close(last, expected.hidden_states[6][0], rtol=1e-5, atol=1e-5)


def test_end_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    write_target(tmp_path)
    assert TargetConfig.from_pretrained(tmp_path).eos_token_ids == (2,)
    generation = tmp_path / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert TargetConfig.from_pretrained(tmp_path).eos_token_ids == (7, 9)
    generation.write_text(json.dumps({"do_sample": False}))
    assert TargetConfig.from_pretrained(tmp_path).eos_token_ids == (2,)
    generation.write_text(json.dumps({"eos_token_id": ["</s>"]}))
    with pytest.raises(ConfigError, match="`eos_token_id` must be a token id or a list of them"):
        TargetConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM", ["GptOssForCausalLM"]])
def test_other_architectures_are_refused(architectures: object, tmp_path: Path) -> None:
    write_target(tmp_path, architectures=architectures)
    with pytest.raises(ConfigError, match=r"(expected|must be) a list of one of"):
        TargetConfig.from_pretrained(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_target(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_hidden_layers"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"`model\.layers\.6\.[a-z_.]+` is missing"):
        Target.from_pretrained(tmp_path)
