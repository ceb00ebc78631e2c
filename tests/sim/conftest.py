"""Fixtures of the tests that run CUDA kernels on the emulator."""

from __future__ import annotations

import pytest
import torch

from hostsim import build
from sim.emulator import FOUR
from sim.micro_kernels import Conformance
from sim.planting import Variants
from sim.requirements import require_cuda_compiler

_VARIANTS = pytest.StashKey[Variants]()
_COMPILER = pytest.StashKey[build.BackgroundCompiler]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile while tests run: most of a first run's time is the compilers'.

    What a module of tests will need is what its `compilations` returns, or that of `torch_ops`
    where it uses those, and the variants of sample kernels.
    """
    session.stash[_VARIANTS] = variants = Variants.of_tests(session.items)
    # Of several processes the first compiles for all; the others wait for what they need.
    process = getattr(session.config, "workerinput", {"workerid": "gw0"})["workerid"]
    if session.config.option.collectonly or process != "gw0" or not build.has_tools():
        return
    session.stash[_COMPILER] = compiler = build.BackgroundCompiler()
    functions = (item for item in session.items if isinstance(item, pytest.Function))
    modules = dict.fromkeys(item.module for item in functions)
    providers = dict.fromkeys(getattr(module, "torch_ops", module) for module in modules)
    for provider in providers:
        if hasattr(provider, "compilations"):
            compiler.add(provider.compilations())
    compiler.add(variants.compilations())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _COMPILER in session.stash:
        session.stash[_COMPILER].stop()


@pytest.fixture(autouse=True, scope="session")
def _needs_a_cuda_compiler() -> None:
    require_cuda_compiler()


@pytest.fixture(scope="session")
def variants(request: pytest.FixtureRequest) -> Variants:
    """The sample kernels that the tests of this run need, as they are and with bugs."""
    return request.session.stash[_VARIANTS]


@pytest.fixture(params=[*FOUR, pytest.param("gpu", marks=pytest.mark.gpu)])
def conformance(request: pytest.FixtureRequest) -> Conformance:
    """Runs micro-kernels: on the emulator under each of the four settings, and on a GPU."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return Conformance(settings=None)
    return Conformance(FOUR[request.param])
