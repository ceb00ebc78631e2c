"""Runs the micro-kernels of sim/conformance, on the emulator or on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hostsim import build
from sim.buffers import FILL, Buffer
from sim.emulator import Emulator, Launch, Report, Session, Settings

FOLDER = Path(__file__).parent / "conformance"
# Sources with instructions that nvcc refuses for sm_90a; they are for the emulator only.
NEWER_TARGETS = {"redux_f32.cu": "100a", "tcgen05.cu": "100a"}

Size = int | tuple[int, int, int]
# An output is a shape and a dtype, which starts out as NaN, or an array of what it starts out as.
Output = tuple[int | tuple[int, ...], Any] | np.ndarray


class Args(ctypes.Structure):
    """Mirrors `Args` of conformance.cuh."""

    _fields_ = (
        ("inputs", ctypes.c_void_p * 6),
        ("outputs", ctypes.c_void_p * 4),
        ("n", ctypes.c_int * 8),
    )


class LaunchShape(ctypes.Structure):
    """Mirrors `LaunchShape` of conformance.cuh."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint * 3),
        ("dynamic_shared_bytes", ctypes.c_uint),
    )


class Conformance:
    """Runs micro-kernels under one of the settings, or on the GPU where `settings` is None."""

    def __init__(self, settings: Settings | None) -> None:
        self.settings = settings
        # Of the latest run; none on a GPU.
        self.launches: list[Launch] = []
        self.reports: list[Report] = []

    def run(
        self,
        source: str,
        kernel: str,
        *,
        inputs: Sequence[np.ndarray] = (),
        outputs: Sequence[Output] = (),
        n: Sequence[int] = (),
        block: Size = 32,
        grid: Size = 1,
        cluster: Size = 1,
        shared: int = 0,
    ) -> list[np.ndarray]:
        """Launch a kernel of conformance/`source` and return its outputs.

        Args:
            source: File name.
            kernel: As it is called in MICRO_KERNEL.
            inputs: At most 6, which the kernel may only read; in reports "in0" and so on.
            outputs: At most 4, "out0" and so on: ``(shape, dtype)`` starts out as NaN, which the
                kernel may not read, an array as its contents.
            n: At most 8 integers.
            block: Threads; all sizes are an integer or three.
            grid: Blocks.
            cluster: Blocks.
            shared: Bytes of dynamic shared memory.

        Raises:
            AssertionError: The emulator has reports, or the launch failed.
        """
        call = _Call(source, kernel, inputs, outputs, n, grid, block, cluster, shared)
        if self.settings is None:
            return call.run_on_gpu()
        with _emulator(source).session(self.settings) as session:
            results = call.launch_emulated(session)
        self.launches = session.launches
        return results

    def run_faulty(
        self, source: str, kernel: str, *, settings: Settings | None = None, **arguments: Any
    ) -> list[Report]:
        """Launch a kernel that has an error and return the reports; skips on a GPU.

        The arguments are those of `run`, and `settings` in the place of the fixture's.
        """
        self.needs_emulator()
        emulator = _emulator(source)
        with (
            emulator.faulty_session(settings or self.settings) as session,
            contextlib.suppress(LaunchError),  # it has a report
        ):
            _Call(source, kernel, **arguments).launch_emulated(session)
        self.launches, self.reports = session.launches, session.reports
        return session.reports

    def run_host(
        self, source: str, function: str, *, num_results: int, kinds: Collection[str] = ()
    ) -> list[int]:
        """Call a function of host code, which fills an array of integers and returns an error code.

        Args:
            source: File name.
            function: ``extern "C" int function(int* results)``.
            num_results: Size of the array.
            kinds: Of the reports that may come of it.

        Raises:
            AssertionError: The function failed, or there are other reports.
        """
        results = (ctypes.c_int * num_results)(*[-1] * num_results)
        if self.settings is None:
            assert getattr(_gpu_library(source), function)(results) == 0
            return list(results)
        emulator = _emulator(source)
        with emulator.faulty_session(self.settings) as session:
            status = getattr(emulator.library, function)(results)
        self.launches, self.reports = session.launches, session.reports
        unexpected = [report for report in self.reports if report.kind not in kinds]
        assert not unexpected, "\n".join(map(str, unexpected))
        assert status == 0, f"{function}: expected success, got CUDA error {status}"
        return list(results)

    def needs_emulator(self) -> None:
        """Skip on a GPU, where an error of a kernel would end the process's use of it."""
        if self.settings is None:
            pytest.skip("for the emulator only")


class LaunchError(AssertionError):
    """A launch function returned a CUDA error."""


@dataclass(frozen=True)
class _Call:
    """The arguments of `Conformance.run`."""

    source: str
    kernel: str
    inputs: Sequence[np.ndarray] = ()
    outputs: Sequence[Output] = ()
    n: Sequence[int] = ()
    grid: Size = 1
    block: Size = 32
    cluster: Size = 1
    shared: int = 0

    def launch_emulated(self, session: Session) -> list[np.ndarray]:
        """Queue the kernel; returns the outputs, which are written when the session ends."""
        ins = [
            session.add(Buffer.of_array(f"in{i}", np.asarray(array)))
            for i, array in enumerate(self.inputs)
        ]
        outs, results = [], []
        for i, output in enumerate(self.outputs):
            start = _start(output)
            buffer = Buffer(f"out{i}", start.nbytes, initialized=isinstance(output, np.ndarray))
            results.append(buffer.array(start.shape, start.dtype))
            results[-1][...] = start
            outs.append(session.add(buffer))
        self._launch(session.emulator.library, [x.address for x in ins], [x.address for x in outs])
        return results

    def run_on_gpu(self) -> list[np.ndarray]:
        # The library's runtime and torch's share the device's primary context, so its memory too.
        starts = [_start(output) for output in self.outputs]
        ins, outs = [_to_gpu(x) for x in self.inputs], [_to_gpu(x) for x in starts]
        torch.cuda.synchronize()
        self._launch(
            _gpu_library(self.source), [x.data_ptr() for x in ins], [x.data_ptr() for x in outs]
        )
        torch.cuda.synchronize()
        return [
            out.cpu().numpy().view(start.dtype).reshape(start.shape)
            for out, start in zip(outs, starts, strict=True)
        ]

    def _launch(self, library: ctypes.CDLL, inputs: list[int], outputs: list[int]) -> None:
        args = Args()
        args.inputs[: len(inputs)] = inputs
        args.outputs[: len(outputs)] = outputs
        args.n[: len(self.n)] = self.n
        sizes = [_three(size) for size in (self.grid, self.block, self.cluster)]
        shape = LaunchShape(*sizes, self.shared)
        launcher = getattr(library, f"launch_{self.kernel}")
        status = launcher(ctypes.byref(args), ctypes.byref(shape))
        if status != 0:
            raise LaunchError(f"{self.kernel}: expected to launch, got CUDA error {status}")


@functools.cache
def _emulator(source: str) -> Emulator:
    flags = build.emulated_flags(NEWER_TARGETS.get(source, "90a"))
    compilation = build.cuda_compilation(FOLDER / source, includes=[FOLDER], target_flags=flags)
    return Emulator(build.link_emulated(Path(source).stem, build.compile_all([compilation])))


@functools.cache
def _gpu_library(source: str) -> ctypes.CDLL:
    name = f"{Path(source).stem}-gpu"
    return ctypes.CDLL(str(build.gpu_library(name, [FOLDER / source], includes=[FOLDER])))


def _to_gpu(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).cuda()


def _start(output: Output) -> np.ndarray:
    """What an output holds before the launch."""
    if isinstance(output, np.ndarray):
        return output
    shape, dtype = output
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[:] = FILL
    return array


def _three(size: Size) -> tuple[int, int, int]:
    return (size, 1, 1) if isinstance(size, int) else size
