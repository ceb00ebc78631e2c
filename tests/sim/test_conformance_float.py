"""Floating-point arithmetic: exact rational results, rounded by this file's own rules."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from sim.micro_kernels import Conformance

RNG = np.random.default_rng(0)
COUNT = 512
EDGES = np.array(
    [0.0, -0.0, 1.0, -1.0, 2.0**-126, 2.0**-149, -(2.0**-140), 3.4e38, np.inf, -np.inf, np.nan],
    np.float32,
)


def operands(count: int = COUNT) -> np.ndarray:
    """Every pair of edge values first, if shuffled against each other; then any values."""
    x = (RNG.normal(size=count) * 2.0 ** RNG.integers(-30, 30, count)).astype(np.float32)
    x[:121] = np.repeat(EDGES, 11)
    return x


A, B, C = operands(), operands(), operands()
B[:121] = np.tile(EDGES, 11)
FINITE = np.isfinite(A) & np.isfinite(B) & np.isfinite(C)


def run(conformance: Conformance, kernel: str, *inputs: np.ndarray, dtype: type) -> np.ndarray:
    (got,) = conformance.run(
        "float.cu", kernel, inputs=inputs, outputs=[(len(inputs[0]), dtype)],
        n=[len(inputs[0])], block=64,
    )  # fmt: skip
    return got


def round_to_float(exact: Fraction, rounding: str) -> float:
    """The float32 that `exact` rounds to; not for zero, whose sign is another matter."""
    magnitude = abs(exact)
    exponent = max(math.floor(math.log2(magnitude)) if magnitude < 2**1000 else 0, -126)
    while Fraction(2) ** (exponent + 1) <= magnitude:
        exponent += 1
    while exponent > -126 and Fraction(2) ** exponent > magnitude:
        exponent -= 1
    ulp = Fraction(2) ** (exponent - 23)
    below = math.floor(exact / ulp)
    rest = exact / ulp - below
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1),
        "rz": exact < 0 and rest > 0,
        "rm": False,
        "rp": rest > 0,
    }[rounding]
    return float((below + up) * ulp)


EXACT = {
    "add": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
    "div": (2, lambda a, b: a / b if b else None),
    "fma": (3, lambda a, b, c: a * b + c),
    "rcp": (1, lambda a: 1 / a if a else None),
}


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", EXACT)
def test_rounding(conformance: Conformance, name: str, rounding: str) -> None:
    count, exactly = EXACT[name]
    inputs = (A, B, C)[:count]
    got = run(conformance, f"{name}_{rounding}", *inputs, dtype=np.float32)
    checked = 0
    for i in np.flatnonzero(FINITE):
        exact = exactly(*(Fraction(float(x[i])) for x in inputs))
        if not exact or abs(exact) >= Fraction(2) ** 127:  # see test_special_values
            continue
        assert float(got[i]) == round_to_float(exact, rounding), (i, [x[i] for x in inputs])
        checked += 1
    assert checked > 300


@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp"])
def test_square_root(conformance: Conformance, rounding: str) -> None:
    got = run(conformance, f"sqrt_{rounding}", A, dtype=np.float32)
    for i in np.flatnonzero(np.isfinite(A) & (A > 0)):
        root, x = Fraction(float(got[i])), Fraction(float(A[i]))
        above = Fraction(float(np.nextafter(got[i], np.float32(np.inf))))
        below = Fraction(float(np.nextafter(got[i], np.float32(0))))
        if rounding == "rn":
            assert ((root + below) / 2) ** 2 <= x <= ((root + above) / 2) ** 2
        elif rounding == "rp":
            assert below**2 < x <= root**2
        else:
            assert root**2 <= x < above**2


def test_special_values(conformance: Conformance) -> None:
    """What IEEE 754 says of zeros, infinities and NaN, as numpy has it; NaN is 0x7fffffff."""
    with np.errstate(all="ignore"):
        cases = {"add_rn": A + B, "sub_rn": A - B, "mul_rn": A * B, "div_rn": A / B}
        cases |= {"sqrt_rn": np.sqrt(A), "rcp_rn": np.float32(1) / A}
    for kernel, expected in cases.items():
        inputs = (A,) if kernel in ("sqrt_rn", "rcp_rn") else (A, B)
        got = run(conformance, kernel, *inputs, dtype=np.float32)
        nan = np.isnan(expected)
        np.testing.assert_array_equal(got.view(np.int32)[~nan], expected.view(np.int32)[~nan])
        np.testing.assert_array_equal(got.view(np.int32)[nan], 0x7FFFFFFF)


def test_minimum_and_maximum(conformance: Conformance) -> None:
    """A NaN loses, unless .NaN; -0 is below +0."""
    low = run(conformance, "min_f32", A, B, dtype=np.float32)
    high = run(conformance, "max_f32", A, B, dtype=np.float32)
    strict = run(conformance, "max_NaN_f32", A, B, dtype=np.float32)
    for got, numpy in ((low, np.fmin), (high, np.fmax), (strict, np.maximum)):
        zeros = (A == 0) & (B == 0)
        np.testing.assert_array_equal(got[~zeros], numpy(A, B)[~zeros])
    zeros = (A == 0) & (B == 0)
    np.testing.assert_array_equal(
        np.signbit(low[zeros]), np.signbit(A[zeros]) | np.signbit(B[zeros])
    )
    np.testing.assert_array_equal(
        np.signbit(high[zeros]), np.signbit(A[zeros]) & np.signbit(B[zeros])
    )


def test_modifiers(conformance: Conformance) -> None:
    tiny = np.array([2.0**-130, -(2.0**-149), 2.0**-126, 1.0], np.float32)
    got = run(conformance, "add_ftz", tiny, np.zeros(4, np.float32), dtype=np.float32)
    np.testing.assert_array_equal(got, [0, 0, 2.0**-126, 1])
    x = np.array([-2.0, 0.25, 7.0, np.nan], np.float32)
    got = run(conformance, "mul_sat", x, np.ones(4, np.float32), dtype=np.float32)
    np.testing.assert_array_equal(got, [0, 0.25, 1, 0])
    known = ~np.isnan(A)
    for kernel, expected in (("neg_f32", -A), ("abs_f32", np.abs(A))):
        got = run(conformance, kernel, A, dtype=np.float32)
        np.testing.assert_array_equal(got.view(np.int32)[known], expected.view(np.int32)[known])
    got = run(conformance, "copysign_f32", A, B, dtype=np.float32)  # the sign of a, the value of b
    np.testing.assert_array_equal(got[~np.isnan(B)], np.copysign(B, A)[~np.isnan(B)])


# Relative errors that the PTX ISA and the CUDA programming guide allow; sin, cos and lg2 near 1 are
# absolute.
APPROXIMATE = {
    "ex2_approx": (np.exp2, (-20, 20), 2**-22, 0),
    "lg2_approx": (np.log2, (0.01, 100), 2**-21, 2**-22),
    "rcp_approx": (lambda x: 1 / x, (0.01, 100), 2**-23, 0),
    "rsqrt_approx": (lambda x: 1 / np.sqrt(x), (0.01, 100), 2**-22, 0),
    "sqrt_approx": (np.sqrt, (0.01, 100), 2**-22, 0),
    "tanh_approx": (np.tanh, (-5, 5), 2**-10.9, 0),
    "sin_approx": (np.sin, (-3.14, 3.14), 0, 2**-20.5),
    "cos_approx": (np.cos, (-3.14, 3.14), 0, 2**-20.5),
}


@pytest.mark.parametrize("kernel", APPROXIMATE)
def test_approximate(conformance: Conformance, kernel: str) -> None:
    function, (low, high), relative, absolute = APPROXIMATE[kernel]
    x = RNG.uniform(low, high, COUNT).astype(np.float32)
    got = run(conformance, kernel, x, dtype=np.float32)
    np.testing.assert_allclose(got, function(x.astype(np.float64)), rtol=relative, atol=absolute)


def test_double(conformance: Conformance) -> None:
    a, b, c = (RNG.normal(size=COUNT) * 2.0 ** RNG.integers(-40, 40, COUNT) for _ in range(3))
    np.testing.assert_array_equal(run(conformance, "add_f64", a, b, dtype=np.float64), a + b)
    got = run(conformance, "sqrt_f64", np.abs(a), dtype=np.float64)
    np.testing.assert_array_equal(got, np.sqrt(np.abs(a)))
    exact = [
        float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c, strict=True)
    ]
    np.testing.assert_array_equal(run(conformance, "fma_f64", a, b, c, dtype=np.float64), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_small(conformance: Conformance, dtype: torch.dtype) -> None:
    """One rounding of the exact result, which float64 holds as good as exactly."""
    name = "f16" if dtype == torch.float16 else "bf16"
    x, y, z = (torch.randn(COUNT).to(dtype) for _ in range(3))
    wide = [t.double() for t in (x, y, z)]
    expected = {
        "add": wide[0] + wide[1],
        "mul": wide[0] * wide[1],
        "fma": wide[0] * wide[1] + wide[2],
        "max": torch.maximum(wide[0], wide[1]),
    }
    raw = [t.view(torch.int16).numpy().view(np.uint16) for t in (x, y, z)]
    for operation, exact in expected.items():
        # PyTorch rounds float64 to float32 first; half-way cases of that do not occur in these.
        want = exact.to(dtype).view(torch.int16).numpy().view(np.uint16)
        inputs = raw[: 3 if operation == "fma" else 2]
        got = run(conformance, f"{operation}_{name}", *inputs, dtype=np.uint16)
        np.testing.assert_array_equal(got, want)
        pairs = [t.view(np.uint32) for t in inputs]
        got = run(conformance, f"{operation}_{name}x2", *pairs, dtype=np.uint32)
        np.testing.assert_array_equal(got.view(np.uint16), want)
    got = run(conformance, f"neg_{name}x2", raw[0].view(np.uint32), dtype=np.uint32)
    np.testing.assert_array_equal(got.view(np.uint16), raw[0] ^ np.uint16(0x8000))


def test_comparisons(conformance: Conformance) -> None:
    nan = np.isnan(A) | np.isnan(B)
    expected = {
        "eq": A == B, "ne": (A != B) & ~nan, "lt": A < B, "ge": A >= B, "equ": (A == B) | nan,
        "neu": (A != B) | nan, "ltu": (A < B) | nan, "num": ~nan, "nan": nan,
    }  # fmt: skip
    for operation, want in expected.items():
        got = run(conformance, f"setp_{operation}", A, B, dtype=np.uint32)
        np.testing.assert_array_equal(got, want)
