"""What a sample is: a kernel with all it takes to run it - sources, inputs, expected outputs."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hostsim import build
from sim.buffers import Buffer
from sim.emulator import Session

FOLDER = Path(__file__).parent / "samples"
CSRC = build.ROOT / "csrc"
INCLUDES = (FOLDER, CSRC)

BF16_ERROR = 2**-8  # relative, of one rounding
FLOAT_ERROR = 1e-5  # of float32 sums of some hundred terms


@dataclass(frozen=True)
class Output:
    """What a kernel wrote, and what it should have."""

    name: str
    got: Tensor
    expected: Tensor
    relative_error: float

    def mismatch(self) -> str | None:
        """Says where the worst element is; None if all are right."""
        got, expected = self.got.double(), self.expected.double()
        error = (got - expected).abs() / (expected.abs() + 1)
        error = error.nan_to_num(nan=torch.inf)
        if bool((error <= self.relative_error).all()):
            return None
        worst = int(error.argmax())
        at = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
        return (
            f"{self.name}{at}: expected {expected.flatten()[worst]:.6g}, "
            f"found {got.flatten()[worst]:.6g}"
        )


@dataclass
class Run:
    """A sample in a session: makes buffers, launches, remembers the outputs.

    The methods that make buffers return what a launch function takes. `suffix` is that of the names
    of launch functions in the session's library.
    """

    session: Session
    suffix: str = ""
    outputs: list[Output] = field(default_factory=list)

    def given(self, name: str, value: Tensor) -> ctypes.c_void_p:
        """A buffer that kernels may only read."""
        return self._add(Buffer.of_tensor(name, value))

    def zeros(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> ctypes.c_void_p:
        """A buffer of zeros, which must be zeros again at the end."""
        return self.updated(name, torch.zeros(shape, dtype=dtype), torch.zeros(shape), 0.0)

    def scratch(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> ctypes.c_void_p:
        """A buffer that starts out as NaN; what becomes of it does not matter."""
        return self._add(Buffer(name, torch.Size(shape).numel() * dtype.itemsize))

    def state(self, name: str, value: Tensor) -> ctypes.c_void_p:
        """A buffer that starts out as `value`; what becomes of it does not matter."""
        return self._add(Buffer.of_tensor(name, value, read_only=False))

    def output(
        self, name: str, dtype: torch.dtype, expected: Tensor, relative_error: float
    ) -> ctypes.c_void_p:
        """A buffer that starts out as NaN, and what it must hold at the end."""
        buffer = Buffer(name, expected.numel() * dtype.itemsize)
        self._expect(buffer, dtype, expected, relative_error)
        return self._add(buffer)

    def updated(
        self, name: str, value: Tensor, expected: Tensor, relative_error: float
    ) -> ctypes.c_void_p:
        """A buffer that starts out as `value`, and what it must hold at the end."""
        buffer = Buffer.of_tensor(name, value, read_only=False)
        self._expect(buffer, value.dtype, expected, relative_error)
        return self._add(buffer)

    def launch(self, name: str, *arguments: Any) -> None:
        """Call a launch function; integers are passed as `int`.

        Raises:
            LaunchError: It returned a CUDA error.
        """
        status = getattr(self.session.emulator.library, name + self.suffix)(*arguments)
        if status != 0:
            raise LaunchError(f"{name}: expected to launch, got CUDA error {status}")

    def _add(self, buffer: Buffer) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.session.add(buffer).address)

    def _expect(
        self, buffer: Buffer, dtype: torch.dtype, expected: Tensor, relative_error: float
    ) -> None:
        got = buffer.tensor(expected.shape, dtype)
        self.outputs.append(Output(buffer.name, got, expected, relative_error))


class LaunchError(Exception):
    """A launch function returned a CUDA error."""


@dataclass(frozen=True)
class Sample:
    """A kernel to run.

    Attributes:
        run: Makes the buffers and queues the launches.
        source: What is compiled: the kernel, or a file that includes it. It has the functions that
            Python calls, each with SAMPLE_LAUNCHER at the start of a line.
    """

    run: Callable[[Run], None]
    source: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """In which there may be bugs: `source` and what it includes of the project's kernels.

        Each comes after those that it includes.
        """
        return included_files(self.source)


_INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)


@functools.cache
def included_files(path: Path) -> tuple[Path, ...]:
    """The file, after those of csrc that it includes by itself or through others."""
    found: dict[Path, None] = {}
    for name in _INCLUDE.findall(path.read_text()):
        if (CSRC / name).exists():
            found |= dict.fromkeys(included_files(CSRC / name))
    return (*found, path)


def source(name: str) -> Path:
    """A file of `samples/`."""
    return FOLDER / f"{name}.cu"


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal random numbers, the same for the same shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)
