"""The sample kernels as they are: right results and no reports, under all four settings."""

from __future__ import annotations

import pytest

from sim.emulator import FOUR, Settings
from sim.planting import Variants
from sim.sample import Run
from sim.sample_kernels import SAMPLES


@pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)
@pytest.mark.parametrize("kernel", SAMPLES)
def test_sample(kernel: str, settings: Settings, variants: Variants) -> None:
    emulator, suffix = variants.load(kernel)
    with emulator.session(settings) as session:
        run = Run(session, suffix)
        SAMPLES[kernel].run(run)
    wrong = [text for text in (output.mismatch() for output in run.outputs) if text]
    assert not wrong, "; ".join(wrong)
    assert run.outputs
