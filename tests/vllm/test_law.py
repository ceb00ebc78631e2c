"""What is emitted has the target's law, where drafts are drawn on the V2 runner."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from engine_fixtures import HERE, environment

pytest_plugins = ["engine_fixtures"]

# Chi-square is larger once in 10,000 times at 5 degrees of freedom; the seeds are fixed.
LIMIT = 25.7


@pytest.mark.feature("Drafts that are drawn")
@pytest.mark.parametrize("runner", ["V2"])
def test_emitted_tokens_have_the_law_of_the_target(
    runner: str, vllm_python: str, tmp_path: Path
) -> None:
    """Each in its turn, after each token that can come before it."""
    subprocess.run(
        [vllm_python, HERE / "emit_tokens.py", tmp_path / "result.json"],
        env=environment(v2=runner == "V2"), check=True, timeout=300,
    )  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    target = torch.tensor(result["target"])
    V = target.shape[1]
    greedy: set[tuple[int, ...]] = set()
    counts = torch.zeros(3, V + 1, V)  # by turn and the token before
    for temperature, emitted, n in zip(
        result["temperature"], result["emitted"], result["num_emitted"], strict=True
    ):
        before = V
        for i, token in enumerate(emitted[:n]):
            if temperature == 0:
                assert token == target[before].argmax()
            else:
                counts[i, before, token] += 1
            before = token
        if temperature == 0:
            greedy.add(tuple(emitted[:n]))
    assert len(greedy) == 1
    laws = (target / 0.3).softmax(dim=1)
    tried = 0
    for turn in counts:
        for before, found in enumerate(turn):
            expected = found.sum() * laws[before]
            if found.sum() >= 20:
                tried += 1
                distance = ((found - expected).square() / expected).sum()
                assert distance < LIMIT, (before, found, expected)
    assert tried >= 3
