"""The table that says up to how many rows a linear layer runs on the fused kernels.

It is JSON, an object with a default and the entries that take its place::

    {"default": {"fused_rows": 32, "measured": "not measured"},
     "entries": [{"architecture": "sm_90", "op": "norm_swiglu", "weight": "bfloat16",
                  "fused_rows": 24, "measured": "benchmarks/results/linear-sm_90.json"}]}

`fused_rows` is the largest number of rows that the fused kernels take; above it the product is
torch's, or with `"above": "cutlass"` that of CUTLASS's collectives, on the architectures that have
them. `measured` names the measurement that says so. Which of the fused kernels takes them, the
number of rows and the device decide: `kernel_of`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from p_eagle_cuda.fields import ConfigFields, read_json_object

LINEAR_OPS = ("project_taps", "qkv_rope_cache", "linear_residual", "norm_swiglu")
WEIGHT_DTYPES = ("bfloat16", "float16", "float32", "float64")  # FP8 weights have one backend
BUNDLED_TABLE = Path(__file__).parent / "data" / "linear_table.json"

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")  # that kernels are built for
BACKENDS = ("auto", "fused", "torch", "cutlass")  # of a drafter's linear layers, by name
CUTLASS_ARCHITECTURES = ("sm_90",)  # that CUTLASS's collectives are built for
ABOVE = {"torch": "cuBLAS", "cutlass": "CUTLASS"}  # backends of many rows, and whose product it is
FEW_ROWS = 32  # up to here one kernel runs everywhere; above, weights are read again for these

_ARCHITECTURE = re.compile(r"cpu|sm_[1-9][0-9]+")


@dataclass(frozen=True)
class FusedRows:
    """Up to how many rows a linear layer runs fused, what runs it above, and who measured that."""

    fused_rows: int
    measured: str
    above: str = "torch"  # or "cutlass"


@dataclass(frozen=True)
class LinearTable:
    """Which backend runs a linear layer, by architecture, op and dtype of the weight."""

    default: FusedRows
    entries: Mapping[tuple[str, str, str], FusedRows] = field(default_factory=dict)

    @classmethod
    def read(cls, file: str | Path = BUNDLED_TABLE) -> LinearTable:
        """Read a table, by default the one that comes with the package.

        Raises:
            ConfigError: It is missing, is not JSON, or holds something that is no part of a table.
        """
        file = Path(file)
        fields = ConfigFields(read_json_object(file), file)
        _check_names(fields, "default", "entries")
        if "default" not in fields:
            raise fields.error("default", "an object")
        default = fields.section("default")
        _check_names(default, "fused_rows", "measured", "above")
        entries: dict[tuple[str, str, str], FusedRows] = {}
        for entry in fields.sections("entries"):
            _check_names(entry, "architecture", "op", "weight", "fused_rows", "measured", "above")
            key = _key(entry)
            if key in entries:
                raise entry.error("op", f"in no second entry for {key[2]} on {key[0]}")
            entries[key] = _fused_rows(entry)
        return cls(_fused_rows(default), entries)

    def find(self, architecture: str, op: str, weight: torch.dtype) -> FusedRows:
        """The entry of a layer, the default where it has none."""
        return self.entries.get(
            (architecture, op, str(weight).removeprefix("torch.")), self.default
        )


def kernel_of(architecture: str, num_rows: int, weight: str = "16-bit") -> str:
    """The fused kernel that runs a linear layer, by the tensor core instruction that it is made of.

    "wgmma" reads each weight once for 256 rows, "mma.sync" once for 32. wgmma multiplies operands
    of one type, which "fp8" weights and their activations are not.
    """
    is_wide = architecture == "sm_90" and num_rows > FEW_ROWS and weight != "fp8"
    return "wgmma" if is_wide else "mma.sync"


@dataclass(frozen=True)
class LinearPath:
    """What runs some linear layers on an architecture at a range of numbers of rows."""

    architecture: str
    ops: tuple[str, ...]
    weight: str  # "16-bit", "fp8" or "w8a8"
    first_rows: int
    last_rows: int | None  # None: no end
    by_table: str  # "mma.sync", "wgmma", "cuBLAS" or "CUTLASS"
    fused: str  # the same with linear="fused"


def linear_paths(table: LinearTable) -> list[LinearPath]:
    """What runs each linear layer of each architecture at every number of rows.

    Of bfloat16 weights where those of 16 bits differ. Sizes that the fused kernels refuse are not
    considered.
    """
    paths = []
    for architecture in ARCHITECTURES:
        ops_by_entry: dict[tuple[int, str], list[str]] = {}
        for op in LINEAR_OPS:
            entry = table.find(architecture, op, torch.bfloat16)
            above = entry.above if architecture in CUTLASS_ARCHITECTURES else "torch"
            ops_by_entry.setdefault((entry.fused_rows, ABOVE[above]), []).append(op)
        for (fused_rows, above), ops in ops_by_entry.items():
            paths += _paths(architecture, tuple(ops), "16-bit", fused_rows, above)
        for weight in ("fp8", "w8a8"):
            paths += _paths(architecture, LINEAR_OPS, weight, None)
    return paths


def format_paths(paths: Sequence[LinearPath]) -> str:
    """A line for each path under a heading."""
    rows = [("linear layers", "weight", "rows", "by the table", "fused", "ops")]
    for x in paths:
        names = "all" if x.ops == LINEAR_OPS else ", ".join(x.ops)
        count = f"{x.first_rows}-{x.last_rows or ''}"
        rows.append((x.architecture, x.weight, count, x.by_table, x.fused, names))
    return "\n".join("{:14} {:7} {:7} {:13} {:9} {}".format(*row) for row in rows)


def _paths(
    architecture: str, ops: tuple[str, ...], weight: str, fused_rows: int | None, above: str = ""
) -> list[LinearPath]:
    """The ranges of rows that are treated alike; `fused_rows` of None has no end."""
    found: list[LinearPath] = []
    starts = sorted({1, FEW_ROWS + 1, 1 if fused_rows is None else fused_rows + 1})
    for first, following in zip(starts, [*starts[1:], None], strict=True):
        last = None if following is None else following - 1
        fused = kernel_of(architecture, first, weight)
        by_table = fused if fused_rows is None or first <= fused_rows else above
        if found and (found[-1].by_table, found[-1].fused) == (by_table, fused):
            found[-1] = replace(found[-1], last_rows=last)
        else:
            found.append(LinearPath(architecture, ops, weight, first, last, by_table, fused))
    return found


def _key(entry: ConfigFields) -> tuple[str, str, str]:
    architecture = entry.string("architecture", "")
    if not _ARCHITECTURE.fullmatch(architecture):
        raise entry.error("architecture", 'like "sm_90", or "cpu"')
    op, weight = entry.string("op", ""), entry.string("weight", "")
    for name, value, known in (("op", op, LINEAR_OPS), ("weight", weight, WEIGHT_DTYPES)):
        if value not in known:
            raise entry.error(name, f"one of {', '.join(known)}")
    return architecture, op, weight


def _fused_rows(entry: ConfigFields) -> FusedRows:
    measured = entry.string("measured", "")
    if not measured:
        raise entry.error("measured", 'the file of a measurement, or "not measured"')
    above = entry.string("above", "torch")
    if above not in ABOVE:
        raise entry.error("above", f"one of {', '.join(ABOVE)}")
    return FusedRows(entry.integer("fused_rows", minimum=0), measured, above)


def _check_names(fields: ConfigFields, *names: str) -> None:
    for name in fields.values:
        if name not in names:
            raise fields.error(name, f"absent: the fields here are {', '.join(names)}")
