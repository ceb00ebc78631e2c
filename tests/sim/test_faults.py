"""Kernels with errors: each ends with a report that names it, within seconds, and nothing else."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from sim.emulator import FOUR, Report, Settings
from sim.micro_kernels import Conformance

INT = np.int32
OUT = (32, INT)
INPUT = np.arange(32, dtype=INT)


@dataclass(frozen=True)
class Fault:
    kernel: str
    kind: str
    message: str  # a part of it
    arguments: dict[str, Any]
    needs_race_detection: bool = False

    def __str__(self) -> str:
        return self.kernel


def fault(kernel: str, kind: str, message: str, *, race: bool = False, **arguments: Any) -> Fault:
    return Fault(kernel, kind, message, {"outputs": [OUT], **arguments}, race)


FAULTS = [
    fault("read_past_the_end", "memory", "offset 128 of 'in0' (128 bytes)", inputs=[INPUT]),
    fault("write_before_the_start", "memory", "offset -4 of 'out0' (128 bytes)"),
    fault("wild_pointer", "memory", "0x3039000, which is no memory", n=[12345]),
    fault("write_to_input", "memory", "offset 0 of 'in0', which is read-only", inputs=[INPUT]),
    fault("non_coherent_read_of_written", "memory", "'out0', which the kernel writes", race=True),
    fault("read_of_unwritten_output", "uninit", "of 'out0', which nothing has written"),
    fault("read_of_unwritten_shared", "uninit", "offset 124 of"),
    fault("past_shared_variable", "memory", "(128 bytes)", n=[1]),
    fault("past_dynamic_shared", "memory", "offset 124 of 'dynamic shared", shared=124),
    fault("misaligned", "align", "multiple of 8", inputs=[np.arange(34, dtype=INT)],
          outputs=[(32, np.int64)]),
    fault("race_in_shared", "race", "of shared memory", race=True, outputs=[(64, INT)],
          block=64),
    fault("race_within_warp", "race", "a read of shared memory", race=True),
    fault("race_across_blocks", "race", "a write of out0", race=True, grid=2),
    *(fault("one_reader_is_not_waited_for", "race", "a write of shared memory", race=True,
            block=block, outputs=[(block, INT)], n=[reader, broadcast])
      for block, reader, broadcast in ((96, 0, 0), (96, 0, 1), (96, 1, 1), (128, 2, 0))),
    fault("plain_write_after_atomics", "race", "a write of out1", race=True, block=64,
          outputs=[(64, INT), np.zeros(1, INT)]),
    fault("fence_too_narrow", "race", "a read of out0", race=True, grid=2, block=1,
          outputs=[(1, INT), np.zeros(1, INT), (1, INT)]),
    fault("fence_too_narrow_to_acquire", "race", "a read of out0", race=True, grid=2, block=1,
          outputs=[(1, INT), np.zeros(1, INT), (1, INT)]),
    fault("polls_in_vain", "livelock", "32 threads run in", outputs=[np.zeros(1, INT)]),
    fault("runs_forever", "livelock", "32 threads run in"),
    fault("unknown_instruction", "ptx", "vabsdiff4", n=[1, 2, 3]),
    fault("does_nothing_wrong", "launch", "1025 threads per block", block=1025),
    fault("does_nothing_wrong", "launch", "in clusters of (2,1,1)", grid=3, cluster=2),
]  # fmt: skip

# An error in a loop may be found at any iteration or lane, so these differ by order.
WHERE_VARIES = {"read_of_unwritten_output", "write_to_input"}


def impatient(settings: Settings | None) -> Settings:
    """The same, but a kernel runs in vain for a twentieth of the time."""
    assert settings is not None
    return replace(settings, livelock_instructions=settings.livelock_instructions // 20)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kernel}-{f.kind}")
def test_fault(conformance: Conformance, fault: Fault) -> None:
    start = time.process_time()
    conformance.needs_emulator()
    settings = impatient(conformance.settings) if fault.kind == "livelock" else None
    reports = conformance.run_faulty(
        "faults.cu", fault.kernel, settings=settings, **fault.arguments
    )
    assert time.process_time() - start < 20
    if fault.needs_race_detection and not conformance.settings.race_detection:
        return
    # A race may also be a read of what is not yet written.
    assert {report.kind for report in reports} - {"uninit"} <= {fault.kind}
    reports = [report for report in reports if report.kind == fault.kind]
    assert reports, f"expected a report of kind {fault.kind}"
    message = fault.message.replace("offset 0 ", "offset ") if _varies(fault) else fault.message
    assert message.replace("offset of", "of") in reports[0].message
    if fault.kind not in ("launch", "ptx"):
        assert "faults.cu:" in reports[0].where + reports[0].message


def _varies(fault: Fault) -> bool:
    return fault.kernel in WHERE_VARIES


def test_the_report_names_the_line(conformance: Conformance) -> None:
    reports = conformance.run_faulty(
        "faults.cu", "read_past_the_end", inputs=[INPUT], outputs=[OUT]
    )
    (report,) = reports
    assert "read_past_the_end" in report.where
    assert report.where.endswith("faults.cu:5")
    assert "thread (31,0,0)" in report.where


def test_the_emulator_works_after_a_fault(conformance: Conformance) -> None:
    for _ in range(2):
        conformance.needs_emulator()
        settings = impatient(conformance.settings)
        assert conformance.run_faulty("faults.cu", "runs_forever", settings=settings, outputs=[OUT])
        (got,) = conformance.run("faults.cu", "does_nothing_wrong", outputs=[OUT])
        np.testing.assert_array_equal(got, 1)


def test_runs_are_reproducible() -> None:
    """The same settings find the same, another seed may not."""

    def trace(settings: Settings) -> tuple[list[Report], int]:
        conformance = Conformance(settings)
        reports = conformance.run_faulty(
            "memory.cu", "message_passing", grid=2, block=64,
            outputs=[(64, INT), np.zeros(1, INT), (64, INT)],
        )  # fmt: skip
        return reports, conformance.launches[0].warp_instructions

    first, second = trace(FOUR["random"]), trace(FOUR["random"])
    assert first == second
    others = {trace(Settings(**{**vars(FOUR["random"]), "seed": seed}))[1] for seed in range(5)}
    assert len(others) > 1
