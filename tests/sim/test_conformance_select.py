"""Comparisons of integers, predicates, selections and moves."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from sim.elementwise import S32, U32, Instruction, Source, check, source_of
from sim.micro_kernels import Conformance


def selections() -> Iterator[Instruction]:
    condition = Source(32, edges=(0, 1, 2, 0x80000000))
    for bits in (16, 64):
        type_ = Source(bits)
        function = lambda a, b, c: a if c else b  # noqa: E731 - as in the definition of selp
        yield Instruction(f"selp_b{bits}", bits, (type_, type_, condition), function)
    for name, bits in (("slct_u32_s32", 32), ("slct_b64_s32", 64)):
        type_ = Source(bits)
        yield Instruction(name, bits, (type_, type_, S32), lambda a, b, c: a if c >= 0 else b)

    def slct(a: int, b: int, c: int, *, flush: bool) -> int:
        value = float(np.uint32(c).view(np.float32))
        if flush and abs(value) < 2.0**-126:
            value = 0.0
        return a if value >= 0 else b

    # 0, -0, subnormals, one, -one, infinities and NaN.
    floats = Source(
        32,
        edges=(
            *(0, 1 << 31, 1, 0x80000001, 0x807FFFFF, 0x3F800000, 0xBF800000),
            *(0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000),
        ),
    )
    for name, flush in (("slct_u32_f32", False), ("slct_ftz_u32_f32", True)):
        function = functools.partial(slct, flush=flush)
        yield Instruction(name, 32, (U32, U32, floats), function)


def sets() -> Iterator[Instruction]:
    u64 = Source(64)
    yield Instruction("set_lt_u32_s32", 32, (S32, S32), lambda a, b: -int(a < b))
    yield Instruction("set_hs_u32_u64", 32, (u64, u64), lambda a, b: -int(a >= b))
    yield Instruction("set_ne_f32_s32", 32, (S32, S32), lambda a, b: 0x3F800000 if a != b else 0)


def swapped_halves(a: int) -> int:
    return sum((a >> 48 - shift & 0xFFFF) << shift for shift in (0, 16, 32, 48))


def moves() -> Iterator[Instruction]:
    b16, b32, b64 = Source(16), Source(32), Source(64)
    yield Instruction("mov_pack_2_b16", 32, (b16,) * 2, lambda a, b: b << 16 | a)
    yield Instruction("mov_pack_2_b32", 64, (b32,) * 2, lambda a, b: b << 32 | a)
    yield Instruction(
        "mov_pack_4_b16", 64, (b16,) * 4, lambda a, b, c, d: d << 48 | c << 32 | b << 16 | a
    )
    yield Instruction("mov_upper_b32", 32, (b64,), lambda a: a >> 32)
    yield Instruction("mov_sink_b32", 32, (b64,), lambda a: a >> 32)
    yield Instruction("mov_lower_b16", 16, (b32,), lambda a: a)
    yield Instruction(
        "mov_swap_b16",
        64,
        (b64,),
        swapped_halves,
    )
    yield Instruction(
        "mov_swap_b8", 32, (b32,), lambda a: int.from_bytes(a.to_bytes(4, "little"), "big")
    )


INSTRUCTIONS = [*selections(), *sets(), *moves()]


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda x: x.kernel)
def test_instruction(conformance: Conformance, instruction: Instruction) -> None:
    check(conformance, "integer.cu", instruction)


EQUALITY = (lambda a, b: a == b, lambda a, b: a != b)
ORDER = (lambda a, b: a < b, lambda a, b: a <= b, lambda a, b: a > b, lambda a, b: a >= b)


@pytest.mark.parametrize("name", [f"{letter}{bits}" for letter in "bus" for bits in (16, 32, 64)])
def test_setp(conformance: Conformance, name: str) -> None:
    """Every comparison, with p|q: q is the opposite of p."""
    comparisons = {"b": EQUALITY, "s": EQUALITY + ORDER, "u": EQUALITY + ORDER + ORDER}[name[0]]
    type_ = source_of(name)
    instruction = Instruction(f"setp_{name}", 32, (type_, type_), lambda a, b: 0)
    a, b = instruction.inputs
    (got,) = conformance.run(
        "integer.cu",
        instruction.kernel,
        inputs=[a, b],
        outputs=[((len(comparisons), len(a)), np.uint32)],
        n=[len(a)],
    )
    numbers = [(type_.number(int(x)), type_.number(int(y))) for x, y in zip(a, b, strict=True)]
    expected = [[1 if holds(x, y) else 2 for x, y in numbers] for holds in comparisons]
    np.testing.assert_array_equal(got, expected)


def test_setp_combined(conformance: Conformance) -> None:
    a, b, c = (np.array(x) for x in zip(*itertools.product((-1, 3), (-5, 4), (0, 1)), strict=True))
    (got,) = conformance.run(
        "integer.cu",
        "setp_combined",
        inputs=[x.astype(np.int32) for x in (a, b, c)],
        outputs=[((6, len(a)), np.uint32)],
        n=[len(a)],
    )
    functions = (np.logical_and, np.logical_or, np.logical_xor)
    expected = [
        function(a < b, third) + 2 * function(a >= b, third)
        for function in functions
        for third in (c != 0, c == 0)
    ]
    np.testing.assert_array_equal(got, expected)


def test_predicates(conformance: Conformance) -> None:
    a, b = np.array([1, 5, 9], np.uint32), np.array([5, 5, 5], np.uint32)
    (got,) = conformance.run(
        "integer.cu", "predicates", inputs=[a, b], outputs=[((3, 7), np.uint32)], n=[3]
    )
    p, q = a < b, a != b  # q is the opposite of a == b
    expected = [p & q, p | q, p ^ q, ~p, q, np.where(p, a, b), np.where(q, a, b)]
    np.testing.assert_array_equal(got.T, expected)
