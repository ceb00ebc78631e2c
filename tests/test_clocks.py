"""A benchmark knows when its GPU was slowed down."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from test_benchmarks import load


@pytest.fixture(scope="module")
def clocks() -> ModuleType:
    return load("clocks")


def watch(clocks: ModuleType, lines: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> Any:
    """A watch that an nvidia-smi tells these lines, one after the other."""
    tool, told = tmp_path / "nvidia-smi", tmp_path / "told"
    (tmp_path / "lines").write_text("\n".join([*lines, ""]))
    tool.write_text(f'#!/bin/sh\necho "$@" > {told}\ncat {tmp_path}/lines\nexec sleep 60\n')
    tool.chmod(0o755)
    patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with clocks.ClockWatch() as found:
        while not told.exists() or os.fstat(found._log.fileno()).st_size < len("\n".join(lines)):
            pass
    assert "--query-gpu=clocks.sm,clocks_event_reasons.active" in told.read_text()
    return found


STEADY = ["1980, 0x0000000000000000"] * 9


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (STEADY, None),
        ([*STEADY, "345, 0x0000000000000001", "[N/A], [N/A]"], None),  # idle, and no number
        ([*STEADY, "1950, 0x0000000000000004"], None),  # less than 2 %, by its power limit
        ([*STEADY, "1900, 0x0000000000000004"], "the clocks fell from 1980 to 1900 MHz"),
        ([*STEADY, "1980, 0x0000000000000044"], "slowed down .*: hardware thermal slowdown"),
        (["[N/A], [N/A]"], None),
    ],
)
def test_what_is_complained_about(
    lines: list[str],
    complaint: str | None,
    clocks: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = watch(clocks, lines, tmp_path, monkeypatch)
    report: dict[str, Any] = {"errors": []}
    found.note(report)
    if complaint is None:
        assert report["errors"] == []
    else:
        assert re.search(complaint, report["errors"][0]["clocks"])
    if len(lines) > 1:
        assert report["clocks"]["median_mhz"] == report["clocks"]["highest_mhz"] == 1980
    else:
        assert report["clocks"] is None


def test_without_the_tool_nothing_is_known(
    clocks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with clocks.ClockWatch() as found:
        pass
    assert found.as_json() is found.complaint() is None
