"""Misuse of what the lanes of a warp, or the warps of a warpgroup, do together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from sim.emulator import AsyncTiming
from sim.micro_kernels import Conformance

OUT = (32, np.uint32)


@dataclass(frozen=True)
class Fault:
    kernel: str
    kind: str
    message: str  # a part of it
    n: int = 0
    outputs: tuple[Any, ...] = (OUT,)
    block: int = 32
    needs_race_detection: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}-{self.n}"

    def run(self, conformance: Conformance, source: str) -> None:
        reports = conformance.run_faulty(
            source, self.kernel, outputs=list(self.outputs), n=[self.n], block=self.block
        )
        if self.needs_race_detection and not conformance.settings.race_detection:
            return
        assert {report.kind for report in reports} == {self.kind}
        assert self.message in reports[0].message
        assert f"{source}:" in reports[0].where + reports[0].message


WARP_FAULTS = [
    Fault("shuffle_from_outside_the_mask", "warp", "reads lane 20, which does not take part"),
    Fault("shuffle_from_exited_lane", "warp", "reads lane 20, which has exited"),
    Fault("lanes_not_in_their_mask", "warp", "lanes 16-31 pass member mask 0x0000ffff"),
    Fault("masks_that_disagree", "warp", "lane"),
    Fault("collectives_that_never_meet", "deadlock", "wait for other lanes of their warp"),
    Fault("mma_with_an_exited_lane", "warp", "some have exited: lanes 31"),
    Fault("mma_in_a_branch", "deadlock", "wait for other lanes of their warp"),
    Fault("ldmatrix_at_an_offset", "align", "not a multiple of 16", n=8),
    Fault("ldmatrix_at_an_offset", "memory", "out-of-bounds read of 16 bytes", n=16),
    Fault("ldmatrix_of_unwritten_row", "uninit", "never written"),
    Fault("ldmatrix_before_the_barrier", "race", "a read of shared memory", block=64,
          outputs=((64, np.uint32),), needs_race_detection=True),
    Fault("stmatrix_races", "race", "a write of shared memory", needs_race_detection=True),
]  # fmt: skip


@pytest.mark.parametrize("fault", WARP_FAULTS, ids=str)
def test_warp_fault(conformance: Conformance, fault: Fault) -> None:
    fault.run(conformance, "faults_warp.cu")


# Bits of n[0], the mistakes of faults_wgmma.cu.
NO_FENCE, NO_PROXY_FENCE, NO_WAIT, OVERWRITE_BEFORE_WAIT = 1, 2, 4, 8
BASE_OFFSET, RESERVED_BITS, NO_PATTERN_START, OUT_OF_BOUNDS = 16, 32, 64, 128
ONE_WARP_MISSING, LANES_DIFFER, WAIT_FOR_FEWER = 256, 512, 1024
WGMMA = {"outputs": (np.zeros((128, 4), np.float32),), "block": 128}

WGMMA_FAULTS = [
    Fault("one_wgmma", "wgmma", "without a wgmma.fence", n=NO_FENCE, **WGMMA),
    Fault("one_wgmma", "proxy", "without a fence.proxy.async", n=NO_PROXY_FENCE,
          needs_race_detection=True, **WGMMA),
    Fault("one_wgmma", "async", "without waiting for its wgmma groups", n=NO_WAIT, **WGMMA),
    Fault("one_wgmma", "wgmma", "base offset is 1", n=BASE_OFFSET, **WGMMA),
    Fault("one_wgmma", "wgmma", "outside of its fields", n=RESERVED_BITS, **WGMMA),
    Fault("one_wgmma", "wgmma", "a multiple of 256 bytes", n=NO_PATTERN_START, **WGMMA),
    Fault("one_wgmma", "memory", "out-of-bounds read of 16 bytes", n=OUT_OF_BOUNDS, **WGMMA),
    Fault("one_wgmma", "wgmma", "warp 3", n=ONE_WARP_MISSING, **WGMMA),
    Fault("one_wgmma", "wgmma", "differs between lanes", n=LANES_DIFFER, **WGMMA),
    Fault("one_wgmma", "wgmma", "4 warps of a warpgroup", outputs=WGMMA["outputs"], block=96),
]  # fmt: skip


@pytest.mark.parametrize("fault", WGMMA_FAULTS, ids=str)
def test_wgmma_fault(conformance: Conformance, fault: Fault) -> None:
    fault.run(conformance, "faults_wgmma.cu")


@pytest.mark.parametrize("mistake", [OVERWRITE_BEFORE_WAIT, WAIT_FOR_FEWER])
def test_wgmma_reads_what_is_overwritten(conformance: Conformance, mistake: int) -> None:
    """Race detection sees it; without, a product that runs late has the wrong result."""
    conformance.needs_emulator()
    if conformance.settings.race_detection:
        message = "is not ordered after a read by a wgmma or tcgen05.mma of warpgroup 0"
        fault = Fault("one_wgmma", "race", message, n=mistake, **WGMMA)
        fault.run(conformance, "faults_wgmma.cu")
    elif conformance.settings.async_timing == AsyncTiming.LATE:
        (got,) = conformance.run(
            "faults_wgmma.cu", "one_wgmma", outputs=[((128, 4), np.float32)],
            n=[mistake], block=128,
        )  # fmt: skip
        assert (got != 33).any()


def test_wgmma_without_mistakes(conformance: Conformance) -> None:
    (got,) = conformance.run(
        "faults_wgmma.cu", "one_wgmma", outputs=[((128, 4), np.float32)], n=[0], block=128
    )
    np.testing.assert_array_equal(got, 1 + 16 * 2)
