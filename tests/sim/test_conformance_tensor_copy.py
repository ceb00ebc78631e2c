"""Tensor copies: which bytes of a box go where, and what becomes of elements outside the tensor."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from sim.micro_kernels import Conformance

INT = np.int32
RNG = np.random.default_rng(0)

# CUtensorMapDataType
U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16 = range(10)
DTYPES = (np.uint8, np.uint16, np.uint32, np.int32, np.uint64, np.int64,
          np.float16, np.float32, np.float64, np.uint16)  # fmt: skip


@dataclass(frozen=True)
class TensorCase:
    """A tensor in global memory and a box of it, the fastest dimension first."""

    sizes: tuple[int, ...]
    box: tuple[int, ...]
    at: tuple[int, ...]
    type: int = U16
    swizzle: int = 0  # chunks of 16 bytes are exchanged within 16 << swizzle bytes
    fills_nan: bool = False
    padding: int = 0  # bytes between rows, beyond what aligns them to 16
    strides: tuple[int, ...] = (1, 1, 1, 1, 1)  # of elements
    offset: int = 0  # in shared memory

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(DTYPES[self.type])

    @property
    def n(self) -> list[int]:
        """Mirrors TensorCase of tensor_copy.cu."""
        word = self.type | len(self.sizes) << 8 | self.swizzle << 12 | self.fills_nan << 16
        dimensions = [
            size | box << 12 | stride << 21
            for size, box, stride in zip(self.sizes, self.box, self.strides, strict=False)
        ]
        return [word | self.padding << 20, *dimensions, *[0] * (5 - len(dimensions)), self.offset]

    @property
    def extents(self) -> tuple[int, ...]:
        """Elements of the box in shared memory, the fastest dimension first."""
        steps = (1, *self.strides[1:])
        return tuple(-(-box // step) for box, step in zip(self.box, steps, strict=False))

    @property
    def row_elements(self) -> int:
        """Elements from one row of the tensor to the next."""
        row = -(-self.sizes[0] * self.dtype.itemsize // 16) * 16 + self.padding
        return row // self.dtype.itemsize

    def make_tensor(self) -> np.ndarray:
        """Random contents, with the padding; the fastest dimension last."""
        shape = (*reversed(self.sizes[1:]), self.row_elements)
        values = RNG.integers(0, 251, shape)
        return values.astype(self.dtype)

    def box_indices(self) -> list[tuple[int, tuple[int, ...] | None]]:
        """For each element of the box its place there, and its index in the tensor or None."""
        result = []
        steps = (1, *self.strides[1:])
        ranges = [range(extent) for extent in reversed(self.extents)]
        for place, index in enumerate(itertools.product(*ranges)):
            position = [
                start + i * step
                for start, i, step in zip(self.at, reversed(index), steps, strict=False)
            ]
            inside = all(0 <= x < size for x, size in zip(position, self.sizes, strict=True))
            result.append((place, tuple(reversed(position)) if inside else None))
        return result

    def swizzled(self, image: np.ndarray) -> np.ndarray:
        """Bytes of a box as they lie in shared memory.

        In every group of 8 (4, 2) rows of 128 (64, 32) bytes, chunk j of row i goes to i ^ j. Rows
        here are those of shared memory, which has a row of 128 bytes to 1, 2 or 4 of such a group.
        """
        if self.swizzle == 0:
            return image
        chunks = image.reshape(-1, 16)
        result = np.empty_like(chunks)
        per_span = 1 << self.swizzle  # chunks
        for chunk in range(len(chunks)):
            address = self.offset // 16 + chunk
            line = address // 8 % per_span  # of 128 bytes
            result[(address ^ line) - self.offset // 16] = chunks[chunk]
        return result.reshape(-1)


def case(sizes: tuple[int, ...], box: tuple[int, ...], at: tuple[int, ...], **more: Any) -> Any:
    return pytest.param(TensorCase(sizes, box, at, **more), id=f"{sizes}-{box}-{at}-{more}")


SHAPES = [
    case((100,), (32,), (40,)),
    case((100,), (64,), (70,)),
    case((100,), (64,), (-30,)),
    case((100,), (64,), (200,)),
    case((64, 40), (64, 8), (0, 16)),
    case((60, 40), (32, 8), (40, 36)),
    case((60, 40), (32, 8), (-8, -3), padding=32),
    case((24, 10, 6), (16, 4, 3), (16, 8, 4)),
    case((24, 10, 6), (16, 4, 3), (-4, -2, -1)),
    case((16, 5, 4, 3), (8, 3, 2, 2), (8, 3, 3, 2)),
    case((16, 5, 4, 3, 2), (8, 3, 2, 2, 2), (12, 4, 3, 2, 1)),
    case((16, 5, 4, 3, 2), (16, 5, 4, 3, 2), (0, 0, 0, 0, 0)),
    case((256, 300), (256, 3), (0, 298), type=U8),
]
TYPES = [
    case((20, 9), (16, 4), (8, 6), type=kind)
    for kind in (U8, U32, S32, U64, S64, F16, F32, F64, BF16)
]
SWIZZLES = [
    case((64, 40), (16, 16), (16, 8), swizzle=1),
    case((64, 40), (32, 16), (16, 8), swizzle=2),
    case((64, 40), (64, 16), (0, 8), swizzle=3),
    case((60, 40), (64, 16), (30, 33), swizzle=3),
    case((64, 40), (32, 8), (0, 8), swizzle=2, offset=512),
    # Not aligned to where the pattern repeats: it goes by addresses.
    case((64, 40), (64, 16), (0, 8), swizzle=3, offset=384),
    case((64, 40), (16, 8), (0, 8), swizzle=1, offset=128),
    # Rows narrower than the span.
    case((64, 40), (8, 16), (16, 8), swizzle=1),
    case((64, 40, 5), (32, 4, 3), (32, 38, 1), swizzle=2),
    case((128, 40), (128, 16), (0, 8), swizzle=3, type=U8),
    case((32, 40), (32, 16), (0, 8), swizzle=3, type=F32),
]
STRIDES = [
    case((64, 40), (64, 16), (0, 8), strides=(1, 2)),
    case((64, 40, 9), (32, 7, 6), (8, 36, 1), strides=(1, 3, 4)),
    case((64, 40, 9), (32, 7, 6), (8, -2, -3), strides=(3, 2, 2)),
]


@pytest.mark.parametrize("tensor", SHAPES + TYPES + SWIZZLES + STRIDES)
def test_load(conformance: Conformance, tensor: TensorCase) -> None:
    _check_load(conformance, tensor)


def test_a_swizzled_box_takes_whole_spans(conformance: Conformance) -> None:
    """Three chunks, from the second line of 128 bytes on: the last goes where a fourth would be."""
    tensor = TensorCase((64, 40), (8, 3), (0, 0), swizzle=3, offset=128)
    reports = conformance.run_faulty(
        "tensor_copy.cu", "load",
        inputs=[tensor.make_tensor(), np.array(tensor.at, INT)], outputs=[(48, np.uint8)],
        n=tensor.n, block=64, shared=tensor.offset + 48,
    )  # fmt: skip
    assert [report.kind for report in reports] == ["memory"]
    assert "out-of-bounds write of 128 bytes" in reports[0].message


@pytest.mark.parametrize("kind", [F16, BF16, F32, F64])
def test_load_fills_with_nan(conformance: Conformance, kind: int) -> None:
    tensor = TensorCase((20, 9), (16, 4), (8, 6), type=kind, fills_nan=True)
    _check_load(conformance, tensor)


def _check_load(conformance: Conformance, tensor: TensorCase) -> None:
    data = tensor.make_tensor()
    count = int(np.prod(tensor.extents))
    (got,) = conformance.run(
        "tensor_copy.cu", "load",
        inputs=[data, np.array(tensor.at, INT)],
        outputs=[(count * tensor.dtype.itemsize, np.uint8)],
        n=tensor.n, block=64, shared=tensor.offset + 16384,
    )  # fmt: skip
    indices = tensor.box_indices()
    image = np.zeros(count, tensor.dtype)
    outside = np.array([index is None for _, index in indices])
    for place, index in indices:
        if index is not None:
            image[place] = data[index]
    # Undone by where each byte of the box should be.
    places = tensor.swizzled(np.arange(image.nbytes, dtype=np.uint16))
    plain = np.empty_like(got)
    plain[places] = got
    values = plain.view(tensor.dtype)
    np.testing.assert_array_equal(values[~outside], image[~outside])
    if tensor.fills_nan:
        assert outside.any()
        assert _is_nan(values[outside], tensor.type).all()
    else:
        np.testing.assert_array_equal(plain.view(np.uint8), image.view(np.uint8))
    for launch in conformance.launches:
        inside = int((~outside).sum()) * tensor.dtype.itemsize
        assert ("in0" in launch.traffic) == (inside > 0)
        if inside > 0:
            assert launch.traffic["in0"].read.bytes == inside


def _is_nan(values: np.ndarray, kind: int) -> np.ndarray:
    if kind == BF16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).isnan().numpy()
    return np.isnan(values)


@pytest.mark.parametrize("tensor", SHAPES + SWIZZLES + STRIDES)
def test_store(conformance: Conformance, tensor: TensorCase) -> None:
    start = tensor.make_tensor()
    values = RNG.integers(0, 251, int(np.prod(tensor.extents))).astype(tensor.dtype)
    (got,) = conformance.run(
        "tensor_copy.cu", "store",
        inputs=[tensor.swizzled(values.view(np.uint8)), np.array(tensor.at, INT)],
        outputs=[start.copy()], n=tensor.n, block=64, shared=tensor.offset + 16384,
    )  # fmt: skip
    expected = start.copy()
    for place, index in tensor.box_indices():
        if index is not None:
            expected[index] = values[place]
    np.testing.assert_array_equal(got, expected)


OPERATIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("add", kind) for kind in (U32, S32, U64, F16, F32, BF16)]
    + [(name, kind) for name in ("min", "max") for kind in (U32, S32, U64, S64, F16, BF16)]
    + [("inc", U32), ("dec", U32)]
    + [(name, kind) for name in ("and", "or", "xor") for kind in (U32, S32, U64, S64)],
)
def test_reduce(conformance: Conformance, name: str, kind: int) -> None:
    tensor = TensorCase((40, 12), (16, 8), (32, -3), type=kind)
    start = tensor.make_tensor()
    values = RNG.integers(0, 251, int(np.prod(tensor.extents))).astype(tensor.dtype)
    (got,) = conformance.run(
        "tensor_copy.cu", "reduce",
        inputs=[values.view(np.uint8), np.array(tensor.at, INT)],
        outputs=[start.copy()], n=[*tensor.n, OPERATIONS.index(name)], block=64, shared=16384,
    )  # fmt: skip
    expected = start.copy()
    for place, index in tensor.box_indices():
        if index is not None:
            expected[index] = _reduced(name, kind, start[index], values[place])
    np.testing.assert_array_equal(got, expected)


def _reduced(name: str, kind: int, old: np.generic, value: np.generic) -> object:
    if name == "inc":
        return 0 if old >= value else old + 1
    if name == "dec":
        return value if old == 0 or old > value else old - 1
    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
                "or": np.bitwise_or, "xor": np.bitwise_xor}[name]  # fmt: skip
    if kind != BF16:
        return function(old, value)
    bits = np.array([old, value], np.uint16).view(np.int16)
    a, b = torch.from_numpy(bits).view(torch.bfloat16).double().numpy()
    rounded = torch.tensor(float(function(a, b))).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16)


def test_multicast(conformance: Conformance) -> None:
    tensor = TensorCase((32, 40), (32, 8), (0, 4), type=U16)
    data = tensor.make_tensor()
    (got,) = conformance.run(
        "tensor_copy.cu", "multicast",
        inputs=[data, np.array(tensor.at, INT)],
        outputs=[((2, 16, 32), np.uint16)],
        n=tensor.n, block=64, grid=2, cluster=2, shared=2048,
    )  # fmt: skip
    np.testing.assert_array_equal(got, np.stack([data[4:20]] * 2))


def test_replace(conformance: Conformance) -> None:
    """A map of another tensor: with more rows, at another address, of another pitch."""
    tensor = TensorCase((32, 10), (32, 8), (0, 9), type=U16)
    other = replace(tensor, sizes=(32, 20), padding=16)
    data = other.make_tensor()
    got, _ = conformance.run(
        "tensor_copy.cu", "replace",
        inputs=[tensor.make_tensor(), np.array(tensor.at, INT), data],
        outputs=[((8, 32), np.uint16), np.zeros(128, np.uint8)],
        n=[*tensor.n, 2 * other.row_elements], block=64, shared=1024,
    )  # fmt: skip
    np.testing.assert_array_equal(got, data[9:17, :32])


# ---- What cuTensorMapEncodeTiled refuses ---------------------------------------------------------

GOOD = TensorCase((64, 40), (16, 16), (0, 0))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (replace(GOOD, padding=8), "globalStrides[0] is 136, not a multiple of 16"),
        (replace(GOOD, box=(16, 0)), "boxDim[1] is 0, not in 1..256"),
        (replace(GOOD, box=(16, 257)), "boxDim[1] is 257, not in 1..256"),
        (replace(GOOD, box=(12, 16)), "24 bytes wide, not a multiple of 16"),
        (replace(GOOD, box=(64, 16), swizzle=2), "128 bytes wide, more than the swizzle's 64"),
        (replace(GOOD, strides=(1, 0)), "elementStrides[1] is 0, not in 1..8"),
        (replace(GOOD, strides=(1, 9)), "elementStrides[1] is 9, not in 1..8"),
        (replace(GOOD, sizes=(64, 0)), "globalDim[1] is 0, not in 1..2^32"),
        (replace(GOOD, fills_nan=True), "type u16 cannot be NaN"),
        (replace(GOOD, swizzle=9), "no CUtensorMapSwizzle 9"),
    ],
)
def test_invalid_tensor_maps(conformance: Conformance, tensor: TensorCase, message: str) -> None:
    data = np.zeros((40, 72), np.uint16)
    arguments = {
        "inputs": [data, np.array(tensor.at, INT)],
        "outputs": [(16, np.uint8)],
        "n": tensor.n,
    }
    if conformance.settings is None:
        with pytest.raises(AssertionError, match="CUDA error"):
            conformance.run("tensor_copy.cu", "load", **arguments)
        return
    (report,) = conformance.run_faulty("tensor_copy.cu", "load", **arguments)
    assert report.kind == "tma"
    assert message in report.message
