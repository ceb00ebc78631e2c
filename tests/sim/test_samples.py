"""The sample kernels as they are: right results and no reports, under all four settings."""

from __future__ import annotations

import functools

import pytest

from hostsim import build
from sim.emulator import FOUR, Emulator, Settings
from sim.sample import Run
from sim.sample_kernels import SAMPLES


@functools.cache
def emulator(name: str) -> Emulator:
    sample = SAMPLES[name]
    return Emulator(build.emulated_library(name, [sample.source], includes=sample.includes))


@pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)
@pytest.mark.parametrize("name", SAMPLES)
def test_sample(name: str, settings: Settings) -> None:
    with emulator(name).session(settings) as session:
        run = Run(session)
        SAMPLES[name].run(run)
    wrong = [text for text in (output.mismatch() for output in run.outputs) if text]
    assert not wrong, "; ".join(wrong)
    assert run.outputs
