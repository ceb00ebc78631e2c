"""Shared fixtures: every test runs on the CPU, on the emulator, and on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from devices import DEVICES, Device
from p_eagle_cuda import ops
from sim import summary
from sim.requirements import require_cuda_compiler


def pytest_configure(config: pytest.Config) -> None:
    summary.show_compilations(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    summary.write(terminalreporter)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["emulator"] = summary.handed_over()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Called in the process that has the terminal, when another has ended."""
    if known := getattr(node, "workeroutput", {}).get("emulator"):
        summary.take_over(known)


@pytest.fixture(
    params=[pytest.param(x, marks=pytest.mark.gpu) if x == "cuda" else x for x in DEVICES]
)
def device(request: pytest.FixtureRequest) -> Device:
    """A missing device skips; a missing build for the device that is there fails."""
    found = DEVICES[request.param]
    if found.name == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        built = [name for name, has in ops.implementations().items() if has["cuda"]]
        assert built, "there is a GPU, but the installed library holds no CUDA kernel"
    if found.is_emulated:
        require_cuda_compiler()
    return found


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Toy tensors gain nothing from threads, and lose seconds to them on a busy machine."""
    torch.set_num_threads(1)
