"""The performance table of README.md is what the committed results make it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from test_benchmarks import load


@pytest.fixture(scope="module")
def report() -> ModuleType:
    return load("report")


def result(date: str, us: float, **overrides: Any) -> dict[str, Any]:
    """What `gpu_check.sh` leaves of the passes of one batch."""
    row = {
        "batch": 1, "k": 7, "context": 4096, "accepted": "mean", "kv": "bf16", "weights": "bf16",
        "passes": {"auto": {"median_us": us}, "torch": {"median_us": 2 * us}},
    }  # fmt: skip
    passes = {
        "gpu": "NVIDIA H200", "date": date, "commit": "abc1234", "torch": "2.11.0",
        "command": "python bench_pass.py", "drafter": "gpt-oss-20b", "copy_gb_per_s": 4000.0,
        "product_tflop_per_s": 700.0, "results": [row, {**row, "kv": "fp8", "batch": 2}],
    }  # fmt: skip
    return {"results": {"pass": {**passes, **overrides}}}


def write(folder: Path, name: str, value: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(value))


def test_the_readme_has_the_table_of_the_results(report: ModuleType) -> None:
    readme = (report.ROOT / "README.md").read_text(encoding="utf-8")
    assert report.with_table(readme, report.performance()) == readme, (
        "run: python benchmarks/report.py --readme"
    )


def test_nothing_is_claimed_without_a_measurement(report: ModuleType, tmp_path: Path) -> None:
    dry = result("2026-11-30", 600.0, dry_run=True)
    del dry["results"]["pass"]["gpu"]
    write(tmp_path, "dry-run", dry)
    write(tmp_path, "other", result("2026-11-30", 600.0, drafter="Qwen3-8B"))
    write(tmp_path, "acceptance", {"rows": []})
    write(tmp_path, "linear", {"results": []})
    text = report.performance(tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(report.BATCHES)
    assert all(row.endswith("| not measured | not measured | not measured |") for row in rows)
    assert "predicted, for an H200" in text.replace("\n", " ")
    assert "Measured" not in text


def test_the_newest_measurement_is_shown_with_what_made_it(
    report: ModuleType, tmp_path: Path
) -> None:
    write(tmp_path, "a", result("2026-12-02", 610.4))
    write(tmp_path, "b", result("2026-12-01", 900.0))
    text = report.performance(tmp_path).replace("\n", " ")
    assert "| 610 | 1221 | not measured |" in text
    assert "Measured on NVIDIA H200 on 2026-12-02, commit abc1234" in text
    assert "`python bench_pass.py`" in text
    num_bytes, floor = report.floors((4e12, 7e14))[1]
    assert f"| 1 | {num_bytes / 1e6:.0f} | {floor:.0f} | 610 " in text
    assert text.count("not measured |") == 1 + 3 * 7


def test_a_readme_without_marks_is_refused(report: ModuleType) -> None:
    for readme in ("", report.BEGIN, report.BEGIN * 2 + report.END):
        with pytest.raises(report.PEagleError, match=r"README\.md: expected one line"):
            report.with_table(readme, "table\n")


def test_pictures(report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    report.plot(tmp_path)
    pictures = sorted(x.name for x in tmp_path.iterdir())
    assert pictures == ["acceptance.png", "kernel_bytes.png", "pass_time.png"]
    monkeypatch.setattr(report, "find_spec", lambda _: None)
    with pytest.raises(report.PEagleError, match="needs matplotlib"):
        report.plot(tmp_path)


def test_simulated_bytes_are_complete(report: ModuleType) -> None:
    """Of every kernel of a pass, with what made them, and no less than what must move."""
    simulated = json.loads(report.BUNDLED_TRAFFIC.read_text())
    assert "no GPU" in simulated["simulated"]
    assert "simulate_traffic.py" in simulated["command"]
    launches = [sum(x["launches"] for x in one["kernels"]) for one in simulated["passes"]]
    assert launches == 3 * [4 + 5 * 4, 4 + 5 * 4 + 2]  # a large batch prunes
    for one in simulated["passes"]:
        for x in one["kernels"]:
            assert x["moved_bytes"] >= x["needed_bytes"], x["kernel"]
