"""Integer arithmetic, against Python's integers.

Each kernel of conformance/integer.cu is one instruction over many elements. Its sources are all
combinations of values at which something changes, and random ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from sim.elementwise import S32, U32, UNSIGNED, Instruction, Source, check, source_of
from sim.micro_kernels import Conformance


def clamp(x: int, bits: int, *, signed: bool) -> int:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return max(low, min(high, x))


def quotient(a: int, b: int) -> int:
    """Rounded towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def arithmetic(name: str) -> Iterator[Instruction]:
    type_ = source_of(name)
    bits = type_.bits
    two, three = (type_,) * 2, (type_,) * 3
    divisor = Source(bits, type_.signed, tuple(x for x in type_.values() if x))
    yield Instruction(f"add_{name}", bits, two, lambda a, b: a + b)
    yield Instruction(f"sub_{name}", bits, two, lambda a, b: a - b)
    yield Instruction(f"mul_lo_{name}", bits, two, lambda a, b: a * b)
    yield Instruction(f"mul_hi_{name}", bits, two, lambda a, b: a * b >> bits)
    yield Instruction(f"mad_lo_{name}", bits, three, lambda a, b, c: a * b + c)
    yield Instruction(f"mad_hi_{name}", bits, three, lambda a, b, c: (a * b >> bits) + c)
    yield Instruction(f"div_{name}", bits, (type_, divisor), quotient)
    yield Instruction(f"rem_{name}", bits, (type_, divisor), lambda a, b: a - b * quotient(a, b))
    yield Instruction(f"min_{name}", bits, two, min)
    yield Instruction(f"max_{name}", bits, two, max)
    yield Instruction(f"sad_{name}", bits, three, lambda a, b, c: abs(a - b) + c)
    if bits < 64:
        wide = Source(2 * bits, type_.signed)
        yield Instruction(f"mul_wide_{name}", 2 * bits, two, lambda a, b: a * b)
        yield Instruction(f"mad_wide_{name}", 2 * bits, (*two, wide), lambda a, b, c: a * b + c)
    if type_.signed:
        yield Instruction(f"neg_{name}", bits, (type_,), lambda a: -a)
        yield Instruction(f"abs_{name}", bits, (type_,), abs)


def low24(x: int, source: Source) -> int:
    return Source(24, source.signed).number(x & 0xFFFFFF)


def products_of_24_bits(name: str) -> Iterator[Instruction]:
    type_ = source_of(name)

    def product(a: int, b: int) -> int:
        return low24(a, type_) * low24(b, type_)

    two, three = (type_,) * 2, (type_,) * 3
    yield Instruction(f"mul24_lo_{name}", 32, two, product)
    yield Instruction(f"mul24_hi_{name}", 32, two, lambda a, b: product(a, b) >> 16)
    yield Instruction(f"mad24_lo_{name}", 32, three, lambda a, b, c: product(a, b) + c)
    yield Instruction(f"mad24_hi_{name}", 32, three, lambda a, b, c: (product(a, b) >> 16) + c)


def saturating() -> Iterator[Instruction]:
    def s32(x: int) -> int:
        return clamp(x, 32, signed=True)

    def mad24_hi(a: int, b: int, c: int) -> int:
        # The upper 32 bits of the 48-bit product, as a signed number.
        return s32(S32.number((low24(a, S32) * low24(b, S32) >> 16) & 0xFFFFFFFF) + c)

    yield Instruction("add_sat_s32", 32, (S32, S32), lambda a, b: s32(a + b))
    yield Instruction("sub_sat_s32", 32, (S32, S32), lambda a, b: s32(a - b))
    yield Instruction("mad_hi_sat_s32", 32, (S32,) * 3, lambda a, b, c: s32((a * b >> 32) + c))
    yield Instruction("mad24_hi_sat_s32", 32, (S32,) * 3, mad24_hi)
    yield Instruction("min_relu_s32", 32, (S32, S32), lambda a, b: max(min(a, b), 0))
    yield Instruction("max_relu_s32", 32, (S32, S32), lambda a, b: max(a, b, 0))


def fields(x: int, bits: int, *, signed: bool) -> list[int]:
    """The parts of a register, lowest first."""
    part = Source(bits, signed)
    return [part.number(x >> shift & ((1 << bits) - 1)) for shift in range(0, 32, bits)]


def packed() -> Iterator[Instruction]:
    def of_halves(
        function: Callable[[int, int], int], *, signed: bool
    ) -> Callable[[int, int], int]:
        def both(a: int, b: int) -> int:
            halves = zip(fields(a, 16, signed=signed), fields(b, 16, signed=signed), strict=True)
            low, high = (function(x, y) & 0xFFFF for x, y in halves)
            return high << 16 | low

        return both

    pairs = Source(32, edges=(0, 0xFFFF, 0x8000FFFF, 0x7FFF8000, 0x00017FFF, 0xFFFE0002))
    for name, function, signed in (
        ("add_u16x2", lambda a, b: a + b, False),
        ("add_s16x2", lambda a, b: a + b, True),
        ("min_u16x2", min, False),
        ("max_u16x2", max, False),
        ("min_s16x2", min, True),
        ("max_s16x2", max, True),
        ("min_relu_s16x2", lambda a, b: max(min(a, b), 0), True),
        ("max_relu_s16x2", lambda a, b: max(a, b, 0), True),
    ):
        yield Instruction(name, 32, (pairs, pairs), of_halves(function, signed=signed))


def dot_products(a_type: str, b_type: str) -> Iterator[Instruction]:
    signed_a, signed_b = a_type == "s32", b_type == "s32"

    def dot(bits: int, first: int) -> Callable[[int, int, int], int]:
        def function(a: int, b: int, c: int) -> int:
            left, right = fields(a, bits, signed=signed_a), fields(b, 8, signed=signed_b)
            return c + sum(x * y for x, y in zip(left, right[first:], strict=False))

        return function

    for name, bits, first in (("dp4a", 8, 0), ("dp2a_lo", 16, 0), ("dp2a_hi", 16, 2)):
        yield Instruction(f"{name}_{a_type}_{b_type}", 32, (U32,) * 3, dot(bits, first))


INSTRUCTIONS = [
    *(x for name in ("u16", "s16", "u32", "s32", "u64", "s64") for x in arithmetic(name)),
    *(x for name in ("u32", "s32") for x in products_of_24_bits(name)),
    *saturating(),
    *packed(),
    *(x for types in itertools.product(("u32", "s32"), repeat=2) for x in dot_products(*types)),
]


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda x: x.kernel)
def test_instruction(conformance: Conformance, instruction: Instruction) -> None:
    check(conformance, "integer.cu", instruction)


def long_numbers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of numbers of two registers, as (n, 2) with the low part first."""
    edges = Source(bits).values()
    numbers = np.array(list(itertools.product(edges, repeat=2)), UNSIGNED[bits])
    first, second = np.divmod(np.arange(len(numbers) ** 2), len(numbers))
    return numbers[first], numbers[second]


def joined(parts: np.ndarray, bits: int) -> list[int]:
    return [sum(int(x) << bits * i for i, x in enumerate(row)) for row in parts]


@pytest.mark.parametrize(
    ("kernel", "bits", "num_parts", "function"),
    [
        ("carry_add_u32", 32, 3, lambda a, b: a + b),
        ("carry_add_s64", 64, 3, lambda a, b: a + b),
        ("carry_sub_u32", 32, 3, lambda a, b: a - b),
        ("carry_sub_s64", 64, 3, lambda a, b: a - b),
        ("carry_mul_u32", 32, 4, lambda a, b: a * b),
        ("carry_mul_u64", 64, 4, lambda a, b: a * b),
    ],
)
def test_carry(
    conformance: Conformance,
    kernel: str,
    bits: int,
    num_parts: int,
    function: Callable[[int, int], int],
) -> None:
    a, b = long_numbers(bits)
    (got,) = conformance.run(
        "integer.cu",
        kernel,
        inputs=[a, b],
        outputs=[((len(a), num_parts), UNSIGNED[bits])],
        n=[len(a)],
        block=128,
    )
    mask = (1 << bits * num_parts) - 1
    numbers = zip(joined(a, bits), joined(b, bits), strict=True)
    assert joined(got, bits) == [function(x, y) & mask for x, y in numbers]


@pytest.mark.parametrize("name", ["u16", "s32", "u64"])
@pytest.mark.parametrize("operation", ["div", "rem"])
def test_division_by_zero(conformance: Conformance, operation: str, name: str) -> None:
    dtype = UNSIGNED[source_of(name).bits]
    reports = conformance.run_faulty(
        "integer.cu",
        f"{operation}_{name}",
        inputs=[np.array([5, 7, 9], dtype), np.array([1, 0, 2], dtype)],
        outputs=[(3, dtype)],
        n=[3],
    )
    assert [report.kind for report in reports] == ["arith"]
    assert "dividend is 7" in reports[0].message
