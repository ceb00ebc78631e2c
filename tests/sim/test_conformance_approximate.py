"""Approximate functions, within the errors that the PTX ISA and the programming guide allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sim.micro_kernels import Conformance

COUNT = 512


@dataclass(frozen=True)
class Approximation:
    function: Callable[[np.ndarray], np.ndarray]
    low: float
    high: float
    relative: float
    absolute: float = 0.0


RECIPROCAL_ROOT = Approximation(lambda x: 1 / np.sqrt(x), 0.01, 100, 2**-22)
LOGARITHM = Approximation(np.log2, 0.01, 100, 2**-21, 2**-22)
SINGLE = {
    "ex2_approx_f32": Approximation(np.exp2, -20, 20, 2**-22),
    "ex2_approx_ftz_f32": Approximation(np.exp2, -20, 20, 2**-22),
    "lg2_approx_f32": LOGARITHM,
    "lg2_approx_ftz_f32": LOGARITHM,
    "rcp_approx_f32": Approximation(lambda x: 1 / x, 0.01, 100, 2**-23),
    "rcp_approx_ftz_f32": Approximation(lambda x: 1 / x, 0.01, 100, 2**-23),
    "rsqrt_approx_f32": RECIPROCAL_ROOT,
    "rsqrt_approx_ftz_f32": RECIPROCAL_ROOT,
    "sqrt_approx_f32": Approximation(np.sqrt, 0.01, 100, 2**-22),
    "sqrt_approx_ftz_f32": Approximation(np.sqrt, 0.01, 100, 2**-22),
    "tanh_approx_f32": Approximation(np.tanh, -5, 5, 2**-10.9),
    "sin_approx_f32": Approximation(np.sin, -3.14, 3.14, 0, 2**-20.5),
    "cos_approx_f32": Approximation(np.cos, -3.14, 3.14, 0, 2**-20.5),
}
# Of 16 bits: the format's own rounding comes on top.
HALF = {
    "ex2_approx_f16": Approximation(np.exp2, -10, 10, 2**-9.9),
    "ex2_approx_ftz_bf16": Approximation(np.exp2, -20, 20, 2**-7),
    "tanh_approx_f16": Approximation(np.tanh, -4, 4, 2**-10, 2**-10.9),
    "tanh_approx_bf16": Approximation(np.tanh, -4, 4, 2**-7, 2**-8),
}


def run(conformance: Conformance, kernel: str, inputs: list[np.ndarray], dtype: type) -> np.ndarray:
    count = len(inputs[0])
    (got,) = conformance.run(
        "float.cu", kernel, inputs=inputs, outputs=[(count, dtype)], n=[count], block=64
    )
    return got


def uniform(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, COUNT)


@pytest.mark.parametrize("kernel", SINGLE)
def test_single(conformance: Conformance, kernel: str) -> None:
    expected = SINGLE[kernel]
    x = uniform(expected.low, expected.high).astype(np.float32)
    got = run(conformance, kernel, [x], np.float32)
    exact = expected.function(x.astype(np.float64))
    np.testing.assert_allclose(got, exact, rtol=expected.relative, atol=expected.absolute)


@pytest.mark.parametrize("kernel", ["div_approx_f32", "div_full_f32", "div_approx_ftz_f32"])
def test_quotient(conformance: Conformance, kernel: str) -> None:
    a, b = uniform(-100, 100).astype(np.float32), uniform(0.01, 100).astype(np.float32)[::-1]
    got = run(conformance, kernel, [a, np.ascontiguousarray(b)], np.float32)
    np.testing.assert_allclose(got, a.astype(np.float64) / b, rtol=2**-22)


INF, NAN = np.inf, np.nan
TINY = 2.0**-130  # subnormal
# Sources, their results, and the results where subnormal numbers are flushed to zero.
SPECIAL = {
    "ex2": ([-INF, INF, NAN, TINY, -130], [0, INF, NAN, 1, TINY], [0, INF, NAN, 1, 0]),
    "lg2": ([0, INF, -1, 1, TINY], [-INF, INF, NAN, 0, -130], [-INF, INF, NAN, 0, -INF]),
    "rcp": ([INF, -INF, -0.0, 2**127], [0, -0.0, -INF, 2.0**-127], [0, -0.0, -INF, 0]),
    "rsqrt": ([0, -0.0, INF, -1, TINY], [INF, -INF, 0, NAN, 2**65], [INF, -INF, 0, NAN, INF]),
    "sqrt": ([0, -0.0, INF, -1, TINY], [0, -0.0, INF, NAN, 2.0**-65], [0, -0.0, INF, NAN, 0]),
}


@pytest.mark.parametrize("function", SPECIAL)
def test_special_values(conformance: Conformance, function: str) -> None:
    sources, *results = SPECIAL[function]
    x = np.array(sources, np.float32)
    for form, expected in zip(("approx", "approx_ftz"), results, strict=True):
        got = run(conformance, f"{function}_{form}_f32", [x], np.float32)
        want = np.array(expected, np.float32)
        np.testing.assert_array_equal(got, want, err_msg=form)
        is_zero = want == 0
        np.testing.assert_array_equal(np.signbit(got[is_zero]), np.signbit(want[is_zero]))


def test_quotient_of_a_huge_divisor(conformance: Conformance) -> None:
    """Above 2^126 an approximate quotient is zero, or of infinity NaN; that of div.full is not."""
    a = np.array([2.0**100, -(2.0**100), 2.0**100, 2.0**100, INF], np.float32)
    b = np.array([2.0**126, 2.0**126.5, -(2.0**127), INF, 2.0**127], np.float32)
    got = run(conformance, "div_approx_f32", [a, b], np.float32)
    np.testing.assert_array_equal(got, [2.0**-26, -0.0, -0.0, 0, NAN])
    got = run(conformance, "div_full_f32", [a[:3], b[:3]], np.float32)
    np.testing.assert_allclose(got, a[:3].astype(np.float64) / b[:3], rtol=2**-22)


@pytest.mark.parametrize("pairs", [False, True], ids=["one", "pairs"])
@pytest.mark.parametrize("kernel", HALF)
def test_half(conformance: Conformance, kernel: str, pairs: bool) -> None:
    expected = HALF[kernel]
    dtype = torch.bfloat16 if kernel.endswith("bf16") else torch.float16
    x = torch.from_numpy(uniform(expected.low, expected.high)).to(dtype)
    codes = x.view(torch.int16).numpy().view(np.uint16)
    if pairs:
        got = run(conformance, kernel + "x2", [codes.view(np.uint32)], np.uint32)
    else:
        got = run(conformance, kernel, [codes], np.uint16)
    values = torch.from_numpy(got.view(np.int16)).view(dtype).double().numpy()
    exact = expected.function(x.double().numpy())
    np.testing.assert_allclose(values, exact, rtol=expected.relative, atol=expected.absolute)


def test_double(conformance: Conformance) -> None:
    """These look at the upper 32 bits only."""
    x = uniform(0.01, 100)
    x = (x.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    for kernel, exact in (("rcp_approx_ftz_f64", 1 / x), ("rsqrt_approx_ftz_f64", x**-0.5)):
        got = run(conformance, kernel, [x], np.float64)
        np.testing.assert_allclose(got, exact, rtol=2**-19)
    x = uniform(0.01, 100)
    got = run(conformance, "rsqrt_approx_f64", [x], np.float64)
    np.testing.assert_allclose(got, x**-0.5, rtol=2**-19)
