"""The table that says up to how many rows a linear layer runs on the fused kernels.

It is JSON, an object with a default and the entries that take its place::

    {"default": {"fused_rows": 32, "measured": "not measured"},
     "entries": [{"architecture": "sm_90", "op": "norm_swiglu", "weight": "bfloat16",
                  "fused_rows": 24, "measured": "benchmarks/results/linear-sm_90.json"}]}

`fused_rows` is the largest number of rows that the fused kernel takes; above it the product is
torch's. `measured` names the measurement that says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from p_eagle_cuda.fields import ConfigFields, read_json_object

LINEAR_OPS = ("project_taps", "qkv_rope_cache", "linear_residual", "norm_swiglu")
WEIGHT_DTYPES = ("bfloat16", "float16", "float32", "float64")  # FP8 weights have one backend
BUNDLED_TABLE = Path(__file__).parent / "data" / "linear_table.json"

_ARCHITECTURE = re.compile(r"cpu|sm_[1-9][0-9]+")


@dataclass(frozen=True)
class FusedRows:
    """Up to how many rows a linear layer runs fused, and the measurement that says so."""

    fused_rows: int
    measured: str


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
        _check_names(default, "fused_rows", "measured")
        values = fields.values.get("entries")
        if not isinstance(values, list) or not all(isinstance(x, dict) for x in values):
            raise fields.error("entries", "a list of objects")
        entries: dict[tuple[str, str, str], FusedRows] = {}
        for i, value in enumerate(values):
            entry = ConfigFields(value, file, f"entries[{i}].")
            _check_names(entry, "architecture", "op", "weight", "fused_rows", "measured")
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
    return FusedRows(entry.integer("fused_rows", minimum=0), measured)


def _check_names(fields: ConfigFields, *names: str) -> None:
    for name in fields.values:
        if name not in names:
            raise fields.error(name, f"absent: the fields here are {', '.join(names)}")
