"""Binary floating-point arithmetic by the rules of IEEE 754, on exact rational numbers.

A second implementation, slow and obvious, of what the emulator does with the host's arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Value:
    """A number with a sign, also where it is zero; infinity; or NaN."""

    kind: str  # "finite", "infinite", "nan"
    negative: bool = False
    magnitude: Fraction = Fraction(0)

    @property
    def number(self) -> Fraction:
        """Of a finite value."""
        return -self.magnitude if self.negative else self.magnitude

    @property
    def is_zero(self) -> bool:
        return self.kind == "finite" and self.magnitude == 0

    @property
    def key(self) -> tuple[float | Fraction, bool]:
        """What orders values that are not NaN, with -0 below +0."""
        if self.kind == "infinite":
            return (-math.inf if self.negative else math.inf, not self.negative)
        return (self.number, not self.negative)

    def with_sign(self, negative: bool) -> Value:
        return Value(self.kind, negative, self.magnitude)


NAN = Value("nan")
INFINITY = Value("infinite")
ZERO = Value("finite")


def of_number(number: Fraction, *, negative_zero: bool = False) -> Value:
    return Value("finite", number < 0 or (number == 0 and negative_zero), abs(number))


ONE = of_number(Fraction(1))


@dataclass(frozen=True)
class Format:
    """A binary format: its width, and how many of the bits are a fraction and an exponent."""

    name: str
    bits: int
    fraction_bits: int
    exponent_bits: int
    nan: int  # what instructions give

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def smallest_normal(self) -> Fraction:
        return Fraction(2) ** (1 - self.bias)

    def decode(self, bits: int) -> Value:
        negative = bool(bits >> (self.bits - 1))
        exponent = bits >> self.fraction_bits & ((1 << self.exponent_bits) - 1)
        fraction = bits & ((1 << self.fraction_bits) - 1)
        if exponent == (1 << self.exponent_bits) - 1:
            return NAN if fraction else INFINITY.with_sign(negative)
        if exponent == 0:
            scale = self.smallest_normal / (1 << self.fraction_bits)
            return Value("finite", negative, fraction * scale)
        significand = (1 << self.fraction_bits) + fraction
        scale = Fraction(2) ** (exponent - self.bias - self.fraction_bits)
        return Value("finite", negative, significand * scale)

    def encode(self, value: Value, rounding: str = "rn") -> int:
        """The bits of `value`, rounded.

        Roundings are to nearest even (rn), to nearest and away from zero in the middle (rna), to
        zero (rz), down (rm), up (rp).
        """
        sign = int(value.negative) << (self.bits - 1)
        infinity = ((1 << self.exponent_bits) - 1) << self.fraction_bits
        if value.kind == "nan":
            return self.nan
        if value.kind == "infinite":
            return sign | infinity
        exponent = max(_floor_log2(value.magnitude), 1 - self.bias) if value.magnitude else 0
        ulp = Fraction(2) ** (exponent - self.fraction_bits)
        units = math.floor(value.magnitude / ulp)
        rest = value.magnitude / ulp - units
        half = Fraction(1, 2)
        away = {
            "rn": rest > half or (rest == half and units % 2 == 1),
            "rna": rest >= half,
            "rz": False,
            "rm": rest > 0 and value.negative,
            "rp": rest > 0 and not value.negative,
        }[rounding]
        # Units of one binade follow those of the one below, subnormals included.
        code = units + away + ((exponent - 1 + self.bias) << self.fraction_bits if units else 0)
        if value.magnitude == 0:
            code = 0
        if code >= infinity:
            to_infinity = rounding in ("rn", "rna", "rm" if value.negative else "rp")
            code = infinity if to_infinity else infinity - 1
        return sign | code

    def flushed(self, value: Value) -> Value:
        """Zero in the place of a subnormal number."""
        tiny = value.kind == "finite" and value.magnitude < self.smallest_normal
        return ZERO.with_sign(value.negative) if tiny else value


F16 = Format("f16", 16, 10, 5, 0x7FFF)
BF16 = Format("bf16", 16, 7, 8, 0x7FFF)
F32 = Format("f32", 32, 23, 8, 0x7FFFFFFF)
TF32 = Format("tf32", 19, 10, 8, 0x3FFFF)  # the upper bits of a register
F64 = Format("f64", 64, 52, 11, 0x7FF8000000000000)  # only that it is a NaN is tested


def _floor_log2(x: Fraction) -> int:
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1


# ---- Exact operations, whose results `encode` rounds ---------------------------------------------


def add(a: Value, b: Value, rounding: str) -> Value:
    if "nan" in (a.kind, b.kind):
        return NAN
    if a.kind == "infinite" or b.kind == "infinite":
        if a.kind == b.kind and a.negative != b.negative:
            return NAN
        return a if a.kind == "infinite" else b
    total = a.number + b.number
    if total == 0 and a.negative == b.negative:
        return ZERO.with_sign(a.negative)
    return of_number(total, negative_zero=rounding == "rm")


def subtract(a: Value, b: Value, rounding: str) -> Value:
    return add(a, b.with_sign(not b.negative), rounding)


def multiply(a: Value, b: Value, rounding: str) -> Value:
    del rounding
    negative = a.negative != b.negative
    if "nan" in (a.kind, b.kind) or ("infinite" in (a.kind, b.kind) and (a.is_zero or b.is_zero)):
        return NAN
    if "infinite" in (a.kind, b.kind):
        return INFINITY.with_sign(negative)
    return Value("finite", negative, a.magnitude * b.magnitude)


def fused_multiply_add(a: Value, b: Value, c: Value, rounding: str) -> Value:
    return add(multiply(a, b, rounding), c, rounding)


def divide(a: Value, b: Value, rounding: str) -> Value:
    if b.kind == "infinite":
        inverse = ZERO.with_sign(b.negative)
    elif b.is_zero:
        inverse = INFINITY.with_sign(b.negative)
    else:
        inverse = b if b.kind == "nan" else Value("finite", b.negative, 1 / b.magnitude)
    if (a.is_zero and b.is_zero) or (a.kind == "infinite" and b.kind == "infinite"):
        return NAN
    return multiply(a, inverse, rounding)


def reciprocal(a: Value, rounding: str) -> Value:
    return divide(of_number(Fraction(1)), a, rounding)


def square_root(a: Value, rounding: str) -> Value:
    """Rounds like the exact root: cut off far behind the last bit, and marked there if inexact."""
    del rounding
    if a.kind == "nan" or a.is_zero:
        return a
    if a.negative:
        return NAN
    if a.kind == "infinite":
        return a
    scale = 1 << 2 * (160 + max(0, -_floor_log2(a.magnitude)))
    scaled = a.magnitude * scale
    root = math.isqrt(math.floor(scaled))
    inexact = Fraction(root) ** 2 != scaled
    return of_number(Fraction(2 * root + inexact, 2 * math.isqrt(scale)))


ARITHMETIC: dict[str, tuple[int, Callable[..., Value]]] = {
    "add": (2, add),
    "sub": (2, subtract),
    "mul": (2, multiply),
    "fma": (3, fused_multiply_add),
    "div": (2, divide),
    "rcp": (1, reciprocal),
    "sqrt": (1, square_root),
}
