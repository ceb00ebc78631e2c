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
