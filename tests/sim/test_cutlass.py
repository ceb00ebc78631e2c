"""A kernel of CUTLASS's own, known to be right: the emulator computes what it does, silently.

Its collectives, with TMA and clusters, are those of `test_collectives.py`.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import pytest
import torch

from hostsim import build
from sim.buffers import Buffer
from sim.emulator import FOUR, Emulator, Settings

FOLDER = Path(__file__).parent / "cutlass"

NAME = "multistage_bf16"

# More than one tile each way. K alone is ragged: with other M and N the kernel reads what it has
# not written, for results that it drops.
M, N, K = 128, 128, 104


def compilations() -> list[build.Compilation]:
    return [build.cuda_compilation(FOLDER / f"{NAME}.cu")]


@functools.cache
def emulator() -> Emulator:
    return Emulator(build.link_emulated(NAME, build.compile_all(compilations())))


@pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)
def test_gemm(settings: Settings) -> None:
    a, b = torch.randn(M, K).bfloat16(), torch.randn(N, K).bfloat16()
    gemm = emulator()
    with gemm.session(settings) as session:
        buffers = [Buffer.of_tensor("a", a), Buffer.of_tensor("b", b), Buffer("d", 2 * M * N)]
        pointers = [ctypes.c_void_p(session.add(buffer).address) for buffer in buffers]
        assert gemm.library.run_multistage_bf16(M, N, K, *pointers) == 0
    d = buffers[2].tensor((M, N), torch.bfloat16)
    exact = a.double() @ b.double().T
    error = (d.double() - exact).abs()
    # One rounding to bfloat16, and float32 sums of K products.
    assert (error <= 2**-8 * exact.abs() + 1e-5 * K**0.5).all()
    assert session.launches[0].matrix_instructions > 0
