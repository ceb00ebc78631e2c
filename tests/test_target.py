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


def test_a_tree_reads_each_path_as_a_text_of_its_own(tmp_path: Path) -> None:
    """Beside a request whose rows follow each other, in the same pass."""
    write_target(tmp_path)
    target = Target.from_pretrained(tmp_path, tap_layer_ids=(2, 6), dtype=torch.float64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    V = target.config.vocab_size
    text, other = torch.randint(V, (20,)), torch.randint(V, (70,))
    parents = [-1, 0, 0, 1, 2, 1, 3]
    nodes = torch.randint(V, (len(parents),))
    paths: list[list[int]] = []
    for i, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), i])

    caches = target.allocate_cache(16, BLOCK_SIZE)
    block_table = torch.arange(1, 15, dtype=torch.int32).view(2, 7).flip(0)

    def slots(request: int, first: int, count: int) -> torch.Tensor:
        place = torch.arange(first, first + count)
        return block_table[request, place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE

    prompt = TargetRows(
        text, torch.arange(20), slots(1, 0, 20), torch.tensor([0, 20], dtype=torch.int32),
        torch.tensor([20], dtype=torch.int32), block_table[1:],
    )  # fmt: skip
    target.forward(prompt, caches, torch.arange(0))
    T, n = len(other), len(nodes)
    rows = TargetRows(
        token_ids=torch.cat([other, nodes]),
        positions=torch.cat([torch.arange(T), torch.tensor([19 + len(path) for path in paths])]),
        slots=torch.cat([slots(0, 0, T), slots(1, 20, n)]),
        row_start=torch.tensor([0, T, T + n], dtype=torch.int32),
        seq_lens=torch.tensor([T, 20 + n], dtype=torch.int32),
        block_table=block_table,
        tree_mask=torch.tensor([0] * T + [sum(1 << i for i in path) for path in paths]),
        num_causal=1,
    )
    output = target.forward(rows, caches, torch.arange(T + n))

    def expected(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            out = model(ids[None], output_hidden_states=True)
        return out.logits[0], out.hidden_states[2][0]

    logits, tap = expected(other)
    torch.testing.assert_close(output.logits[:T], logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.taps[0][:T], tap, rtol=1e-5, atol=1e-5)
    for i, path in enumerate(paths):
        logits, tap = expected(torch.cat([text, nodes[path]]))
        torch.testing.assert_close(output.logits[T + i], logits[-1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.taps[0][T + i], tap[-1], rtol=1e-5, atol=1e-5)


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
