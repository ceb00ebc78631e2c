"""Buffers: guarded, NaN, and alive as long as someone looks at them."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sim.buffers import Buffer

DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copies_a_tensor(dtype: torch.dtype) -> None:
    tensor = (4 * torch.randn(5, 7)).to(dtype)
    copy = Buffer.of_tensor("x", tensor).tensor((5, 7), dtype)
    assert torch.equal(copy.view(torch.uint8), tensor.view(torch.uint8))


def test_keeps_strides() -> None:
    tensor = torch.randn(6, 10)[:, 2:5].t()
    copy = Buffer.of_tensor("x", tensor).tensor(tensor.shape, tensor.dtype, tensor.stride())
    assert torch.equal(copy, tensor)
    assert copy.stride() == tensor.stride()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_copies_an_array(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 3, np.int16)
    np.testing.assert_array_equal(Buffer.of_array("x", array).array(shape, np.int16), array)


def test_starts_out_as_nan() -> None:
    buffer = Buffer("x", 24)
    assert np.isnan(buffer.array((6,), np.float32)).all()
    assert buffer.tensor((12,), torch.bfloat16).isnan().all()


@pytest.mark.parametrize("alignment", [16, 256])
@pytest.mark.parametrize("size", [1, 16, 100, 4096, 5000])
def test_is_aligned_near_the_guard(size: int, alignment: int) -> None:
    buffer = Buffer("x", size, alignment=alignment)
    assert buffer.address % alignment == 0
    assert -(buffer.address + size) % 4096 < alignment


@pytest.mark.parametrize("offset", [-4096, 32])
def test_what_touches_the_guards_dies(offset: int) -> None:
    code = (
        "import ctypes; from sim.buffers import Buffer; b = Buffer('x', 32); "
        "ctypes.memset(b.address, 0, 32); print('inside', flush=True); "
        f"ctypes.memset(b.address + {offset}, 0, 1)"
    )
    folder = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert (done.stdout, done.returncode) == ("inside\n", -11)


def test_a_view_keeps_the_memory() -> None:
    array = Buffer("x", 64).array((16,), np.float32)
    tensor = Buffer("y", 64).tensor((16,), torch.float32)
    gc.collect()
    array[:], tensor[:] = 1, 2
    address = tensor.data_ptr()
    assert _is_mapped(address)
    del tensor
    gc.collect()
    assert not _is_mapped(address)


def _is_mapped(address: int) -> bool:
    ranges = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()
    ]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)
