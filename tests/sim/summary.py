"""What the emulator tells a pytest session: each compilation, and a table of the slowest.

Where pytest-xdist runs tests in several processes, each hands its part of the table to the one that
has the terminal.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest

from hostsim import build
from sim import emulator

NUM_SLOWEST = 8

notes: list[str] = []  # lines of tests, written before the table


def show_compilations(config: pytest.Config) -> None:
    """Have `build` write a line to the terminal for each file it compiles."""
    capture = config.pluginmanager.getplugin("capturemanager")
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if capture is None or reporter is None:
        return  # a worker of another process, which has no terminal

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(line)

    build.report_progress = write


def handed_over() -> dict[str, Any]:
    """All that this process knows, as plain values."""
    return {
        "notes": notes,
        "compiled": [astuple(x) for x in build.compiled],
        "runs": [astuple(x) for x in emulator.runs],
    }


def take_over(known: dict[str, Any]) -> None:
    """Add what another process has handed over."""
    notes.extend(known["notes"])
    build.compiled.extend(build.Compiled(*x) for x in known["compiled"])
    emulator.runs.extend(emulator.Run(*x) for x in known["runs"])


def write(reporter: pytest.TerminalReporter) -> None:
    """Write the notes, the slowest compilations and runs, and their sums."""
    compiled, runs = build.compiled, emulator.runs
    if not compiled and not runs and not notes:
        return
    reporter.section("emulator")
    for line in notes:
        reporter.write_line(line)
    seconds = sum(x.seconds for x in compiled)
    reporter.write_line(f"{len(compiled)} files built, {seconds:.1f} s of compilers; the slowest:")
    for x in sorted(compiled, key=lambda x: -x.seconds)[:NUM_SLOWEST]:
        reporter.write_line(f"{x.seconds:8.1f} s  {x.name}")
    seconds = sum(x.seconds for x in runs)
    reporter.write_line(f"{len(runs)} emulated runs, {seconds:.1f} s; the slowest:")
    for x in sorted(runs, key=lambda x: -x.seconds)[:NUM_SLOWEST]:
        rate = f"{x.warp_instructions:10,} warp instructions"
        reporter.write_line(f"{x.seconds:8.2f} s  {rate}  {x.test}")
