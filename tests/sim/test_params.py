"""The ctypes classes made of csrc/ops.h: what the compiler says of their layout, and refusals."""

from __future__ import annotations

import ctypes
import subprocess

import pytest

from hostsim import build
from sim.params import OPS_H, UnknownFieldError, params_type, parse

EVERY_KIND = """
inline constexpr int kMaxTaps = 3;
enum class Kind : int { kFirst, kSecond };

// struct Commented { int field = 0; };
struct View {
  void* data = nullptr;     // [R]; a semicolon
  int num_rows = 0;         // as in the other struct
  int64_t strides[2] = {};
};

struct EveryKindParams {
  int64_t const* token_ids = nullptr;  // [T]
  void const* taps[kMaxTaps] = {};
  float eps = 0.0f;
  bool is_causal = false;
  bool flags[3]{};
  int32_t int32 = 0;
  uint32_t uint32 = 0;
  int64_t int64 = 0;
  uint64_t uint64 = 0;
  double number = 0.0;
  bool last = false;
  View cache = {};
  Kind kind = {};
  int num_rows = 0;
};

cudaError_t launch(EveryKindParams const& params, cudaStream_t stream);
"""


def assert_same_layout(header: str, prologue: str = "") -> None:
    """Has the compiler compare every struct of `header`: fields, their places, and their sizes."""
    checks = []
    for name, struct in parse(header).items():
        fields = [field for field, _ in struct._fields_]
        # A structured binding names all fields, so one that is not known here is an error.
        names = ", ".join(f"x{field}" for field in fields)
        checks.append(f"{{ [[maybe_unused]] auto [{names}] = {name}{{}}; }}")
        checks.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(struct)});")
        for field in fields:
            place = getattr(struct, field)
            checks.append(f"static_assert(offsetof({name}, {field}) == {place.offset});")
            checks.append(f"static_assert(sizeof({name}::{field}) == {place.size});")
    assert checks
    source = "\n".join(
        ["#include <cstddef>", "#include <cstdint>", prologue, "void f() {", *checks, "}"]
    )
    command = [
        build.tools().cxx, "-std=c++20", "-fsyntax-only", f"-isystem{build.tools().cuda_include}",
        "-xc++", "-",
    ]  # fmt: skip
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ops_h_has_the_layout_that_the_compiler_gives_it() -> None:
    header = OPS_H.read_text()
    assert header.count("\nstruct ") == len(parse(header))
    assert_same_layout(header, f'#include "{OPS_H}"\nusing namespace p_eagle;')


def test_every_kind_of_field() -> None:
    runtime = "using cudaError_t = int;\nusing cudaStream_t = void*;\n"
    assert_same_layout(EVERY_KIND, runtime + EVERY_KIND)
    struct = parse(EVERY_KIND)["EveryKindParams"](num_rows=5, eps=0.5, last=True)
    struct.taps[2] = 64
    assert (struct.num_rows, struct.eps, struct.is_causal, struct.last) == (5, 0.5, False, True)
    assert list(struct.taps) == [None, None, 64]


def test_a_field_that_is_not_there_cannot_be_given() -> None:
    with pytest.raises(AttributeError, match="num_row"):
        params_type("EmbedNormConcatParams")(num_row=5)


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ("int rows", "expected TYPE NAME = ZERO"),
        ("int rows = 1", "expected zero as the default"),
        ("float eps = 1e-5f", "expected zero as the default"),
        ("size_t rows = 0", "unknown type size_t"),
        ("int a = 0, b = 0", "expected zero as the default"),
        ("int bits : 3 = 0", "expected TYPE NAME = ZERO"),
        ("int grid[2][2] = {}", "expected TYPE NAME = ZERO"),
        ("int const* const* pointers = nullptr", "expected TYPE NAME = ZERO"),
        ("int num_rows() const { return 0", "expected TYPE NAME = ZERO"),
    ],
)
def test_a_declaration_that_is_not_understood_is_refused(declaration: str, message: str) -> None:
    with pytest.raises(UnknownFieldError, match=f"WrongParams: .*: {message}"):
        parse(f"struct WrongParams {{\n  {declaration};\n}};\n")
