"""Conversions between number formats, against PyTorch's and numpy's."""

from __future__ import annotations

import numpy as np
import torch

from sim.micro_kernels import Conformance

RNG = np.random.default_rng(0)
CODES = np.arange(65536, dtype=np.uint32).astype(np.uint16)
ALL_CODES = {"block": 256, "grid": 256}  # a thread for each
EDGES = [0.0, -0.0, 1.0, -1.5, 2.0**-24, 2.0**-25, 2.0**-133, 1e-45, 65504.0, 65520.0, 3.4e38]
EDGES += [448.0, 464.0, 465.0, 57344.0, 61440.0, 2.0**-9, 2.0**-10, 2.0**-16, 2.0**-17]
EDGES += [float("inf"), -float("inf")]


def floats(count: int) -> np.ndarray:
    """Edge values, values half-way between two of a narrow format, and any at all."""
    halfway = (RNG.integers(0, 65536, count // 4).astype(np.uint32) << 16) + 0x8000
    halfway_half = (RNG.integers(0x1C000, 0x23C00, count // 4).astype(np.uint32) << 13) + 0x1000
    moderate = RNG.normal(size=count // 4).astype(np.float32) * 100
    anything = RNG.integers(0, 2**32, count, dtype=np.uint32)
    bits = np.concatenate([halfway, halfway_half, moderate.view(np.uint32), anything])[:count]
    values = bits.view(np.float32).copy()
    values[: len(EDGES)] = EDGES
    values[~np.isfinite(values) & ~np.isinf(values)] = 1.0  # NaN has a test of its own
    return values


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view({1: torch.uint8, 2: torch.int16}[tensor.element_size()]).numpy()


def narrowed(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    unsigned = {1: np.uint8, 2: np.uint16}[dtype.itemsize]
    return bits(torch.from_numpy(values).to(dtype)).view(unsigned)


def test_widen_16(conformance: Conformance) -> None:
    half, bfloat = conformance.run(
        "convert.cu", "widen_16",
        outputs=[(65536, np.float32), (65536, np.float32)], **ALL_CODES,
    )  # fmt: skip
    np.testing.assert_array_equal(half, CODES.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(bfloat, (CODES.astype(np.uint32) << 16).view(np.float32))


def test_narrow_to_16(conformance: Conformance) -> None:
    x = floats(4096)
    half, bfloat, pairs, half_zero = conformance.run(
        "convert.cu", "narrow_to_16", inputs=[x], block=256, grid=16,
        outputs=[(4096, np.uint16), (4096, np.uint16), ((4096, 2), np.uint32), (4096, np.uint16)],
    )  # fmt: skip
    expected_half = narrowed(x, torch.float16)
    expected_bfloat = narrowed(x, torch.bfloat16)
    np.testing.assert_array_equal(half, expected_half)
    np.testing.assert_array_equal(bfloat, expected_bfloat)
    for got, low in ((pairs[:, 0], expected_half), (pairs[:, 1], expected_bfloat)):
        np.testing.assert_array_equal(got, low | (low ^ np.uint16(0x8000)).astype(np.uint32) << 16)
    # Towards zero: the nearest one, or the one below it in magnitude.
    nearest = np.abs(expected_half.view(np.float16).astype(np.float64))
    too_far = (nearest > np.abs(x.astype(np.float64))) & np.isfinite(x)
    np.testing.assert_array_equal(half_zero, expected_half - too_far)


def test_widen_8(conformance: Conformance) -> None:
    got = conformance.run(
        "convert.cu", "widen_8", outputs=[(65536, np.uint32), (65536, np.uint32)], **ALL_CODES
    )
    for pairs, dtype in zip(got, (torch.float8_e4m3fn, torch.float8_e5m2), strict=True):
        table = torch.arange(256).to(torch.uint8).view(dtype).to(torch.float32).numpy()
        for shift, codes in ((0, CODES & 255), (16, CODES >> 8)):
            half = ((pairs >> shift) & 0xFFFF).astype(np.uint16).view(np.float16)
            np.testing.assert_array_equal(half.astype(np.float32), table[codes])


def saturated(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """PyTorch's conversion of what is clamped to the finite range first; NaN stays NaN."""
    limit = torch.finfo(dtype).max
    return narrowed(np.clip(values, -limit, limit), dtype)


def test_narrow_to_8(conformance: Conformance) -> None:
    x = floats(4096)
    x[len(EDGES) : 2048] = RNG.normal(size=2048 - len(EDGES)) * 2.0 ** RNG.integers(
        -20, 12, 2048 - len(EDGES)
    )
    got = conformance.run(
        "convert.cu", "narrow_to_8", inputs=[x], block=256, grid=16,
        outputs=[(4096, np.uint16), (4096, np.uint16)],
    )  # fmt: skip
    for codes, dtype in zip(got, (torch.float8_e4m3fn, torch.float8_e5m2), strict=True):
        low = saturated(x, dtype)
        np.testing.assert_array_equal(codes & 255, low)
        np.testing.assert_array_equal(codes >> 8, low ^ np.uint8(0x80))


def test_half_pair_to_8(conformance: Conformance) -> None:
    got = conformance.run(
        "convert.cu", "half_pair_to_8",
        outputs=[(65536, np.uint16), (65536, np.uint16)], **ALL_CODES,
    )  # fmt: skip
    x = CODES.view(np.float16).astype(np.float32)
    known = ~np.isnan(x)
    for codes, dtype in zip(got, (torch.float8_e4m3fn, torch.float8_e5m2), strict=True):
        low = saturated(np.where(known, x, 0), dtype)
        np.testing.assert_array_equal((codes & 255)[known], low[known])
        np.testing.assert_array_equal((codes >> 8)[known], (low ^ np.uint8(0x80))[known])
        assert ((codes[~known] & 0x7F) == 0x7F).all()


def test_rectified_pairs(conformance: Conformance) -> None:
    """What is negative becomes +0; NaN stays."""
    x = np.resize(floats(4096), 65536)
    x[7] = np.nan
    narrow, wide = conformance.run(
        "convert.cu", "rectified_pairs", inputs=[x],
        outputs=[((65536, 4), np.uint16), ((65536, 4), np.uint32)], **ALL_CODES,
    )  # fmt: skip
    half = CODES.view(np.float16).astype(np.float32)
    eighths = (torch.float8_e4m3fn, torch.float8_e5m2)
    for column, dtype in enumerate(eighths):
        for k, values in ((column, x), (2 + column, half)):
            check_rectified(narrow[:, k] & 255, saturated(rectified(values), dtype), dtype)
            check_rectified(narrow[:, k] >> 8, saturated(rectified(-values), dtype), dtype)
        codes = torch.arange(256).to(torch.uint8).view(dtype).to(torch.float32).numpy()
        table = narrowed(rectified(codes), torch.float16)
        check_rectified(wide[:, column] & 0xFFFF, table[CODES & 255], torch.float16)
        check_rectified(wide[:, column] >> 16, table[CODES >> 8], torch.float16)
    low, high = narrowed(rectified(x), torch.float16), narrowed(rectified(-x), torch.float16)
    check_rectified(wide[:, 2] & 0xFFFF, low, torch.float16)
    check_rectified(wide[:, 2] >> 16, high, torch.float16)
    for shift, values in ((0, rectified(x)), (16, rectified(-x))):
        cut = values.view(np.uint32) >> 16  # towards zero; no NaN of x has its bits in the low half
        check_rectified(wide[:, 3] >> shift & 0xFFFF, cut.astype(np.uint16), torch.bfloat16)


def rectified(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0, np.float32(0), values)


def check_rectified(got: np.ndarray, expected: np.ndarray, dtype: torch.dtype) -> None:
    """The same codes, or both NaN."""
    unsigned = {1: np.uint8, 2: np.uint16}[dtype.itemsize]
    got = np.ascontiguousarray(got.astype(unsigned))
    nan = [torch.from_numpy(x).view(dtype).float().isnan().numpy() for x in (got, expected)]
    np.testing.assert_array_equal(*nan)
    np.testing.assert_array_equal(got[~nan[0]], expected[~nan[0]])


def test_float_and_integer(conformance: Conformance) -> None:
    x = (RNG.normal(size=512) * 10.0 ** RNG.integers(-2, 12, 512)).astype(np.float32)
    x[:9] = [0.5, 1.5, 2.5, -0.5, -1.5, 3e9, -3e9, float("inf"), float("nan")]
    i = RNG.integers(-(2**31), 2**31 - 1, 512, dtype=np.int32)
    (got,) = conformance.run(
        "convert.cu", "float_and_integer", inputs=[x, i], outputs=[((512, 6), np.int32)],
        block=256, grid=2,
    )  # fmt: skip
    wide = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=1e30, neginf=-1e30)
    for column, rounded in enumerate((np.trunc, np.rint, np.floor, np.ceil)):
        expected = np.clip(rounded(wide), -(2**31), 2**31 - 1).astype(np.int64)
        np.testing.assert_array_equal(got[:, column], expected)
    unsigned = np.clip(np.trunc(wide), 0, 2**32 - 1).astype(np.int64)
    np.testing.assert_array_equal(got[:, 4].view(np.uint32), unsigned)
    np.testing.assert_array_equal(got[:, 5].view(np.float32), i.astype(np.float32))


def test_integer_widths(conformance: Conformance) -> None:
    x = RNG.integers(-(2**31), 2**31 - 1, 256, dtype=np.int32)
    x[:128] = np.arange(-200, 312, 4)
    (got,) = conformance.run(
        "convert.cu", "integer_widths", inputs=[x], outputs=[((256, 5), np.int32)], block=256
    )
    columns = [x.astype(np.int8), x.astype(np.uint16), np.clip(x, -128, 127)]
    columns += [np.clip(x, 0, 255), np.where(x < 0, -1, 0)]
    np.testing.assert_array_equal(got, np.stack([c.astype(np.int32) for c in columns], axis=1))
