"""Logic, shifts, counts, bit fields and byte permutations, against Python's integers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from sim.elementwise import AMOUNT, U32, Instruction, Source, check, source_of
from sim.micro_kernels import Conformance


def logic(bits: int) -> Iterator[Instruction]:
    type_ = Source(bits)
    yield Instruction(f"and_b{bits}", bits, (type_, type_), lambda a, b: a & b)
    yield Instruction(f"or_b{bits}", bits, (type_, type_), lambda a, b: a | b)
    yield Instruction(f"xor_b{bits}", bits, (type_, type_), lambda a, b: a ^ b)
    yield Instruction(f"not_b{bits}", bits, (type_,), lambda a: ~a)
    yield Instruction(f"cnot_b{bits}", bits, (type_,), lambda a: int(a == 0))
    # No amount takes less than a while: that of 2^32 - 1 bits is cut to one that is large enough.
    yield Instruction(f"shl_b{bits}", bits, (type_, AMOUNT), lambda a, n: a << min(n, 64))
    for letter in "bus":
        shifted = Source(bits, signed=letter == "s")
        yield Instruction(f"shr_{letter}{bits}", bits, (shifted, AMOUNT), lambda a, n: a >> n)


def funnel_shifts() -> Iterator[Instruction]:
    three = (U32, U32, AMOUNT)
    for mode, amount in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):

        def left(a: int, b: int, n: int, amount: Callable[[int], int] = amount) -> int:
            return (b << 32 | a) << amount(n) >> 32

        def right(a: int, b: int, n: int, amount: Callable[[int], int] = amount) -> int:
            return (b << 32 | a) >> amount(n)

        yield Instruction(f"shf_l_{mode}_b32", 32, three, left)
        yield Instruction(f"shf_r_{mode}_b32", 32, three, right)


def counts(bits: int) -> Iterator[Instruction]:
    type_ = Source(bits)
    yield Instruction(f"popc_b{bits}", 32, (type_,), lambda a: a.bit_count())
    yield Instruction(f"clz_b{bits}", 32, (type_,), lambda a: bits - a.bit_length())
    yield Instruction(f"brev_b{bits}", bits, (type_,), lambda a: int(f"{a:0{bits}b}"[::-1], 2))


def finding_and_extracting(name: str) -> Iterator[Instruction]:
    type_ = source_of(name)
    bits = type_.bits

    def highest(a: int) -> int:
        return (~a if a < 0 else a).bit_length() - 1  # -1 where there is none

    def shift_amount(a: int) -> int:
        return -1 if highest(a) < 0 else bits - 1 - highest(a)

    def extract(a: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        sign = type_.signed and length > 0 and a >> min(position + length - 1, bits - 1) & 1
        inside = [i < length and position + i < bits for i in range(bits)]
        return sum((a >> position + i & 1 if inside[i] else int(sign)) << i for i in range(bits))

    yield Instruction(f"bfind_{name}", 32, (type_,), highest)
    yield Instruction(f"bfind_shiftamt_{name}", 32, (type_,), shift_amount)
    yield Instruction(f"bfe_{name}", bits, (type_, AMOUNT, AMOUNT), extract)


def inserting(bits: int) -> Iterator[Instruction]:
    def insert(field: int, into: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        for i in range(min(length, max(bits - position, 0))):
            into = into & ~(1 << position + i) | (field >> i & 1) << position + i
        return into

    type_ = Source(bits)
    yield Instruction(f"bfi_b{bits}", bits, (type_, type_, AMOUNT, AMOUNT), insert)


def masks() -> Iterator[Instruction]:
    def find_nth(mask: int, base: int, offset: int) -> int:
        ups = [i for i in range(base, 32) if mask >> i & 1]
        downs = [i for i in range(base, -1, -1) if mask >> i & 1]
        if offset == 0:
            return base if mask >> base & 1 else -1
        found = ups if offset > 0 else downs
        return found[abs(offset) - 1] if abs(offset) <= len(found) else -1

    base = Source(32, edges=(0, 1, 7, 16, 30, 31))
    offset = Source(32, signed=True, edges=(0, 1, 2, 5, 40, 2**32 - 1, 2**32 - 2, 2**32 - 6))
    yield Instruction("fns_b32", 32, (U32, base, offset), find_nth)

    def extend(a: int, size: int, *, clamps: bool, signed: bool) -> int:
        if clamps and size >= 32:
            return a
        size &= 31
        low = a & ((1 << size) - 1)
        return Source(size, signed).number(low) if size else 0

    for mode, clamps in (("clamp", True), ("wrap", False)):
        for name in ("u32", "s32"):
            function = functools.partial(extend, clamps=clamps, signed=name == "s32")
            yield Instruction(f"szext_{mode}_{name}", 32, (U32, AMOUNT), function)

    def clamped(start: int, width: int) -> int:
        return ((1 << min(width, 32)) - 1) << min(start, 32)

    def wrapped(start: int, width: int) -> int:
        return ((1 << (width & 31)) - 1) << (start & 31)

    yield Instruction("bmsk_clamp_b32", 32, (AMOUNT, AMOUNT), clamped)
    yield Instruction("bmsk_wrap_b32", 32, (AMOUNT, AMOUNT), wrapped)


# For modes of prmt: which bytes of {b, a} become bytes 3, 2, 1, 0, by the low bits of c.
PERMUTATIONS = {
    "f4e": ((3, 2, 1, 0), (4, 3, 2, 1), (5, 4, 3, 2), (6, 5, 4, 3)),
    "b4e": ((5, 6, 7, 0), (6, 7, 0, 1), (7, 0, 1, 2), (0, 1, 2, 3)),
    "rc8": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)),
    "ecl": ((3, 2, 1, 0), (3, 2, 1, 1), (3, 2, 2, 2), (3, 3, 3, 3)),
    "ecr": ((0, 0, 0, 0), (1, 1, 1, 0), (2, 2, 1, 0), (3, 2, 1, 0)),
    "rc16": ((1, 0, 1, 0), (3, 2, 3, 2), (1, 0, 1, 0), (3, 2, 3, 2)),
}


def permutations() -> Iterator[Instruction]:
    def bytes_of(a: int, b: int) -> list[int]:
        return list((b << 32 | a).to_bytes(8, "little"))

    def permute(a: int, b: int, c: int) -> int:
        source = bytes_of(a, b)
        chosen = [source[c >> 4 * i & 7] for i in range(4)]
        signs = [c >> 4 * i & 8 for i in range(4)]
        result = [(255 * (x >> 7)) if s else x for x, s in zip(chosen, signs, strict=True)]
        return int.from_bytes(bytes(result), "little")

    def by_mode(a: int, b: int, c: int, mode: str) -> int:
        return int.from_bytes(bytes(bytes_of(a, b)[i] for i in PERMUTATIONS[mode][c & 3]), "big")

    mixed = Source(32, edges=(0x7F80FF01, 0x12345678, 0x9ABCDEF0, 0x00FF8001))
    control = Source(32, edges=(0x3210, 0x7654, 0xFEDC, 0x5140, 0x0123, 0x18A3, 0xFFFF0001, 2))
    yield Instruction("prmt_b32", 32, (mixed, mixed, control), permute)
    for mode in PERMUTATIONS:
        function = functools.partial(by_mode, mode=mode)
        yield Instruction(f"prmt_b32_{mode}", 32, (mixed, mixed, control), function)


INSTRUCTIONS = [
    *(x for bits in (16, 32, 64) for x in logic(bits)),
    *funnel_shifts(),
    *(x for bits in (32, 64) for x in counts(bits)),
    *(x for name in ("u32", "s32", "u64", "s64") for x in finding_and_extracting(name)),
    *(x for bits in (32, 64) for x in inserting(bits)),
    *masks(),
    *permutations(),
]


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda x: x.kernel)
def test_instruction(conformance: Conformance, instruction: Instruction) -> None:
    check(conformance, "integer.cu", instruction)


def test_lop3(conformance: Conformance) -> None:
    """All 256 functions of three bits, on registers that have all combinations of bits."""
    a, b, c = (np.random.default_rng(i).integers(0, 2**32, 32, np.uint32) for i in range(3))
    (got,) = conformance.run(
        "integer.cu", "lop3_b32", inputs=[a, b, c], outputs=[((256, 32), np.uint32)], n=[32]
    )
    expected = np.zeros((256, 32), np.uint32)
    for table, index in itertools.product(range(256), range(8)):
        if table >> index & 1:
            bits = [x if index >> place & 1 else ~x for x, place in ((a, 2), (b, 1), (c, 0))]
            expected[table] |= bits[0] & bits[1] & bits[2]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("combine", ["or", "and"])
def test_lop3_predicate(conformance: Conformance, combine: str) -> None:
    a, b = (np.array(x, np.uint32) for x in ([7, 7, 8, 8], [2, 2, 7, 7]))
    q = np.array([0, 1, 0, 1], np.uint32)
    value, predicate = conformance.run(
        "integer.cu",
        f"lop3_{combine}_b32",
        inputs=[a, b, np.full(4, 0xFF, np.uint32), q],
        outputs=[(4, np.uint32), (4, np.uint32)],
        n=[4],
    )
    np.testing.assert_array_equal(value, a & b)
    nonzero = (a & b) != 0
    expected = nonzero | (q != 0) if combine == "or" else nonzero & (q != 0)
    np.testing.assert_array_equal(predicate, expected)
