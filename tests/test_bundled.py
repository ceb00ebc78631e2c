"""The trained pair that comes with the package: the main job on real input."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from p_eagle_cuda.bundled import bundled_drafter, bundled_target
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.generation import Generator, Report
from p_eagle_cuda.train.corpus import held_out_prompts, load_corpus

ROOT = Path(__file__).parents[1]
K = 5
PROMISED_LENGTH = 2.3  # tokens per verification step at K = 5, greedy, over held-out functions


@pytest.fixture(scope="module")
def report() -> tuple[Generator, list[list[int]], Report]:
    """Sixteen held-out functions, continued greedily in float32 by 120 tokens each."""
    generator = Generator(bundled_target(), bundled_drafter(), num_speculative_tokens=K)
    prompts = generator.encode(held_out_prompts(load_corpus(), limit=16), 120)
    return generator, prompts, generator.run(prompts, 120)


def test_held_out_functions_are_continued_losslessly_in_fewer_steps(
    report: tuple[Generator, list[list[int]], Report],
) -> None:
    _, prompts, result = report
    assert len(prompts) == 16
    assert result.lossless, f"differs at (prompt, token) {result.first_difference}"
    tokens = sum(map(len, result.outputs))
    assert tokens > 16 * 60
    assert result.target_steps < tokens / 2
    assert result.acceptance.length is not None
    assert result.acceptance.length >= PROMISED_LENGTH
    assert result.acceptance_not_looping.length is not None
    assert result.acceptance_not_looping.length >= PROMISED_LENGTH
    shares = result.acceptance.per_position
    assert shares == sorted(shares, reverse=True)


def test_the_text_is_that_of_transformers(
    report: tuple[Generator, list[list[int]], Report],
) -> None:
    """The target, loaded and decoded greedily by a library that shares nothing with ours."""
    _, prompts, result = report
    model = AutoModelForCausalLM.from_pretrained(bundled_target(), dtype=torch.float32)
    for prompt, output in list(zip(prompts, result.outputs, strict=True))[:3]:
        ids = model.generate(
            torch.tensor([prompt]), max_new_tokens=len(output), do_sample=False,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        )  # fmt: skip
        assert ids[0, len(prompt) :].tolist() == output


def test_sampled_text_is_lossless_too(
    report: tuple[Generator, list[list[int]], Report],
) -> None:
    generator, prompts, greedy = report
    result = generator.run(prompts[:4], 60, temperature=0.8, seed=1)
    assert result.lossless
    assert result.outputs != [ids[:60] for ids in greedy.outputs[:4]]


def test_the_readme_shows_the_committed_measurement() -> None:
    """Made by `benchmarks/bench_acceptance.py` over more prompts and tokens than this suite's."""
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks/bench_acceptance.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    measured = json.loads((ROOT / "benchmarks/results/acceptance-bundled.json").read_text())
    assert bench.table(measured) in (ROOT / "README.md").read_text()
    (row,) = [row for row in measured["rows"] if row["k"] == K]
    assert row["acceptance_length_not_looping"] >= PROMISED_LENGTH
    assert all(row["lossless"] for row in measured["rows"])


def test_configurations_name_what_a_drafter_needs() -> None:
    config = json.loads((bundled_drafter() / "config.json").read_text())
    tensors = bundled_target() / "model.safetensors"
    assert config["target_sha256"] == hashlib.sha256(tensors.read_bytes()).hexdigest()
    drafter = DrafterConfig.from_pretrained(bundled_drafter())
    target = json.loads((bundled_target() / "config.json").read_text())
    assert drafter.num_layers == 4
    assert drafter.num_taps == 3
    assert drafter.tap_layer_ids == tuple(config["eagle_aux_hidden_state_layer_ids"])
    assert drafter.num_speculative_tokens == 8
    for hidden, heads, kv_heads, head_dim in (
        (drafter.hidden_size, drafter.num_heads, drafter.num_kv_heads, drafter.head_dim),
        (
            target["hidden_size"], target["num_attention_heads"], target["num_key_value_heads"],
            target["head_dim"],
        ),
    ):  # fmt: skip
        assert hidden % 64 == 0
        assert head_dim == 64
        assert heads > kv_heads
        assert heads % kv_heads == 0


def test_the_pair_is_small() -> None:
    files = [f for folder in (bundled_target(), bundled_drafter()) for f in folder.iterdir()]
    assert sum(f.stat().st_size for f in files) < 16e6


def test_tokenizer_round_trip() -> None:
    """Any text comes back, by `tokenizers` and by `transformers`."""
    text = "def f(x):\n\treturn 'déjà vu ☃' + x  # 100%\n\n"
    plain = Tokenizer.from_file(str(bundled_target() / "tokenizer.json"))
    ids = plain.encode(text).ids
    assert plain.decode(ids) == text
    tokenizer = AutoTokenizer.from_pretrained(bundled_target())
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
