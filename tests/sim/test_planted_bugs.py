"""Every planted bug is found: by a report of the kind that it should have, or by a wrong result.

The tables of bugs are in `planted/`. Each is compiled, and runs under the four settings that every
kernel test runs under.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import pytest

from sim import summary
from sim.emulator import FOUR, Emulator, Settings
from sim.planted import BUGS, LAUNCH_ERROR, WRONG_RESULT, Bug
from sim.planting import Variants, plant
from sim.sample import LaunchError, Run
from sim.sample_kernels import SAMPLES

# Seconds of the processor, so that a deadlock or an endless loop counts as found only if it ends.
LONGEST_RUN = 10.0


def slug(bug: Bug) -> str:
    return bug.kernel + "-" + re.sub(r"\W+", "_", bug.name)


@dataclass(frozen=True)
class Verdict:
    bug: Bug
    findings: dict[str, list[str]]  # by setting: kinds of reports, and the constants of Bug

    @property
    def is_caught(self) -> bool:
        return any(self.findings.values())

    @property
    def kinds(self) -> list[str]:
        return sorted({kind for kinds in self.findings.values() for kind in kinds})

    def describe(self) -> str:
        """A row of the table: what found the bug, under how many of the settings."""
        outcome = ", ".join(
            f"{kind} ({'/'.join(name for name in FOUR if kind in self.findings[name])})"
            for kind in self.kinds
        )
        real = "" if self.bug.finds else "benign: "
        return f"{self.bug.kernel}: {self.bug.name}\n    {real}{outcome or 'nothing'}"


verdicts: list[Verdict] = []


# ---- Judging -------------------------------------------------------------------------------------


def findings_of(emulator: Emulator, name_suffix: str, kernel: str, settings: Settings) -> list[str]:
    with emulator.faulty_session(settings) as session:
        run = Run(session, name_suffix)
        launch_error = False
        try:
            SAMPLES[kernel].run(run)
        except LaunchError:
            launch_error = True
    kinds = {report.kind for report in session.reports}
    if launch_error:
        kinds.add(LAUNCH_ERROR)
    if any(output.mismatch() for output in run.outputs):
        kinds.add(WRONG_RESULT)
    return sorted(kinds)


@pytest.mark.parametrize("bug", BUGS, ids=slug)
def test_has_a_place(bug: Bug) -> None:
    """All that kernels have outgrown, in seconds and without a compiler."""
    files = SAMPLES[bug.kernel].files
    texts = {path: path.read_text() for path in files}
    assert plant(texts, bug) != texts


@pytest.mark.parametrize("bug", BUGS, ids=slug)
def test_planted_bug(bug: Bug, variants: Variants) -> None:
    emulator, name_suffix = variants.load(bug.kernel, bug)
    findings = {}
    for name, settings in FOUR.items():
        start = time.process_time()
        findings[name] = findings_of(emulator, name_suffix, bug.kernel, settings)
        seconds = time.process_time() - start
        assert seconds < LONGEST_RUN, f"{name}: expected to end by itself, took {seconds:.0f} s"
    verdict = Verdict(bug, findings)
    verdicts.append(verdict)
    if bug.benign:
        assert not verdict.is_caught, f"expected nothing ({bug.benign}), found {findings}"
    else:
        assert bug.finds in verdict.kinds, f"expected {bug.finds}, found {findings}"


def test_share_caught() -> None:
    if not verdicts:
        pytest.skip("no planted bug ran")
    real = [verdict for verdict in verdicts if not verdict.bug.benign]
    caught = [verdict for verdict in real if verdict.is_caught]
    summary.notes += [line for x in verdicts for line in x.describe().splitlines()]
    summary.notes.append(f"planted bugs: {len(caught)} of {len(real)} caught")
    for name in FOUR:
        share = sum(bool(verdict.findings[name]) for verdict in real)
        summary.notes.append(f"    {name}: {share}")
    assert caught == real
