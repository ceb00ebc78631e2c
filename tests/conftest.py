"""Shared fixtures: every test runs on the CPU, and on the GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from p_eagle_cuda import ops


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """A missing device skips; a missing build for the device that is there fails."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        built = [name for name, has in ops.implementations().items() if has["cuda"]]
        assert built, "there is a GPU, but the installed library holds no CUDA kernel"
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Toy tensors gain nothing from threads, and lose seconds to them on a busy machine."""
    torch.set_num_threads(1)
