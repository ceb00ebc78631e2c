"""tcgen05: products into tensor memory, what orders them, and mistakes; for the emulator alone.

CUTLASS's own descriptors and layouts are in `test_collectives_sm100.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sim.emulator import AsyncTiming
from sim.micro_kernels import Conformance

RNG = np.random.default_rng(0)
ROWS, COLUMNS, DEPTH = 128, 16, 16
SOURCE = "tcgen05.cu"

# Bits of n[0], the mistakes of tcgen05.cu, and the kind and a part of the report.
NO_PROXY_FENCE, NO_WAIT_FOR_PRODUCT, NO_WAIT_FOR_LOAD, OVERWRITE_BEFORE_WAIT = 1, 2, 4, 64
FAULTS = {
    8: ("tcgen05", "block 0 has left with 32 columns of tensor memory"),
    16: ("tcgen05", "it reaches 16 or 32 from lane"),
    32: ("memory", "column 32 of tensor memory is not allocated"),
    128: ("tcgen05", "tcgen05.mma by lanes 0-31, one thread issues it"),
    256: ("tcgen05", "outside of its fields"),
    512: ("tcgen05", "of which the block has 32 already, waits for ever"),
    1024: ("uninit", "which nothing has written"),
}
RACES = {
    NO_PROXY_FENCE: ("proxy", "without a fence.proxy.async"),
    NO_WAIT_FOR_PRODUCT: ("race", "not ordered after a write by a wgmma or tcgen05.mma"),
    NO_WAIT_FOR_LOAD: ("race", "not ordered after a read by an asynchronous copy"),
    OVERWRITE_BEFORE_WAIT: ("race", "not ordered after a read by a wgmma or tcgen05.mma"),
}


def integers(rows: int) -> torch.Tensor:
    return torch.from_numpy(RNG.integers(-4, 5, (rows, DEPTH)).astype(np.float32)).bfloat16()


A, B = integers(ROWS), integers(COLUMNS)
INPUTS = [x.view(torch.int16).numpy() for x in (A, B)]
PRODUCT = (A.double() @ B.double().T).numpy()


def run(conformance: Conformance, mistakes: int = 0, times: int = 1) -> np.ndarray:
    conformance.needs_emulator()
    (got,) = conformance.run(
        SOURCE, "one_product", inputs=INPUTS, outputs=[((ROWS, COLUMNS), np.float32)],
        n=[mistakes, times], block=128,
    )  # fmt: skip
    return got


def reports_of(conformance: Conformance, mistake: int) -> list[tuple[str, str]]:
    conformance.needs_emulator()
    reports = conformance.run_faulty(
        SOURCE, "one_product", inputs=INPUTS, outputs=[np.zeros((ROWS, COLUMNS), np.float32)],
        n=[mistake, 1], block=128,
    )  # fmt: skip
    return [(report.kind, report.message) for report in reports]


@pytest.mark.parametrize("times", [1, 3])
def test_product(conformance: Conformance, times: int) -> None:
    np.testing.assert_array_equal(run(conformance, times=times), times * PRODUCT)


@pytest.mark.parametrize("mistake", FAULTS)
def test_fault(conformance: Conformance, mistake: int) -> None:
    kind, message = FAULTS[mistake]
    reports = reports_of(conformance, mistake)
    assert {found for found, _ in reports} == {kind}
    assert message in reports[0][1]


@pytest.mark.parametrize("mistake", RACES)
def test_what_is_not_ordered(conformance: Conformance, mistake: int) -> None:
    """Race detection sees it; without, what runs late has the wrong result."""
    conformance.needs_emulator()
    if conformance.settings.race_detection:
        kind, message = RACES[mistake]
        reports = reports_of(conformance, mistake)  # of what is not written yet, too
        assert {found for found, _ in reports} <= {kind, "uninit"}
        assert any(found == kind and message in text for found, text in reports)
    elif conformance.settings.async_timing == AsyncTiming.LATE and mistake != NO_PROXY_FENCE:
        reports = reports_of(conformance, mistake)
        assert reports or (run(conformance, mistake) != PRODUCT).any()
