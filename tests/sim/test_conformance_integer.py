"""Integer arithmetic, bits, comparisons and moves, against Python's integers.

Each kernel of conformance/integer.cu is one instruction over many elements. Its sources are all
combinations of values at which something changes, and random ones. The expected results are
computed one by one from the definitions in the PTX ISA.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from sim.micro_kernels import Conformance

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


@dataclass(frozen=True)
class Source:
    """An operand: how many bits it has, and whether they are a signed number."""

    bits: int
    signed: bool = False
    edges: tuple[int, ...] = ()  # if not those of the type

    def values(self) -> tuple[int, ...]:
        """The bit patterns to try."""
        if self.edges:
            return self.edges
        ones, top = (1 << self.bits) - 1, 1 << (self.bits - 1)
        return (0, 1, 2, 7, ones, ones - 1, top, top - 1, top + 1, 0x5A5A5A5A5A5A5A5A & ones)

    def number(self, bits: int) -> int:
        """The number that a bit pattern means."""
        return bits - (1 << self.bits) if self.signed and bits >> (self.bits - 1) else bits


@dataclass(frozen=True)
class Instruction:
    """A kernel, and what it computes from numbers; the result is cut to its width."""

    kernel: str
    result_bits: int
    sources: tuple[Source, ...]
    function: Callable[..., int]

    @functools.cached_property
    def inputs(self) -> list[np.ndarray]:
        """Bit patterns of the sources, all of one length."""
        rng = np.random.default_rng(len(self.kernel))
        count = len(self.sources)
        choices = [source.values() for source in self.sources]
        if count > 2:  # all combinations would be too many
            elements = [[int(rng.choice(values)) for _ in range(400)] for values in choices]
        else:
            elements = [list(x) for x in zip(*itertools.product(*choices), strict=True)]
        for values, source in zip(elements, self.sources, strict=True):
            random = rng.integers(0, 2**64, 150, np.uint64, endpoint=False)
            if source.edges:
                random = rng.choice(np.array(source.edges, np.uint64), 150)
            values.extend(int(x) & ((1 << source.bits) - 1) for x in random)
        return [
            np.array(values, UNSIGNED[source.bits])
            for values, source in zip(elements, self.sources, strict=True)
        ]

    @functools.cached_property
    def expected(self) -> np.ndarray:
        mask = (1 << self.result_bits) - 1
        numbers = [
            [source.number(int(x)) for x in values]
            for source, values in zip(self.sources, self.inputs, strict=True)
        ]
        results = [self.function(*x) & mask for x in zip(*numbers, strict=True)]
        return np.array(results, UNSIGNED[self.result_bits])


U32, S32 = Source(32), Source(32, signed=True)
# Shift amounts, positions and lengths of fields, of which a whole register counts, or 8 or 5 bits.
AMOUNT = Source(
    32,
    edges=(0, 1, 5, 8, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 128, 255, 256, 257, 0xFFFFFFFF),
)


def source_of(type_name: str) -> Source:
    return Source(int(type_name[1:]), signed=type_name[0] == "s")


def clamp(x: int, bits: int, *, signed: bool) -> int:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return max(low, min(high, x))


# ---- Arithmetic ----------------------------------------------------------------------------------


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


# ---- Bits ----------------------------------------------------------------------------------------


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


# ---- Selections and moves ------------------------------------------------------------------------


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
        edges=(0, 1 << 31, 1, 0x80000001, 0x807FFFFF, 0x3F800000, 0xBF800000)
        + (0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000),
    )
    for name, flush in (("slct_u32_f32", False), ("slct_ftz_u32_f32", True)):
        function = functools.partial(slct, flush=flush)
        yield Instruction(name, 32, (U32, U32, floats), function)


def sets() -> Iterator[Instruction]:
    u64 = Source(64)
    yield Instruction("set_lt_u32_s32", 32, (S32, S32), lambda a, b: -int(a < b))
    yield Instruction("set_hs_u32_u64", 32, (u64, u64), lambda a, b: -int(a >= b))
    yield Instruction("set_ne_f32_s32", 32, (S32, S32), lambda a, b: 0x3F800000 if a != b else 0)


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
        lambda a: sum((a >> 48 - i & 0xFFFF) << i for i in (0, 16, 32, 48)),
    )
    yield Instruction(
        "mov_swap_b8", 32, (b32,), lambda a: int.from_bytes(a.to_bytes(4, "little"), "big")
    )


INSTRUCTIONS = [
    *(x for name in ("u16", "s16", "u32", "s32", "u64", "s64") for x in arithmetic(name)),
    *(x for name in ("u32", "s32") for x in products_of_24_bits(name)),
    *saturating(),
    *packed(),
    *(x for types in itertools.product(("u32", "s32"), repeat=2) for x in dot_products(*types)),
    *(x for bits in (16, 32, 64) for x in logic(bits)),
    *funnel_shifts(),
    *(x for bits in (32, 64) for x in counts(bits)),
    *(x for name in ("u32", "s32", "u64", "s64") for x in finding_and_extracting(name)),
    *(x for bits in (32, 64) for x in inserting(bits)),
    *masks(),
    *permutations(),
    *selections(),
    *sets(),
    *moves(),
]


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda x: x.kernel)
def test_instruction(conformance: Conformance, instruction: Instruction) -> None:
    count = len(instruction.expected)
    (got,) = conformance.run(
        "integer.cu",
        instruction.kernel,
        inputs=instruction.inputs,
        outputs=[(count, UNSIGNED[instruction.result_bits])],
        n=[count],
    )
    np.testing.assert_array_equal(got, instruction.expected)


# ---- What is more than one instruction, or has more than one result ------------------------------


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
