"""wgmma, through CuTe's layouts, descriptors and fragments.

Inputs are small integers, so that sums are exact in any order, unless a test says otherwise.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sim.micro_kernels import Conformance

RNG = np.random.default_rng(0)
THREADS = 128  # of a warpgroup
SHARED = 64 * 1024  # room for all of these tiles

FLOATS = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "tf32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "f32": torch.float32,
}
INTEGERS = {"s8": torch.int8, "u8": torch.uint8, "s32": torch.int32}
TYPES = FLOATS | INTEGERS
CODES = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16), 4: (torch.int32, np.int32)}


def small_integers(rows: int, columns: int, name: str) -> torch.Tensor:
    low = 0 if name == "u8" else -4
    return torch.from_numpy(RNG.integers(low, 5, (rows, columns)).astype(np.float32)).to(
        TYPES[name]
    )


def codes(values: torch.Tensor) -> np.ndarray:
    return values.view(CODES[values.element_size()][0]).numpy()


def multiply(
    conformance: Conformance,
    source: str,
    kernel: str,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    accumulate: bool = True,
    block: int = THREADS,
) -> np.ndarray:
    """A B^T + C as the kernel has it, in float64; without C unless `accumulate`."""
    (got,) = conformance.run(
        source, kernel,
        inputs=[codes(a), codes(b), codes(c)],
        outputs=[(tuple(c.shape), CODES[c.element_size()][1])],
        n=[int(accumulate)], block=block, shared=SHARED,
    )  # fmt: skip
    return torch.from_numpy(got).view(c.dtype).double().numpy()


def expected(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> np.ndarray:
    return (a.double() @ b.double().T + c.double()).numpy()


# ---- Layouts -------------------------------------------------------------------------------------

# Kernels of wgmma_layouts.cu, named for the layouts of A and B, with their rows and columns.
LAYOUTS = {
    "k128_k128": (64, 64),
    "k64_mn32": (64, 64),
    "k32_mn64": (64, 64),
    "k0_mn0": (64, 64),
    "mn128_k32": (64, 64),
    "mn64_k0": (64, 64),
    "mn32_k64": (64, 64),
    "mn0_mn128": (64, 64),
    "wide_mn128": (64, 128),
    "wide_mn0": (64, 128),
    "registers_k128": (64, 64),
    "registers_mn64": (64, 64),
    "two_warpgroups": (128, 64),
}


@pytest.mark.parametrize("kernel", LAYOUTS)
def test_layouts(conformance: Conformance, kernel: str) -> None:
    rows, columns = LAYOUTS[kernel]
    a, b = small_integers(rows, 64, "bf16"), small_integers(columns, 64, "bf16")
    c = small_integers(rows, columns, "f32")
    got = multiply(conformance, "wgmma_layouts.cu", kernel, a, b, c, block=rows // 64 * THREADS)
    np.testing.assert_array_equal(got, expected(a, b, c))


# ---- Types ---------------------------------------------------------------------------------------

# Kernels of wgmma_types.cu: where A comes from, and the types of D, A and B.
COMBINATIONS = [
    "shared_f32_bf16_bf16",
    "shared_f32_f16_f16",
    "shared_f16_f16_f16",
    "shared_f32_tf32_tf32",
    "shared_f32_e4m3_e4m3",
    "shared_f16_e4m3_e5m2",
    "shared_f32_e5m2_e4m3",
    "shared_f16_e5m2_e5m2",
    "shared_s32_s8_s8",
    "shared_s32_s8_u8",
    "shared_s32_u8_s8",
    "shared_s32_u8_u8",
    "registers_f16_f16_f16",
    "registers_f32_tf32_tf32",
    "registers_f16_e4m3_e4m3",
    "registers_f32_e5m2_e5m2",
    "registers_s32_s8_u8",
]


def depth(name: str) -> int:
    """Rows of all kernels are 128 bytes."""
    return 128 // torch.empty(0, dtype=TYPES[name]).element_size()


@pytest.mark.parametrize("kernel", COMBINATIONS)
@pytest.mark.parametrize("accumulate", [True, False], ids=["", "without_c"])
def test_types(conformance: Conformance, kernel: str, accumulate: bool) -> None:
    _, of_d, of_a, of_b = kernel.split("_")
    a, b = small_integers(64, depth(of_a), of_a), small_integers(64, depth(of_b), of_b)
    c = small_integers(64, 64, of_d)
    got = multiply(conformance, "wgmma_types.cu", kernel, a, b, c, accumulate=accumulate)
    np.testing.assert_array_equal(got, expected(a, b, c if accumulate else torch.zeros_like(c)))


@pytest.mark.parametrize(("kernel", "columns", "name"), [("columns_8", 8, "bf16"),
                                                         ("columns_256", 256, "e4m3")])  # fmt: skip
def test_columns(conformance: Conformance, kernel: str, columns: int, name: str) -> None:
    a, b = small_integers(64, depth(name), name), small_integers(columns, depth(name), name)
    c = small_integers(64, columns, "f32")
    got = multiply(conformance, "wgmma_types.cu", kernel, a, b, c)
    np.testing.assert_array_equal(got, expected(a, b, c))


@pytest.mark.parametrize(("kernel", "sign"), [("negated_a", -1), ("negated_b", -1),
                                              ("negated_both", 1)])  # fmt: skip
def test_negated(conformance: Conformance, kernel: str, sign: int) -> None:
    a, b = small_integers(64, 64, "f16"), small_integers(64, 64, "f16")
    c = small_integers(64, 64, "f32")
    got = multiply(conformance, "wgmma_types.cu", kernel, a, b, c)
    np.testing.assert_array_equal(got, expected(sign * a, b, c))


# How far a sum may be off, in parts of the sum of the terms' magnitudes: adders of tensor cores cut
# off what is small beside the largest term; of 8-bit floats Hopper keeps 13 bits below it.
ERRORS = {"shared_f32_bf16_bf16": 2.0**-20, "shared_f32_e4m3_e4m3": 2.0**-11}


@pytest.mark.parametrize("kernel", ERRORS)
def test_rounding(conformance: Conformance, kernel: str) -> None:
    _, of_d, of_a, of_b = kernel.split("_")
    a, b, c = (
        torch.from_numpy(RNG.normal(size=shape).astype(np.float32)).to(TYPES[name])
        for shape, name in (((64, depth(of_a)), of_a), ((64, depth(of_b)), of_b), ((64, 64), of_d))
    )
    got = multiply(conformance, "wgmma_types.cu", kernel, a, b, c)
    bound = ERRORS[kernel] * expected(a.abs(), b.abs(), c.abs())
    assert (np.abs(got - expected(a, b, c)) <= bound).all()


def test_matrix_instructions_are_counted(conformance: Conformance) -> None:
    conformance.needs_emulator()
    a, b, c = small_integers(64, 64, "bf16"), small_integers(64, 64, "bf16"), torch.zeros(64, 64)
    multiply(conformance, "wgmma_types.cu", "shared_f32_bf16_bf16", a, b, c)
    steps, warps = 64 // 16, 4
    assert conformance.launches[0].matrix_instructions == steps * warps


# ---- Order ---------------------------------------------------------------------------------------

# In wgmma_groups.cu A of group i is full of i + 1, B of 2, and K is 16.
PRODUCTS = 16 * 2 * np.array([1, 2, 3], np.float32)
ACCUMULATORS = (THREADS, 4)


def test_wait_in_order(conformance: Conformance) -> None:
    (got,) = conformance.run(
        "wgmma_groups.cu", "wait_in_order", outputs=[((3, *ACCUMULATORS), np.float32)],
        block=THREADS,
    )  # fmt: skip
    np.testing.assert_array_equal(got, np.broadcast_to(PRODUCTS[:, None, None], got.shape))


def test_same_accumulators(conformance: Conformance) -> None:
    (got,) = conformance.run(
        "wgmma_groups.cu", "same_accumulators", outputs=[(ACCUMULATORS, np.float32)], block=THREADS
    )
    np.testing.assert_array_equal(got, PRODUCTS.sum())


@pytest.mark.parametrize("warp", [0, 3])
def test_one_warp_reuses_memory(conformance: Conformance, warp: int) -> None:
    (got,) = conformance.run(
        "wgmma_groups.cu", "one_warp_reuses_memory",
        outputs=[(ACCUMULATORS, np.float32)], n=[warp], block=THREADS,
    )  # fmt: skip
    np.testing.assert_array_equal(got, PRODUCTS[0])
