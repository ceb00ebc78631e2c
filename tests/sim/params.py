"""The parameters of the project's kernels for Python: ctypes classes made of csrc/ops.h.

params = params_type("EmbedNormConcatParams")(token_ids=pointer, max_rows=5)
library.launch_embed_norm_concat_from_c(ctypes.byref(params), 0)

What is not given is zero, as in C++, where every field has zero as its default.
"""

from __future__ import annotations

import ctypes
import functools
import re

from hostsim import build

OPS_H = build.ROOT / "csrc" / "ops.h"

SCALARS: dict[str, type] = {
    "bool": ctypes.c_bool,
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}

_COMMENT = re.compile(r"//[^\n]*")
_DEFINITION = re.compile(
    r"\bstruct (?P<struct>\w+) \{(?P<body>.*?)\n\};"
    r"|\benum class (?P<enum>\w+) : (?P<base>\w+) \{"
    r"|\bconstexpr int (?P<constant>\w+) = (?P<value>\d+);",
    re.DOTALL,
)
_FIELD = re.compile(
    r"(?P<type>\w+)(?: const)?(?P<pointer>\s*\*)?\s+(?P<name>\w+)"
    r"(?:\[(?P<count>\w+)\])?(?: = (?P<default>.+)|(?P<braces>\{\}))"
)
_ZEROS = {"nullptr", "0", "0.0", "0.0f", "false", "{}"}


class UnknownFieldError(Exception):
    """A declaration in a struct is none that `parse` understands."""


def params_type(name: str) -> type[ctypes.Structure]:
    """The struct of this name in csrc/ops.h, the same class at each call."""
    structs = _structs()
    assert name in structs, f"{OPS_H.name} has no struct {name}, only {', '.join(structs)}"
    return structs[name]


@functools.cache
def _structs() -> dict[str, type[ctypes.Structure]]:
    return parse(OPS_H.read_text())


def parse(header: str) -> dict[str, type[ctypes.Structure]]:
    """All structs of a header, by name.

    Fields are scalars, pointers to anything, enumerations and structs of the same header, and
    arrays of these; each has zero as its default.

    Raises:
        UnknownFieldError: Something else is declared in a struct.
    """
    types = dict(SCALARS)
    constants: dict[str, int] = {}
    structs: dict[str, type[ctypes.Structure]] = {}
    for found in _DEFINITION.finditer(_COMMENT.sub("", header)):
        if found["constant"]:
            constants[found["constant"]] = int(found["value"])
        elif found["enum"]:
            types[found["enum"]] = types[found["base"]]
        else:
            name = found["struct"]
            structs[name] = types[name] = _struct(name, found["body"], types, constants)
    return structs


def _struct(
    name: str, body: str, types: dict[str, type], constants: dict[str, int]
) -> type[ctypes.Structure]:
    declarations = [" ".join(text.split()) for text in body.split(";")]
    assert declarations.pop() == "", f"{name}: expected a semicolon at its end"
    fields = [_field(name, text, types, constants) for text in declarations]
    # Without slots a misspelt keyword would become an attribute, and a field stay zero.
    return type(name, (ctypes.Structure,), {"__slots__": (), "_fields_": fields})


def _field(
    struct: str, declaration: str, types: dict[str, type], constants: dict[str, int]
) -> tuple[str, type]:
    found = _FIELD.fullmatch(declaration)
    if not found:
        raise UnknownFieldError(f"{struct}: `{declaration}`: expected TYPE NAME = ZERO")
    if (found["default"] or found["braces"]) not in _ZEROS:
        raise UnknownFieldError(f"{struct}: `{declaration}`: expected zero as the default")
    field = ctypes.c_void_p if found["pointer"] else types.get(found["type"])
    if field is None:
        raise UnknownFieldError(f"{struct}: `{declaration}`: unknown type {found['type']}")
    if found["count"]:
        count = constants.get(found["count"], found["count"])
        field *= int(count)
    return found["name"], field
