"""What the emulator tells a pytest session: each compilation, and a table of the slowest."""

from __future__ import annotations

import pytest

from hostsim import build
from sim import emulator

NUM_SLOWEST = 8


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


def write_slowest(reporter: pytest.TerminalReporter) -> None:
    """Write the slowest compilations and runs, and their sums."""
    compiled, runs = build.compiled, emulator.runs
    if not compiled and not runs:
        return
    reporter.section("emulator")
    seconds = sum(x.seconds for x in compiled)
    reporter.write_line(f"{len(compiled)} files built, {seconds:.1f} s of compilers; the slowest:")
    for x in sorted(compiled, key=lambda x: -x.seconds)[:NUM_SLOWEST]:
        reporter.write_line(f"{x.seconds:8.1f} s  {x.name}")
    seconds = sum(x.seconds for x in runs)
    reporter.write_line(f"{len(runs)} emulated runs, {seconds:.1f} s; the slowest:")
    for x in sorted(runs, key=lambda x: -x.seconds)[:NUM_SLOWEST]:
        rate = f"{x.warp_instructions:10,} warp instructions"
        reporter.write_line(f"{x.seconds:8.2f} s  {rate}  {x.test}")
