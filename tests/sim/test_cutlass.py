"""CUTLASS's own kernels, known to be right: the emulator computes what they do, silently."""

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

# The file, and M, N, K: more than one tile each way, and ragged. M and N of the multistage kernel
# are not, or it would read what it has not written, for results that it drops.
CASES = {
    "multistage_bf16": ("multistage_bf16", torch.bfloat16, (128, 128, 104)),
    "pingpong_bf16": ("collectives", torch.bfloat16, (192, 136, 320)),
    "cooperative_e4m3": ("collectives", torch.float8_e4m3fn, (256, 72, 400)),
}


def compilation(file: str) -> build.Compilation:
    tools = build.tools().cutlass / "tools" / "util" / "include"
    return build.cuda_compilation(FOLDER / f"{file}.cu", includes=[tools])


def compilations() -> list[build.Compilation]:
    return [compilation(file) for file in sorted({file for file, _, _ in CASES.values()})]


@functools.cache
def emulator(file: str) -> Emulator:
    return Emulator(build.link_emulated(file, [build.compile_object(compilation(file))]))


@pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)
@pytest.mark.parametrize("name", CASES)
def test_gemm(name: str, settings: Settings) -> None:
    file, dtype, (M, N, K) = CASES[name]
    a, b = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)
    gemm = emulator(file)
    with gemm.session(settings) as session:
        buffers = [Buffer.of_tensor("a", a), Buffer.of_tensor("b", b), Buffer("d", 2 * M * N)]
        pointers = [ctypes.c_void_p(session.add(buffer).address) for buffer in buffers]
        run = getattr(gemm.library, f"run_{name}")
        assert run(M, N, K, *pointers) == 0
    d = buffers[2].tensor((M, N), torch.bfloat16)
    exact = a.double() @ b.double().T
    error = (d.double() - exact).abs()
    # One rounding to bfloat16, and float32 sums of K products.
    assert (error <= 2**-8 * exact.abs() + 1e-5 * K**0.5).all()
    assert session.launches[0].matrix_instructions > 0
