"""`vllm serve`, `vllm bench serve` and `p-eagle-cuda eval`, as on the cards of the models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from engine_fixtures import HttpServer, environment, vllm_command

from p_eagle_cuda.bundled import bundled_target

pytest_plugins = ["engine_fixtures"]

PROMPTS = [
    "def quicksort(xs):\n", "class Stack:\n    def push(self, item):\n", "import os\n",
    "def read_lines(path):\n    with open(path) as f:\n", "for i in range(10):\n",
    "def main():\n    parser = argparse",
]  # fmt: skip
MAX_TOKENS = 32


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return file


def run_json(*arguments: object) -> Any:
    """What `p-eagle-cuda ... --json` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "p_eagle_cuda", *map(str, arguments), "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stderr
    return json.loads(done.stdout)


@cache
def evaluate(url: str, prompt_file: Path) -> dict[str, Any]:
    found = run_json(
        "eval", "--dataset", prompt_file, "--base-url", url, "--max-tokens", MAX_TOKENS,
        "--concurrency", 4, "--extra-body", json.dumps({"ignore_eos": True}),
    )  # fmt: skip
    assert found["model"] == "bundled"
    (result,) = found["datasets"]
    return dict(result)


@pytest.mark.feature("`p-eagle-cuda eval`")
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_evaluation(runner: str, http_servers: dict[str, HttpServer], prompt_file: Path) -> None:
    """Every token of ours is counted, and no other."""
    server = http_servers[runner]
    (taken,) = [line for line in server.log.splitlines() if "p_eagle_cuda drafts" in line]
    assert ("on the V2 runner" in taken) == (runner == "V2"), taken
    found = evaluate(server.url, prompt_file)
    tokens = len(PROMPTS) * MAX_TOKENS
    assert found["num_own_tokens"] == found["num_generated_tokens"] == tokens
    # The first token of a text is not drafted; drafts may go beyond the last.
    drafted = found["num_drafts"] + found["num_accepted_tokens"]
    assert tokens - len(PROMPTS) <= drafted < tokens + 5 * len(PROMPTS)
    assert len(found["per_position"]) == 5
    assert found["per_position"] == sorted(found["per_position"], reverse=True)
    assert found["acceptance_length"] == pytest.approx(1 + sum(found["per_position"]))
    v1 = evaluate(http_servers["V1"].url, prompt_file)
    assert found["acceptance_length"] == pytest.approx(v1["acceptance_length"], rel=0.01)
    assert found["acceptance_length"] > 1.5


@pytest.mark.feature("`vllm bench serve`")
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_vllms_benchmark_finds_the_same(
    runner: str,
    http_servers: dict[str, HttpServer],
    prompt_file: Path,
    vllm_python: str,
    tmp_path: Path,
) -> None:
    url = http_servers[runner].url
    ours = evaluate(url, prompt_file)
    done = subprocess.run(
        [
            *vllm_command(vllm_python), "bench", "serve", "--backend", "openai-chat", "--base-url",
            url, "--endpoint", "/v1/chat/completions", "--model", "bundled", "--tokenizer",
            bundled_target(), "--dataset-name", "custom", "--dataset-path", prompt_file,
            "--skip-chat-template", "--custom-output-len", str(MAX_TOKENS), "--num-prompts",
            str(len(PROMPTS)), "--max-concurrency", "4", "--temperature", "0", "--ignore-eos",
            "--save-result", "--result-dir", tmp_path, "--result-filename", "bench.json",
        ],
        env=environment(v2=False), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    theirs = json.loads((tmp_path / "bench.json").read_text())
    assert theirs["completed"] == len(PROMPTS)
    assert theirs["total_output_tokens"] == ours["num_own_tokens"]
    assert theirs["spec_decode_num_drafts"] == ours["num_drafts"]
    assert theirs["spec_decode_draft_tokens"] == ours["num_draft_tokens"]
    assert theirs["spec_decode_acceptance_length"] == pytest.approx(ours["acceptance_length"])
    assert theirs["spec_decode_per_position_acceptance_rates"] == pytest.approx(
        ours["per_position"]
    )


@pytest.fixture(scope="module")
def texts(prompt_file: Path) -> list[str]:
    """As our own engine continues the prompts, which shares no code with vLLM."""
    found = run_json("generate", "--prompts", prompt_file, "--max-tokens", MAX_TOKENS)
    assert found["lossless"]
    return list(found["texts"])


@pytest.mark.feature("`vllm serve`")
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_text_is_that_of_the_target_alone(
    runner: str, http_servers: dict[str, HttpServer], texts: list[str]
) -> None:
    body = {"model": "bundled", "prompt": PROMPTS, "max_tokens": MAX_TOKENS, "temperature": 0}
    request = urllib.request.Request(
        f"{http_servers[runner].url}/v1/completions", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=300) as answer:
        choices = json.load(answer)["choices"]
    found = [x["text"] for x in sorted(choices, key=lambda x: x["index"])]
    assert found == texts
