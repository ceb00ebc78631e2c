"""Every form of cvt between single values, against integers and rational numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest

from sim.elementwise import S32, U32, Instruction, check
from sim.float_formats import (
    BF16,
    F16,
    F32,
    F64,
    INFINITY,
    NAN,
    ONE,
    TF32,
    ZERO,
    Format,
    Value,
    of_number,
)
from sim.micro_kernels import Conformance

SOURCE = "convert_forms.cu"
FLOATS = {format_.name: format_ for format_ in (F16, BF16, F32, F64, TF32)}
WIDER_INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
INTEGERS = ("u8", "s8", *WIDER_INTEGERS)
ROUNDINGS = ("rn", "rz", "rm", "rp")
INTEGRAL: dict[str, Callable[[Fraction], int]] = {
    "rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil,
}  # fmt: skip
UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def width_of(type_name: str) -> int:
    return FLOATS[type_name].bits if type_name in FLOATS else int(type_name[1:])


def register_bits(type_name: str) -> int:
    return max(width_of(type_name), 16)


def limits(type_name: str) -> tuple[int, int]:
    """The smallest and the largest number of an integer type."""
    bits = width_of(type_name)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if type_name[0] == "s" else (0, (1 << bits) - 1)


# ---- What a form computes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Forms:
    """A kernel: the types that it converts, and the modifiers of each column of its results."""

    kernel: str
    to: str
    source: str
    modifiers: tuple[str, ...]

    def __str__(self) -> str:
        return self.kernel

    def compute(self, modifiers: str, bits: int) -> int:
        """The register of the result."""
        words = modifiers.split(".")
        value = self._load(bits)
        if "ftz" in words and self.source == "f32":
            value = F32.flushed(value)
        if self.to in FLOATS:
            return self._to_float(value, words)
        low, high = limits(self.to)
        if value.kind == "nan":
            is_wide = self.source == "f64" or width_of(self.to) == 64
            number = 1 << width_of(self.to) - 1 if is_wide else 0
        elif value.kind == "infinite":
            number = low if value.negative else high
        else:
            (rounded,) = [INTEGRAL[x](value.number) for x in words if x in INTEGRAL] or [
                int(value.number)
            ]
            clamps = "sat" in words or self.source in FLOATS
            number = min(max(rounded, low), high) if clamps else rounded
        return self._extended(number)

    def _load(self, bits: int) -> Value:
        if self.source in FLOATS:
            return FLOATS[self.source].decode(bits)
        number = bits & ((1 << width_of(self.source)) - 1)
        is_negative = self.source[0] == "s" and number >> width_of(self.source) - 1
        return of_number(Fraction(number - (1 << width_of(self.source)) * int(is_negative)))

    def _extended(self, number: int) -> int:
        """A result narrower than its register, with its sign or zeros above it."""
        width = width_of(self.to)
        number &= (1 << width) - 1
        if self.to[0] == "s" and number >> width - 1:
            number -= 1 << width
        return number & ((1 << register_bits(self.to)) - 1)

    def _to_float(self, value: Value, words: list[str]) -> int:
        format_ = FLOATS[self.to]
        for word in words:
            if word in INTEGRAL and value.kind == "finite":
                value = Value("finite", value.negative, abs(Fraction(INTEGRAL[word](value.number))))
        if "sat" in words:
            value = (
                ZERO if value.kind == "nan" or value.key < ZERO.key else min(value, ONE, key=key)
            )
        if "relu" in words and value.kind != "nan" and value.key < ZERO.key:
            value = ZERO
        rounding = next((x for x in words if x in (*ROUNDINGS, "rna")), "rn")
        code = format_.encode(value, rounding)
        if "ftz" in words and self.to == "f32":
            code = format_.encode(format_.flushed(format_.decode(code)))
        return code

    @functools.cached_property
    def inputs(self) -> list[int]:
        rng = np.random.default_rng(len(self.kernel))
        bits = register_bits(self.source)
        values = [int(x) for x in rng.integers(0, 2**64, 60, np.uint64, endpoint=False)]
        if self.source in FLOATS:
            values += float_edges(FLOATS[self.source])
            values += list(near(FLOATS[self.source], self.to, rng))
        else:
            values += list(integer_edges(self.source, self.to, rng))
        return [x & ((1 << bits) - 1) for x in values]

    @functools.cached_property
    def expected(self) -> list[list[int]]:
        """A list for each form."""
        return [[self.compute(x, bits) for bits in self.inputs] for x in self.modifiers]


def key(value: Value) -> tuple[float | Fraction, bool]:
    return value.key


# ---- What to convert -----------------------------------------------------------------------------


def float_edges(format_: Format) -> list[int]:
    tiny = 1 << format_.fraction_bits
    codes = [format_.encode(x) for x in (ZERO, ONE, INFINITY, NAN)]
    codes += [1, tiny - 1, tiny, format_.encode(INFINITY) - 1]
    codes += [format_.encode(of_number(Fraction(x, 4))) for x in range(1, 16)]
    return codes + [x | 1 << format_.bits - 1 for x in codes]


def near(source: Format, to: str, rng: np.random.Generator) -> Iterator[int]:
    """Values where conversion to type `to` changes its result, and their neighbours."""
    if to in FLOATS:
        target = FLOATS[to]
        tiny = 1 << target.fraction_bits
        largest = target.encode(INFINITY) - 1
        codes = [0, 1, 2, tiny, target.encode(ONE) - 1, largest - 1]
        codes += [int(x) for x in rng.integers(0, largest, 30)]
        steps = [target.decode(x).number for x in (*codes, *(x + 1 for x in codes))]
        halves = [(a + b) / 2 for a, b in zip(steps, steps[len(codes) :], strict=False)]
        # Where rounding begins to give infinity.
        halves.append(target.decode(largest).number * 2 - target.decode(largest - 1).number)
        numbers = steps + halves
    else:
        numbers = [Fraction(x) for x in limits(to)]
        numbers += [Fraction(2) ** x for x in (7, 8, 15, 16, 31, 32, 63, 64)]
        numbers += [number + Fraction(x, 2) for number in numbers for x in (-2, -1, 1, 2)]
    for number in numbers:
        code = source.encode(of_number(number))
        for step in (-1, 0, 1) if 1 < code < source.encode(INFINITY) - 1 else (0,):
            yield code + step
            yield (code + step) ^ 1 << source.bits - 1


def integer_edges(source: str, to: str, rng: np.random.Generator) -> Iterator[int]:
    """Limits of types, and numbers half-way between two of type `to`."""
    for type_name in (source, to) if to not in FLOATS else (source,):
        yield from (x + step for x in limits(type_name) for step in (-1, 0, 1))
    yield from (1, 2, 3, 255, 256, 257)
    if to in FLOATS:
        digits = FLOATS[to].fraction_bits + 1
        for shift in range(1, max(width_of(source) - digits, 1) + 1):
            for significand in rng.integers(1 << digits - 1, 1 << digits, 3):
                half = (int(significand) << shift) + (1 << shift - 1)
                yield from (half - 1, half, half + 1, -half, -half - 1)


# ---- The kernels ---------------------------------------------------------------------------------


def pairs(
    to: tuple[str, ...], source: tuple[str, ...], modifiers: tuple[str, ...]
) -> Iterator[Forms]:
    yield from (Forms(f"{d}_{a}", d, a, modifiers) for d in to for a in source)


def plain(name: str, *modifiers: str) -> Forms:
    to, source = name.split("_")[:2]
    return Forms(name, to, source, modifiers)


def with_suffix(roundings: tuple[str, ...], suffix: str) -> tuple[str, ...]:
    return tuple(f"{x}.{suffix}" for x in roundings)


# Where the result's type does not hold all values of the source's.
SATURATING = (
    "s8_u8", "u8_s8", "u32_s8", "u8_u16", "s16_u16", "s8_s16", "u64_s16", "u16_u32", "s32_u32",
    "u8_s32", "s16_s32", "u64_s32", "u32_u64", "s64_u64", "s32_s64", "u64_s64",
)  # fmt: skip

KERNELS = [
    *pairs(INTEGERS, INTEGERS, ("",)),
    *(plain(f"{name}_sat", "sat") for name in SATURATING),
    *pairs(("f16", "f32", "f64"), INTEGERS, ROUNDINGS),
    *pairs(("bf16",), WIDER_INTEGERS, ROUNDINGS),
    *(plain(f"{x}_sat", "rn.sat", "rz.sat") for x in ("f16_s16", "f32_s32", "f64_u64")),
    *pairs(INTEGERS, ("f16", "f32", "f64"), tuple(INTEGRAL)),
    *pairs(WIDER_INTEGERS, ("bf16",), tuple(INTEGRAL)),
    *(plain(f"{x}_f32_ftz", "rmi.ftz", "rpi.ftz") for x in ("s32", "u64")),
    *(plain(x, *ROUNDINGS) for x in ("f16_f32", "f16_f64", "f32_f64")),
    *(plain(f"{x}_sat", *with_suffix(ROUNDINGS, "sat")) for x in ("f16_f32", "f16_f64", "f32_f64")),
    plain("f16_f32_ftz", *with_suffix(ROUNDINGS, "ftz")),
    plain("f32_f64_ftz", "rn.ftz", "rz.ftz", "rm.ftz", "rp.ftz.sat"),
    plain("bf16_f32", "rn", "rz", "rn.relu", "rz.relu"),
    plain("f16_f32_relu", "rn.relu", "rz.relu"),
    *(plain(x, *ROUNDINGS) for x in ("bf16_f64", "bf16_f16", "f16_bf16")),
    plain("tf32_f32", "rna", "rn", "rz", "rn.relu", "rz.relu"),
    *(plain(x, "", "sat") for x in ("f32_f16", "f64_f16", "f64_f32")),
    *(plain(x, "") for x in ("f32_bf16", "f64_bf16")),
    plain("f64_f32_ftz", "ftz", "ftz.sat"),
    *(plain(f"{x}_{x}", *INTEGRAL) for x in ("f16", "f32", "f64")),
    plain("f32_f32_ftz", "rpi.ftz", "rmi.ftz.sat"),
]


@pytest.mark.parametrize("forms", KERNELS, ids=str)
def test_convert(conformance: Conformance, forms: Forms) -> None:
    count, unsigned = (
        len(forms.inputs),
        UNSIGNED[32 if forms.to == "tf32" else register_bits(forms.to)],
    )
    source = np.array(forms.inputs, UNSIGNED[register_bits(forms.source)])
    (got,) = conformance.run(
        SOURCE, forms.kernel, inputs=[source], n=[count],
        outputs=[((count, len(forms.modifiers)), unsigned)],
    )  # fmt: skip
    format_ = FLOATS.get(forms.to)
    for column, (modifiers, expected) in enumerate(
        zip(forms.modifiers, forms.expected, strict=True)
    ):
        for bits, want, found in zip(forms.inputs, expected, got[:, column].tolist(), strict=True):
            if forms.to == "tf32":  # what the other bits are is not said
                found >>= 32 - TF32.bits
            if format_ and format_.decode(want) == NAN == format_.decode(found):
                continue
            assert found == want, (
                f"cvt.{modifiers}.{forms.to}.{forms.source} of {bits:#x}: "
                f"{found:#x}, expected {want:#x}"
            )


# ---- cvt.pack ------------------------------------------------------------------------------------


def clamped(type_name: str, number: int) -> int:
    low, high = limits(type_name)
    return min(max(number, low), high) & ((1 << width_of(type_name)) - 1)


def pack(type_name: str, *, has_third: bool) -> Instruction:
    """The first source goes above the second one, and the third one's low bits above both."""
    width = width_of(type_name)

    def function(a: int, b: int, c: int = 0) -> int:
        return c << 2 * width | clamped(type_name, a) << width | clamped(type_name, b)

    sources = (S32, S32, U32) if has_third else (S32, S32)
    return Instruction(f"pack_{type_name}", 32, sources, function)


PACKS = [pack(x, has_third="8" in x) for x in ("u16", "s16", "u8", "s8")]


@pytest.mark.parametrize("instruction", PACKS, ids=lambda x: x.kernel)
def test_pack(conformance: Conformance, instruction: Instruction) -> None:
    check(conformance, SOURCE, instruction)
