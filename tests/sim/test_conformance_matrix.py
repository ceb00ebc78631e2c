"""mma.sync, ldmatrix, stmatrix, movmatrix.

The layouts of fragments are written down here from the tables of the PTX ISA. Inputs are small
integers, so that sums are exact in any order, unless a test says otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from sim.emulator import Settings
from sim.micro_kernels import Conformance

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 16, 8

FLOATS = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "tf32": torch.float32,  # of which the low 13 bits do not count
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "f32": torch.float32,
}
INTEGERS = {"s8": np.int8, "u8": np.uint8, "s32": np.int32}
BITS = {"bf16": 16, "f16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8}


@dataclass(frozen=True)
class Mma:
    """An mma.sync of shape m16n8k<depth>."""

    depth: int
    d: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"mma_m16n8k{self.depth}_{self.d}_{self.a}_{self.b}"

    @property
    def is_integer(self) -> bool:
        return self.d == "s32"


FP8 = ("e4m3", "e5m2")
FLOAT_MMAS = [
    *(Mma(depth, "f32", "bf16", "bf16") for depth in (8, 16)),
    *(Mma(depth, d, "f16", "f16") for depth in (8, 16) for d in ("f16", "f32")),
    *(Mma(depth, "f32", "tf32", "tf32") for depth in (4, 8)),
    *(Mma(*x) for x in itertools.product((16, 32), ("f16", "f32"), FP8, FP8)),
]
INTEGER_MMAS = [Mma(*x) for x in itertools.product((16, 32), ("s32",), ("s8", "u8"), ("s8", "u8"))]


# ---- Fragments -----------------------------------------------------------------------------------

# Where element i of a lane's fragment lies: its row and column in A, B, or C and D. `group` is
# lane / 4 and `t` is lane % 4, the threadID_in_group of the PTX ISA.
Place = Callable[[int, int, int], tuple[int, int]]

PLACES_OF_A: dict[tuple[int, int], Place] = {  # by bits of an element and K
    (16, 8): lambda group, t, i: (group + 8 * (i >= 2), 2 * t + i % 2),
    (16, 16): lambda group, t, i: (group + 8 * (i in (2, 3, 6, 7)), 2 * t + i % 2 + 8 * (i >= 4)),
    (32, 4): lambda group, t, i: (group + 8 * (i == 1), t),
    (32, 8): lambda group, t, i: (group + 8 * (i in (1, 3)), t + 4 * (i >= 2)),
    (8, 16): lambda group, t, i: (group + 8 * (i >= 4), 4 * t + i % 4),
    (8, 32): lambda group, t, i: (
        group + 8 * (4 <= i < 8 or i >= 12),
        4 * t + i % 4 + 16 * (i >= 8),
    ),
}
PLACES_OF_B: dict[tuple[int, int], Place] = {
    (16, 8): lambda group, t, i: (2 * t + i, group),
    (16, 16): lambda group, t, i: (2 * t + i % 2 + 8 * (i >= 2), group),
    (32, 4): lambda group, t, i: (t, group),
    (32, 8): lambda group, t, i: (t + 4 * i, group),
    (8, 16): lambda group, t, i: (4 * t + i, group),
    (8, 32): lambda group, t, i: (4 * t + i % 4 + 16 * (i >= 4), group),
}


def place_of_c(group: int, t: int, i: int) -> tuple[int, int]:
    return group + 8 * (i >= 2), 2 * t + i % 2


def elements(place: Place, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Lane, index in its fragment, row, column of each element."""
    for lane, i in itertools.product(range(32), range(count)):
        yield lane, i, *place(lane // 4, lane % 4, i)


def scatter(matrix: np.ndarray, place: Place) -> np.ndarray:
    """The registers of all lanes that hold `matrix`."""
    count = matrix.size // 32
    fragment = np.empty((32, count), matrix.dtype)
    for lane, i, row, column in elements(place, count):
        fragment[lane, i] = matrix[row, column]
    return fragment.view(np.uint32)


def gather(registers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """D, out of the registers of all lanes."""
    fragment = registers.view(dtype)
    matrix = np.empty((ROWS, COLUMNS), dtype)
    for lane, i, row, column in elements(place_of_c, fragment.shape[1]):
        matrix[row, column] = fragment[lane, i]
    return matrix


def to_bits(values: np.ndarray, name: str) -> np.ndarray:
    """The codes of `values`, rounded, in a format of a matrix instruction."""
    if name in INTEGERS:
        return values.astype(INTEGERS[name])
    codes = torch.from_numpy(np.asarray(values, np.float32)).to(FLOATS[name])
    size = codes.element_size()
    return codes.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]).numpy()


def to_values(codes: np.ndarray, name: str) -> np.ndarray:
    if name in INTEGERS:
        return codes.view(INTEGERS[name]).astype(np.int64)
    return torch.from_numpy(codes).view(FLOATS[name]).double().numpy()


def run_mma(
    conformance: Conformance,
    mma: Mma,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    kernel: str = "",
) -> np.ndarray:
    """D in float64 or int64, of codes of A, B and C."""
    shape = (BITS[mma.a], mma.depth)
    registers_of_c = scatter(c, place_of_c)
    (got,) = conformance.run(
        "matrix.cu", kernel or str(mma),
        inputs=[scatter(a, PLACES_OF_A[shape]), scatter(b, PLACES_OF_B[shape]), registers_of_c],
        outputs=[(registers_of_c.shape, np.uint32)],
    )  # fmt: skip
    return to_values(gather(got, c.dtype), mma.d)


def random_codes(mma: Mma, draw: Callable[[tuple[int, int]], np.ndarray]) -> list[np.ndarray]:
    """A, B and C of values from `draw`."""
    shapes = ((ROWS, mma.depth), (mma.depth, COLUMNS), (ROWS, COLUMNS))
    names = (mma.a, mma.b, mma.d)
    return [to_bits(draw(shape), name) for shape, name in zip(shapes, names, strict=True)]


def product(mma: Mma, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return to_values(a, mma.a) @ to_values(b, mma.b) + to_values(c, mma.d)


# ---- mma -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mma", FLOAT_MMAS, ids=str)
def test_mma_of_floats(conformance: Conformance, mma: Mma) -> None:
    a, b, c = random_codes(mma, lambda shape: RNG.integers(-4, 5, shape))
    np.testing.assert_array_equal(run_mma(conformance, mma, a, b, c), product(mma, a, b, c))


@pytest.mark.parametrize("mma", INTEGER_MMAS, ids=str)
def test_mma_of_integers(conformance: Conformance, mma: Mma) -> None:
    """All bytes, and sums that wrap."""
    a, b, _ = random_codes(mma, lambda shape: RNG.integers(0, 256, shape).astype(np.uint8))
    c = RNG.integers(-(2**31), 2**31, (ROWS, COLUMNS)).astype(np.int32)
    c[0], c[1] = 2**31 - 1, -(2**31)
    expected = product(mma, a, b, c).astype(np.int32)  # modulo 2^32
    np.testing.assert_array_equal(run_mma(conformance, mma, a, b, c), expected)


@pytest.mark.parametrize("mma", [x for x in INTEGER_MMAS if x.depth == 32], ids=str)
def test_mma_that_saturates(conformance: Conformance, mma: Mma) -> None:
    """Products of one sign in a row, so that the order of the sum does not matter."""
    a, b, _ = random_codes(mma, lambda shape: RNG.integers(1, 128, shape))
    if mma.a == "s8":
        a[ROWS // 2 :] = -a[ROWS // 2 :]
    c = np.zeros((ROWS, COLUMNS), np.int32)
    c[:4], c[-4:] = 2**31 - 1, -(2**31)
    expected = np.clip(product(mma, a, b, c), -(2**31), 2**31 - 1)
    got = run_mma(conformance, mma, a, b, c, kernel=f"mma_satfinite_s32_{mma.a}_{mma.b}")
    np.testing.assert_array_equal(got, expected)


# How far a sum may be off, in parts of the sum of the terms' magnitudes: adders of tensor cores cut
# off what is small beside the largest term; then the result is rounded.
ERRORS = {"f32": 2.0**-20, "f16": 2.0**-10}
FP8_ERROR = 2.0**-11


@pytest.mark.parametrize("mma", FLOAT_MMAS, ids=str)
def test_mma_rounds(conformance: Conformance, mma: Mma) -> None:
    a, b, c = random_codes(mma, lambda shape: RNG.normal(size=shape))
    if mma.a == "tf32":  # the low bits do not count
        a, b = (codes | RNG.integers(0, 1 << 13, codes.shape, np.int32) for codes in (a, b))
    x, y, z = (to_values(codes, name) for codes, name in ((a, mma.a), (b, mma.b), (c, mma.d)))
    if mma.a == "tf32":
        x, y = (to_values(codes & ~0x1FFF, "tf32") for codes in (a, b))
    error = FP8_ERROR if mma.a in FP8 else ERRORS["f32"]
    bound = max(error, ERRORS[mma.d]) * (np.abs(x) @ np.abs(y) + np.abs(z))
    got = run_mma(conformance, mma, a, b, c)
    assert (np.abs(got - (x @ y + z)) <= bound).all()


@pytest.mark.parametrize(
    "mma", [x for x in FLOAT_MMAS if BITS[x.a] == 8 and x.depth == 32], ids=str
)
def test_mma_of_all_fp8_codes(conformance: Conformance, mma: Mma) -> None:
    """All finite codes of A times one, which brings them out as they are."""
    codes = np.arange(256, dtype=np.uint8)
    codes[~np.isfinite(to_values(codes, mma.a))] = 0
    a = np.concatenate([codes, codes]).reshape(ROWS, 32)
    zeros = to_bits(np.zeros((ROWS, COLUMNS)), mma.d)
    for first in range(0, 32, COLUMNS):
        b = to_bits(np.eye(32)[:, first : first + COLUMNS], mma.b)
        got = run_mma(conformance, mma, a, b, zeros)
        np.testing.assert_array_equal(got, to_values(a, mma.a)[:, first : first + COLUMNS])


@pytest.mark.parametrize("mma", [x for x in FLOAT_MMAS if BITS[x.a] > 8], ids=str)
def test_mma_of_special_values(conformance: Conformance, mma: Mma) -> None:
    """Subnormals count; infinity and NaN spread over their rows; a sum may overflow."""
    smallest = torch.finfo(FLOATS[mma.a]).smallest_normal / 4
    a = np.ones((ROWS, mma.depth))
    a[0, 1], a[1, 2], a[2, 3] = np.inf, -np.inf, np.nan
    a[3, :2] = np.inf, -np.inf
    a[4], a[5], a[6] = smallest, -0.0, torch.finfo(FLOATS[mma.a]).max
    b = np.full((mma.depth, COLUMNS), 2.0)
    c = np.zeros((ROWS, COLUMNS))
    c[5] = -0.0
    a, b, c = to_bits(a, mma.a), to_bits(b, mma.b), to_bits(c, mma.d)
    got = run_mma(conformance, mma, a, b, c)
    np.testing.assert_array_equal(got[0], np.inf)
    np.testing.assert_array_equal(got[1], -np.inf)
    assert np.isnan(got[2]).all()
    assert np.isnan(got[3]).all()
    np.testing.assert_array_equal(got[4], 2 * mma.depth * smallest)
    np.testing.assert_array_equal(got[5], 0)
    np.testing.assert_array_equal(
        got[6], np.inf if mma.a != "f16" or mma.d == "f16" else _f16_sum(mma)
    )
    np.testing.assert_array_equal(got[7:], 2 * mma.depth)


def _f16_sum(mma: Mma) -> float:
    return torch.finfo(torch.float16).max * 2 * mma.depth


def truncated_sum(terms: list[Fraction], fraction_bits: int) -> Fraction:
    """What is more than `fraction_bits` below the leading bit of the largest term is cut off."""
    largest = max(abs(term) for term in terms)
    exponent = math.frexp(float(largest))[1] - 1  # exact: terms have few bits
    unit = Fraction(2) ** (exponent - fraction_bits)
    return sum((math.trunc(term / unit) * unit for term in terms), Fraction(0))


@pytest.mark.parametrize("fraction_bits", [13, 25])
def test_truncating_adder(fraction_bits: int) -> None:
    """Settings.mma_fraction_bits."""
    mma = Mma(32, "f32", "e4m3", "e4m3")
    a, b, c = random_codes(mma, lambda shape: RNG.normal(size=shape) * 4.0 ** RNG.integers(-2, 3))
    c[0] = 0
    x, y, z = (to_values(codes, name) for codes, name in ((a, mma.a), (b, mma.b), (c, mma.d)))
    got = run_mma(Conformance(Settings(mma_fraction_bits=fraction_bits)), mma, a, b, c)
    for row, column in np.ndindex(got.shape):
        products = [Fraction(p) * Fraction(q) for p, q in zip(x[row], y[:, column], strict=True)]
        exact = truncated_sum([*products, Fraction(z[row, column])], fraction_bits)
        below = np.float32(float(exact))  # exact has less than 53 bits
        if abs(Fraction(float(below))) > abs(exact):
            below = np.nextafter(below, np.float32(0))
        assert got[row, column] == below


# ---- ldmatrix, stmatrix, movmatrix ---------------------------------------------------------------

SHARED = 4096  # bytes, kSharedBytes of matrix.cu
COUNTS = pytest.mark.parametrize("count", [1, 2, 4])
TRANSPOSED = pytest.mark.parametrize("transposed", [False, True], ids=["", "trans"])


def distinct_elements() -> np.ndarray:
    return RNG.permutation(2**16)[: SHARED // 2].astype(np.uint16)


def row_addresses(count: int) -> np.ndarray:
    """One for every lane; those of lanes that no matrix asks are wild."""
    addresses = 16 * RNG.permutation(SHARED // 16)[:32].astype(np.uint32)
    addresses[8 * count :] = 0x00FFFFF3
    return addresses


def matrix_registers(matrix: np.ndarray) -> np.ndarray:
    """A register per lane: elements 2c and 2c+1 of row r in lane 4r+c."""
    return np.array([int(low) | int(high) << 16 for low, high in matrix.reshape(32, 2)], np.uint32)


def kernel_name(instruction: str, count: int, transposed: bool) -> str:
    return f"{instruction}_x{count}" + "_trans" * transposed


@COUNTS
@TRANSPOSED
def test_ldmatrix(conformance: Conformance, count: int, transposed: bool) -> None:
    memory, addresses = distinct_elements(), row_addresses(count)
    (got,) = conformance.run(
        "matrix.cu", kernel_name("ldmatrix", count, transposed),
        inputs=[memory, addresses], outputs=[((4, 32), np.uint32)],
    )  # fmt: skip
    expected = np.full((4, 32), 0xFFFFFFFF, np.uint32)
    rows = memory.reshape(-1, 8)
    for i in range(count):
        matrix = rows[addresses[8 * i : 8 * i + 8] // 16]
        expected[i] = matrix_registers(matrix.T if transposed else matrix)
    np.testing.assert_array_equal(got, expected)


@COUNTS
@TRANSPOSED
def test_stmatrix(conformance: Conformance, count: int, transposed: bool) -> None:
    memory, addresses = distinct_elements(), row_addresses(count)
    matrices = distinct_elements()[:256].reshape(4, 8, 8)
    registers = np.stack([matrix_registers(x.T if transposed else x) for x in matrices])
    (got,) = conformance.run(
        "matrix.cu", kernel_name("stmatrix", count, transposed),
        inputs=[memory, addresses, registers], outputs=[(SHARED // 2, np.uint16)],
    )  # fmt: skip
    expected = memory.copy().reshape(-1, 8)
    for i in range(count):
        expected[addresses[8 * i : 8 * i + 8] // 16] = matrices[i]
    np.testing.assert_array_equal(got, expected.reshape(-1))


def test_ldmatrix_generic(conformance: Conformance) -> None:
    memory, addresses = distinct_elements(), row_addresses(1)
    (got,) = conformance.run(
        "matrix.cu", "ldmatrix_generic", inputs=[memory, addresses], outputs=[(32, np.uint32)]
    )
    matrix = memory.reshape(-1, 8)[addresses[:8] // 16]
    np.testing.assert_array_equal(got, matrix_registers(matrix))


def test_movmatrix(conformance: Conformance) -> None:
    matrix = distinct_elements()[:64].reshape(8, 8)
    (got,) = conformance.run(
        "matrix.cu", "movmatrix", inputs=[matrix_registers(matrix)], outputs=[(32, np.uint32)]
    )
    np.testing.assert_array_equal(got, matrix_registers(matrix.T))


def test_ldmatrix_feeds_mma(conformance: Conformance) -> None:
    """The four matrices of ldmatrix.x4 are A's fragment, its rows in shared memory as they are."""
    mma = Mma(16, "f32", "bf16", "bf16")
    a, b, c = random_codes(mma, lambda shape: RNG.integers(-4, 5, shape))
    memory = np.zeros(SHARED // 2, np.int16)
    second_half = 40  # rows of 8 elements before columns 8 to 15
    memory[:128] = a[:, :8].reshape(-1)
    memory[8 * second_half :][:128] = a[:, 8:].reshape(-1)
    (got,) = conformance.run(
        "matrix.cu", "ldmatrix_mma",
        inputs=[memory, scatter(b, PLACES_OF_B[16, 16]), scatter(c, place_of_c)],
        outputs=[((32, 4), np.uint32)], n=[second_half],
    )  # fmt: skip
    np.testing.assert_array_equal(to_values(gather(got, c.dtype), "f32"), product(mma, a, b, c))


def test_bank_conflicts_are_counted(conformance: Conformance) -> None:
    """A wavefront delivers the 8 rows of a matrix if they lie in different banks."""
    conformance.needs_emulator()

    def wavefronts(stride: int) -> int:
        addresses = (stride * np.arange(32) % SHARED).astype(np.uint32)
        conformance.run(
            "matrix.cu", "ldmatrix_x4",
            inputs=[distinct_elements(), addresses], outputs=[((4, 32), np.uint32)],
        )  # fmt: skip
        return conformance.launches[0].shared_wavefronts

    assert wavefronts(128) - wavefronts(16) == 4 * 7
    assert wavefronts(144) == wavefronts(16)
