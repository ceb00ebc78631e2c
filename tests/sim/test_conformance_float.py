"""Floating-point instructions in every form, against arithmetic on rational numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from sim.float_formats import ARITHMETIC, BF16, F16, F32, F64, NAN, ONE, ZERO, Format, Value
from sim.micro_kernels import Conformance

UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}


@dataclass(frozen=True)
class Form:
    """An instruction: its kernel, the format of its operands, and what its modifiers say."""

    kernel: str
    format: Format
    sources: int
    function: Callable[..., Value]
    rounding: str = "rn"
    pairs: bool = False  # two of them to a register
    flushes: bool = False
    saturates: bool = False
    relu: bool = False

    def __str__(self) -> str:
        return self.kernel

    def compute(self, *operands: int) -> int:
        values = [self.format.decode(x) for x in operands]
        if self.flushes:
            values = [self.format.flushed(x) for x in values]
        result = self.function(*values, self.rounding)
        if self.saturates:
            if result.kind == "nan" or result.key < ZERO.key:
                result = ZERO
            elif result.key > ONE.key:
                result = ONE
        if self.relu and result.kind != "nan" and result.key < ZERO.key:
            result = ZERO
        # It matters only for what rounds up to the smallest normal number whether a result is
        # flushed before or after; none of these inputs gives that.
        code = self.format.encode(result, self.rounding)
        if self.flushes:
            code = self.format.encode(self.format.flushed(self.format.decode(code)))
        return code


def patterns(format_: Format, count: int, seed: int) -> list[int]:
    """Bit patterns of a format: near one, of any size, subnormal."""
    rng = np.random.default_rng(seed)
    top = format_.bits - 1
    one = format_.bias << format_.fraction_bits
    near_one = [
        one + int(x) | int(s) << top
        for x, s in zip(
            rng.integers(-(4 << format_.fraction_bits), 4 << format_.fraction_bits, count // 2),
            rng.integers(0, 2, count // 2),
            strict=True,
        )
    ]
    limit = min((1 << format_.bits) - 1, 2**63 - 1)
    anything = [int(x) for x in rng.integers(0, limit, count - count // 2, endpoint=True)]
    return near_one + anything


def edges(format_: Format) -> list[int]:
    top = 1 << (format_.bits - 1)
    infinity = ((1 << format_.exponent_bits) - 1) << format_.fraction_bits
    one = format_.bias << format_.fraction_bits
    tiny = 1 << format_.fraction_bits
    positive = [0, 1, tiny - 1, tiny, one, one + 1, infinity - 1, infinity, infinity + 1]
    return positive + [x | top for x in positive]


@functools.cache
def inputs(format_: Format, sources: int) -> list[list[int]]:
    """Every pair of edge values, and others."""
    some = edges(format_)
    pairs = [(a, b) for a in some for b in some]
    first = [a for a, _ in pairs] + patterns(format_, 176, 1)
    second = [b for _, b in pairs] + patterns(format_, 176, 2)
    rng = np.random.default_rng(3)
    third = [some[i] for i in rng.integers(0, len(some), len(pairs))] + patterns(format_, 176, 3)
    return [first, second, third][:sources]


def run(conformance: Conformance, kernel: str, operands: list[np.ndarray], bits: int) -> np.ndarray:
    count = len(operands[0])
    (got,) = conformance.run(
        "float.cu", kernel, inputs=operands, outputs=[(count, UNSIGNED[bits])], n=[count]
    )
    return got


@functools.cache
def expected(form: Form) -> list[tuple[tuple[int, ...], int]]:
    """Operands and the result, computed once for all settings."""
    operands = inputs(form.format, form.sources)
    return [(x, form.compute(*x)) for x in zip(*operands, strict=True)]


def check(conformance: Conformance, form: Form) -> None:
    width = form.format.bits
    operands = inputs(form.format, form.sources)
    arrays = [np.array(x, UNSIGNED[width]) for x in operands]
    registers = [x.view(np.uint32) for x in arrays] if form.pairs else arrays
    got = run(conformance, form.kernel, registers, 32 if form.pairs else width)
    got = got.view(UNSIGNED[width])
    for i, (elements, want) in enumerate(expected(form)):
        found = int(got[i])
        if form.format is F64 and form.format.decode(want) == NAN == form.format.decode(found):
            continue
        assert found == want, f"{form}{tuple(map(hex, elements))}: {found:#x}, expected {want:#x}"


# ---- Arithmetic ----------------------------------------------------------------------------------


def wide_forms() -> Iterator[Form]:
    for rounding in ("rn", "rz", "rm", "rp"):
        for name, (sources, function) in ARITHMETIC.items():
            quotient = name in ("div", "rcp", "sqrt")
            for suffix in ("", "_ftz") if quotient else ("", "_ftz", "_sat", "_ftz_sat"):
                yield Form(
                    f"{name}_{rounding}{suffix}_f32", F32, sources, function, rounding,
                    flushes="ftz" in suffix, saturates="sat" in suffix,
                )  # fmt: skip
            yield Form(f"{name}_{rounding}_f64", F64, sources, function, rounding)


def half_forms() -> Iterator[Form]:
    for format_ in (F16, BF16):
        for pairs in (False, True):
            type_ = format_.name + "x2" * pairs
            modifiers = ["", "ftz_", "sat_", "ftz_sat_"] if format_ is F16 else [""]
            for name in ("add", "sub", "mul", "fma"):
                for modifier in modifiers:
                    yield Form(
                        f"{name}_rn_{modifier}{type_}", format_, *ARITHMETIC[name], pairs=pairs,
                        flushes="ftz" in modifier, saturates="sat" in modifier,
                    )  # fmt: skip
            for modifier in ("", "ftz_") if format_ is F16 else ("",):
                yield Form(
                    f"fma_rn_{modifier}relu_{type_}", format_, *ARITHMETIC["fma"], pairs=pairs,
                    flushes="ftz" in modifier, relu=True,
                )  # fmt: skip


@pytest.mark.parametrize("form", [*wide_forms(), *half_forms()], ids=str)
def test_arithmetic(conformance: Conformance, form: Form) -> None:
    check(conformance, form)


# ---- Minimum, maximum, signs ---------------------------------------------------------------------


def extremum(
    choose: Callable[..., Value], *, nan: bool, xorsign: bool
) -> Callable[[Value, Value, str], Value]:
    """A NaN loses, unless `nan`; `xorsign` compares magnitudes and gives the product's sign."""

    def function(a: Value, b: Value, rounding: str) -> Value:
        del rounding
        sign = a.negative != b.negative
        if xorsign:
            a, b = a.with_sign(False), b.with_sign(False)
        known = [x for x in (a, b) if x.kind != "nan"]
        if not known or (nan and len(known) == 1):
            return NAN
        result = choose(known, key=lambda x: x.key)
        return result.with_sign(sign) if xorsign else result

    return function


def extrema() -> Iterator[Form]:
    types = {"f32": F32, "f16": F16, "bf16": BF16, "f16x2": F16, "bf16x2": BF16}
    for name, choose in (("min", min), ("max", max)):
        for type_, format_ in types.items():
            for modifier in ("", "NaN_", "xorsign_abs_", "NaN_xorsign_abs_"):
                function = extremum(choose, nan="NaN" in modifier, xorsign="xor" in modifier)
                pairs = type_.endswith("x2")
                yield Form(f"{name}_{modifier}{type_}", format_, 2, function, pairs=pairs)
        plain = extremum(choose, nan=False, xorsign=False)
        yield Form(f"{name}_f64", F64, 2, plain)
        for type_ in ("f32", "f16", "f16x2"):
            pairs = type_.endswith("x2")
            yield Form(f"{name}_ftz_{type_}", types[type_], 2, plain, pairs=pairs, flushes=True)
        strict = extremum(choose, nan=True, xorsign=False)
        yield Form(f"{name}_ftz_NaN_f32", F32, 2, strict, flushes=True)


@pytest.mark.parametrize("form", [*extrema()], ids=str)
def test_extrema(conformance: Conformance, form: Form) -> None:
    if "xorsign" in form.kernel:
        # The sign that a NaN brings along is not specified; so no NaN.
        operands = inputs(form.format, 2)
        kept = [
            pair for pair in zip(*operands, strict=True)
            if all(form.format.decode(x).kind != "nan" for x in pair)
        ]  # fmt: skip
        kept = kept[: len(kept) // 2 * 2]
        arrays = [np.array(x, UNSIGNED[form.format.bits]) for x in zip(*kept, strict=True)]
        registers = [x.view(np.uint32) for x in arrays] if form.pairs else arrays
        got = run(conformance, form.kernel, registers, 32 if form.pairs else form.format.bits)
        want = [form.compute(*pair) for pair in kept]
        np.testing.assert_array_equal(got.view(UNSIGNED[form.format.bits]), want)
        return
    check(conformance, form)


SIGNS = {
    "f32": (F32, False), "ftz_f32": (F32, True), "f64": (F64, False), "f16": (F16, False),
    "ftz_f16": (F16, True), "f16x2": (F16, False), "bf16": (BF16, False), "bf16x2": (BF16, False),
}  # fmt: skip


@pytest.mark.parametrize("type_", SIGNS)
def test_signs(conformance: Conformance, type_: str) -> None:
    format_, flushes = SIGNS[type_]
    (codes,) = inputs(format_, 1)
    known = [x for x in codes if format_.decode(x).kind != "nan"]
    array = np.array(known[: len(known) // 2 * 2], UNSIGNED[format_.bits])
    register = array.view(np.uint32) if type_.endswith("x2") else array
    for name, negative in (("neg", lambda s: not s), ("abs", lambda _: False)):
        got = run(conformance, f"{name}_{type_}", [register], register.itemsize * 8)
        for code, found in zip(array.tolist(), got.view(array.dtype).tolist(), strict=True):
            value = format_.decode(code)
            value = format_.flushed(value) if flushes else value
            assert found == format_.encode(value.with_sign(negative(value.negative)))


@pytest.mark.parametrize("format_", [F32, F64], ids=lambda f: f.name)
def test_copysign(conformance: Conformance, format_: Format) -> None:
    """The sign of the first operand, all else of the second."""
    signs, values = (np.array(x, UNSIGNED[format_.bits]) for x in inputs(format_, 2))
    top = signs.dtype.type(1 << (format_.bits - 1))
    got = run(conformance, f"copysign_{format_.name}", [signs, values], format_.bits)
    np.testing.assert_array_equal(got, (signs & top) | (values & ~top))


# ---- Comparisons and properties ------------------------------------------------------------------


def _relation(a: Value, b: Value) -> str:
    if "nan" in (a.kind, b.kind):
        return "unordered"
    x, y = a.key[0], b.key[0]
    return "less" if x < y else "greater" if x > y else "equal"


# Of each operator the relations that it is true of: eq ne lt le gt ge, those or unordered, num,
# nan.
ORDERED = [{"equal"}, {"less", "greater"}, {"less"}, {"less", "equal"}, {"greater"}]
ORDERED.append({"greater", "equal"})
TRUE_OF = [*ORDERED, *({*x, "unordered"} for x in ORDERED)]
TRUE_OF += [{"less", "equal", "greater"}, {"unordered"}]

COMPARED = {"f32": F32, "ftz_f32": F32, "f64": F64, "f16": F16, "ftz_f16": F16, "bf16": BF16}


@pytest.mark.parametrize("type_", [*COMPARED, "f16x2", "bf16x2"])
def test_comparisons(conformance: Conformance, type_: str) -> None:
    """The results p and q: q is the complement, or for pairs the comparison of the upper halves."""
    pairs = type_.endswith("x2")
    format_ = COMPARED[type_.removesuffix("x2")]
    first, second = (np.array(x, UNSIGNED[format_.bits]) for x in inputs(format_, 2))
    registers = [x.view(np.uint32) if pairs else x for x in (first, second)]
    count = len(registers[0])
    (got,) = conformance.run(
        "float.cu", f"setp_{type_}", inputs=registers,
        outputs=[((len(TRUE_OF), count), np.uint32)], n=[count],
    )  # fmt: skip

    def value(code: int) -> Value:
        plain = format_.decode(code)
        return format_.flushed(plain) if "ftz" in type_ else plain

    relations = [
        _relation(value(a), value(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    for row, true_of in zip(got, TRUE_OF, strict=True):
        results = np.array([relation in true_of for relation in relations])
        if pairs:
            want = results[0::2] + 2 * results[1::2]
        else:  # one of 16 bits has no second result
            want = results + (2 * ~results if format_.bits > 16 else 0)
        np.testing.assert_array_equal(row, want)


# Kernel: the relations that set is true of, the operands, whether they are pairs, and what true is.
SETS = {
    "set_lt_f32_f32": ({"less"}, F32, False, 0x3F800000),
    "set_gtu_u32_f64": ({"greater", "unordered"}, F64, False, 0xFFFFFFFF),
    "set_ge_f16_f16": ({"greater", "equal"}, F16, False, 0x3C00),
    "set_lt_bf16_bf16": ({"less"}, BF16, False, 0x3F80),
    "set_eq_f16x2_f16x2": ({"equal"}, F16, True, 0x3C00),
    "set_neu_bf16x2_bf16x2": ({"less", "greater", "unordered"}, BF16, True, 0x3F80),
    "set_lt_u32_f16x2": ({"less"}, F16, True, 0xFFFF),
}


@pytest.mark.parametrize("kernel", SETS)
def test_set(conformance: Conformance, kernel: str) -> None:
    true_of, format_, pairs, true = SETS[kernel]
    first, second = (np.array(x, UNSIGNED[format_.bits]) for x in inputs(format_, 2))
    registers = [x.view(np.uint32) if pairs else x for x in (first, second)]
    bits = 32 if pairs or format_.bits == 64 else format_.bits
    got = run(conformance, kernel, registers, bits)
    want = [
        true if _relation(format_.decode(a), format_.decode(b)) in true_of else 0
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(got.view(np.uint16) if pairs else got, want)


@pytest.mark.parametrize("format_", [F32, F64], ids=lambda f: f.name)
def test_properties(conformance: Conformance, format_: Format) -> None:
    (codes,) = inputs(format_, 1)
    array = np.array(codes, UNSIGNED[format_.bits])
    values = [format_.decode(x) for x in codes]

    def is_subnormal(x: Value) -> bool:
        return x.kind == "finite" and 0 < x.magnitude < format_.smallest_normal

    properties: dict[str, Callable[[Value], bool]] = {
        "finite": lambda x: x.kind == "finite",
        "infinite": lambda x: x.kind == "infinite",
        "number": lambda x: x.kind != "nan",
        "notanumber": lambda x: x.kind == "nan",
        "normal": lambda x: x.kind == "finite" and not is_subnormal(x),  # zero is, says the PTX ISA
        "subnormal": is_subnormal,
    }
    for name, holds in properties.items():
        got = run(conformance, f"testp_{name}_{format_.name}", [array], 32)
        np.testing.assert_array_equal(got, [holds(x) for x in values])
