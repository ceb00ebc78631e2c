"""Fixtures of the tests that run CUDA kernels on the emulator."""

from __future__ import annotations

import pytest
import torch

from sim.emulator import FOUR
from sim.micro_kernels import Conformance
from sim.requirements import require_cuda_compiler


@pytest.fixture(autouse=True, scope="session")
def _needs_a_cuda_compiler() -> None:
    require_cuda_compiler()


@pytest.fixture(params=[*FOUR, pytest.param("gpu", marks=pytest.mark.gpu)])
def conformance(request: pytest.FixtureRequest) -> Conformance:
    """Runs micro-kernels: on the emulator under each of the four settings, and on a GPU."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return Conformance(settings=None)
    return Conformance(FOUR[request.param])
