"""The engine's benchmark on a CPU: who takes turns, what is compared, what must not differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from p_eagle_cuda.errors import PEagleError
from test_benchmarks import load


@pytest.fixture(scope="module")
def bench_cpu() -> ModuleType:
    return load("bench_cpu")


@pytest.fixture(autouse=True)
def _one_prompt(bench_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read the corpus takes longer than all the rest."""
    monkeypatch.setattr(bench_cpu, "load_corpus", list)
    monkeypatch.setattr(bench_cpu, "held_out_prompts", lambda _, limit: ["def f(x):"][:limit])


def test_every_way_to_decode_at_toy_size(
    bench_cpu: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "new" / "cpu.json"
    sizes = "--k 1 2 --nodes 4 --prompts 1 --max-tokens 8 --rounds 2 --json"
    monkeypatch.setattr(sys, "argv", ["bench_cpu", *sizes.split(), str(file)])
    assert bench_cpu.main() == 0
    report = json.loads(file.read_text())
    rows = {row["candidate"]: row for row in report["rows"]}
    assert {name: row["against"] for name, row in rows.items()} == {
        "plain": "plain",
        "chain, K = 1": "plain",
        "chain, K = 2": "plain",
        "dynamic tree, K = 2, 4 nodes": "chain, K = 2",
        "chain, K = 2, FP8": "chain, K = 2",
    }
    assert all(row["lossless"] for row in rows.values())
    assert rows["plain"]["acceptance_length"] is None
    assert 1 < rows["chain, K = 2"]["acceptance_length"] <= 3
    assert rows["plain"]["speedup"] == {"median": 1, "p10": 1, "p90": 1}
    assert bench_cpu.table(report) in capsys.readouterr().out


class Fake:
    """Decodes at the speeds that it is given, one a call."""

    def __init__(self, name: str, order: list[str], speeds: list[float], tokens: list[int]) -> None:
        self.name, self.order, self.speeds, self.tokens = name, order, iter(speeds), tokens

    def __call__(self) -> Any:
        self.order.append(self.name)
        return SimpleNamespace(
            completions=[SimpleNamespace(token_ids=self.tokens)],
            tokens_per_s=next(self.speeds),
            acceptance=lambda k: SimpleNamespace(length=1.0 + k),
        )


def test_ratios_are_of_the_same_round(
    bench_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine slows down tenfold, and the ratio stays; the first call does not count."""
    order: list[str] = []
    plain = Fake("plain", order, [999, 100, 10, 1], [1, 2])
    chain = Fake("chain", order, [1, 200, 30, 2], [1, 3])
    found = {
        "plain": bench_cpu.Candidate("plain", 0, plain),
        "chain": bench_cpu.Candidate("plain", 3, chain),
    }
    monkeypatch.setattr(bench_cpu, "candidates", lambda *_: found)
    monkeypatch.setattr(sys, "argv", ["bench_cpu", "--prompts", "1", "--rounds", "3"])
    assert bench_cpu.main() == 1, "the chain is not lossless"
    assert order == ["plain", "chain", "plain", "chain", "chain", "plain", "plain", "chain"]
    out = capsys.readouterr().out
    assert "| plain | - | 10 | 1.00 | 1.00 to 1.00 | plain | yes |" in out
    assert "| chain | 4.00 | 30 | 2.00 | 2.00 to 2.80 | plain | NO |" in out


def test_percentiles(bench_cpu: ModuleType) -> None:
    assert bench_cpu.spread([3.0]) == {"median": 3, "p10": 3, "p90": 3}
    assert bench_cpu.spread([float(x) for x in range(101)]) == {
        "median": 50, "p10": pytest.approx(10), "p90": pytest.approx(90),
    }  # fmt: skip


def test_what_cannot_be_measured_is_refused(bench_cpu: ModuleType) -> None:
    with pytest.raises(PEagleError, match="--prompts must be at most 1, got 2"):
        bench_cpu.measure([1], [], 2, 8, 1)
    with pytest.raises(PEagleError, match="k must be 1 to 32, got 99"):
        bench_cpu.measure([99], [], 1, 8, 1)
