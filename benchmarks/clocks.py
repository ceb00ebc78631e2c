"""Watches a GPU's clocks while something is timed, so that no result hides a slowdown."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
from dataclasses import dataclass
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

FIELDS = "clocks.sm,clocks_event_reasons.active"
PERIOD_MS = 100
MAX_DROP = 0.02  # of the tenth slowest of all samples below the median
# Bits of clocks_event_reasons.active.
IDLE = 0x1
SLOWDOWNS = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Sample:
    """The SM clock at a moment, and why it is not higher."""

    mhz: int
    reasons: int

    @classmethod
    def parse(cls, line: str) -> Sample | None:
        """From a line of nvidia-smi; None if it holds no numbers."""
        try:
            mhz, reasons = line.split(", ")
            return cls(int(mhz), int(reasons, 16))
        except ValueError:
            return None


class ClockWatch:
    """Samples the clocks in the background from where it is entered to where it is left.

    Where there is no nvidia-smi nothing is known, and nothing is claimed to be wrong.
    """

    def __init__(self) -> None:
        """Nothing runs yet."""
        self.samples: list[Sample] = []  # while the GPU was at work
        self._log = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - lives as long as this
        self._watcher: subprocess.Popen[str] | None = None

    def __enter__(self) -> ClockWatch:
        """Start to sample."""
        command = (
            "nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", "--id=0",
            f"--loop-ms={PERIOD_MS}",
        )  # fmt: skip
        with contextlib.suppress(OSError):
            self._watcher = subprocess.Popen(
                command, stdout=self._log, stderr=subprocess.DEVNULL, text=True
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        if self._watcher is not None:
            self._watcher.terminate()
            self._watcher.wait()
        self._log.seek(0, os.SEEK_SET)
        found = [Sample.parse(line.strip()) for line in self._log]
        self._log.close()
        self.samples = [x for x in found if x is not None and not x.reasons & IDLE]

    def as_json(self) -> dict[str, Any] | None:
        """What the clocks were; None if nothing is known."""
        if not self.samples:
            return None
        mhz = [x.mhz for x in self.samples]
        return {
            "samples": len(mhz), "median_mhz": statistics.median(mhz), "p10_mhz": self._p10(),
            "highest_mhz": max(mhz), "reasons": sorted({hex(x.reasons) for x in self.samples}),
        }  # fmt: skip

    def complaint(self) -> str | None:
        """Why what was timed in the meantime is not to be trusted; None if there is no reason."""
        if not self.samples:
            return None
        slowdowns = [
            name for bit, name in SLOWDOWNS.items() if any(x.reasons & bit for x in self.samples)
        ]
        if slowdowns:
            return f"the GPU was slowed down while it was timed: {', '.join(slowdowns)}"
        median = statistics.median(x.mhz for x in self.samples)
        if self._p10() < (1 - MAX_DROP) * median:
            return f"the clocks fell from {median:.0f} to {self._p10():.0f} MHz while it was timed"
        return None

    def note(self, report: dict[str, Any]) -> None:
        """Add them to a report, and to its errors what is wrong with them."""
        report["clocks"] = self.as_json()
        if complaint := self.complaint():
            report["errors"].append({"clocks": complaint})

    def _p10(self) -> float:
        mhz = sorted(x.mhz for x in self.samples)
        return float(mhz[(len(mhz) - 1) // 10])
