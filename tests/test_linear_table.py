"""The table of the linear layers' backends: what it may hold, and what it says runs where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from p_eagle_cuda.errors import ConfigError
from p_eagle_cuda.linear_table import (
    ARCHITECTURES,
    BUNDLED_TABLE,
    LINEAR_OPS,
    FusedRows,
    LinearTable,
    format_paths,
    linear_paths,
)


def test_the_bundled_table_says_what_was_measured() -> None:
    """Every entry that names a measurement names a file of it; nothing was measured yet."""
    table = LinearTable.read()
    root = Path(__file__).parents[1]
    assert table.default == FusedRows(32, "not measured")
    for entry in table.entries.values():
        assert entry.measured == "not measured" or (root / entry.measured).is_file()


GOOD = {"default": {"fused_rows": 32, "measured": "x"}, "entries": []}
ENTRY = {
    "architecture": "sm_90", "op": "norm_swiglu", "weight": "bfloat16", "fused_rows": 0,
    "measured": "x",
}  # fmt: skip

BAD_TABLES: dict[str, tuple[Any, str]] = {
    "no object": ([], "expected a JSON object, found"),
    "no default": ({"entries": []}, "field `default` is missing, expected an object"),
    "no entries": ({"default": GOOD["default"]}, "field `entries` is missing, expected a list"),
    "other field": (GOOD | {"x": 1}, "field `x` must be absent: the fields here are default, ent"),
    "other entry": (GOOD | {"entries": [1]}, "field `entries` must be a list of objects, found"),
    "negative": (
        GOOD | {"entries": [ENTRY | {"fused_rows": -1}]},
        r"field `entries\[0\].fused_rows` must be an integer of at least 0, found -1",
    ),
    "no rows": (
        GOOD | {"default": {"measured": "x"}},
        "field `default.fused_rows` is missing, expected an integer of at least 0",
    ),
    "unmeasured": (
        GOOD | {"default": {"fused_rows": 1}},
        'field `default.measured` is missing, expected the file of a measurement, or "not meas',
    ),
    "op": (
        GOOD | {"entries": [ENTRY | {"op": "lm_head"}]},
        'op` must be one of project_taps, qkv_rope_cache, .*, found "lm_head"',
    ),
    "above": (
        GOOD | {"default": GOOD["default"] | {"above": "cublas"}},
        'field `default.above` must be one of torch, cutlass, found "cublas"',
    ),
    "weight": (
        GOOD | {"entries": [ENTRY | {"weight": "float8_e4m3fn"}]},
        "weight` must be one of bfloat16, float16, float32, float64, found",
    ),
    "architecture": (
        GOOD | {"entries": [ENTRY | {"architecture": "90a"}]},
        'architecture` must be like "sm_90", or "cpu", found "90a"',
    ),
    "twice": (
        GOOD | {"entries": [ENTRY, ENTRY]},
        r"entries\[1\].op` must be in no second entry for bfloat16 on sm_90",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_one_sentence(name: str, tmp_path: Path) -> None:
    content, message = BAD_TABLES[name]
    file = tmp_path / "table.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message) as raised:
        LinearTable.read(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        LinearTable.read(tmp_path / "table.json")


def test_which_kernel_runs_at_how_many_rows() -> None:
    table = LinearTable(
        FusedRows(0, "x", "cutlass"), {("sm_90", "norm_swiglu", "bfloat16"): FusedRows(256, "x")}
    )
    found = {
        (x.architecture, x.ops, x.weight, x.first_rows): (x.last_rows, x.by_table, x.fused)
        for x in linear_paths(table)
    }
    gate = ("norm_swiglu",)
    others = tuple(op for op in LINEAR_OPS if op not in gate)
    on_hopper = {key[1:]: value for key, value in found.items() if key[0] == "sm_90"}
    assert on_hopper == {
        (others, "16-bit", 1): (32, "CUTLASS", "mma.sync"),
        (others, "16-bit", 33): (None, "CUTLASS", "wgmma"),
        (gate, "16-bit", 1): (32, "mma.sync", "mma.sync"),
        (gate, "16-bit", 33): (256, "wgmma", "wgmma"),
        (gate, "16-bit", 257): (None, "cuBLAS", "wgmma"),
        (LINEAR_OPS, "fp8", 1): (None, "mma.sync", "mma.sync"),
        (LINEAR_OPS, "w8a8", 1): (32, "mma.sync", "mma.sync"),
        (LINEAR_OPS, "w8a8", 33): (None, "wgmma", "wgmma"),
    }
    assert found["sm_100", LINEAR_OPS, "16-bit", 1] == (None, "CUTLASS", "mma.sync")
    for other in set(ARCHITECTURES) - {"sm_90", "sm_100"}:
        assert found[other, LINEAR_OPS, "16-bit", 1] == (None, "cuBLAS", "mma.sync")


def test_what_cutlass_runs_on_which_architecture() -> None:
    """And that no architecture has it by default, as long as nobody has measured that it pays."""
    paths = linear_paths(LinearTable.read())
    found = {(x.architecture, x.weight): x.cutlass for x in paths}
    has_it = {"sm_90": "wgmma", "sm_100": "tcgen05"}
    assert found == {
        (architecture, weight): has_it.get(architecture) if weight == "16-bit" else None
        for architecture in ARCHITECTURES
        for weight in ("16-bit", "fp8", "w8a8")
    }
    assert "CUTLASS" not in {x.by_table for x in paths}
    (line,) = (x for x in format_paths(paths).splitlines() if x.startswith("sm_100") and "33-" in x)
    assert line.split() == ["sm_100", "16-bit", "33-", "cuBLAS", "mma.sync", "tcgen05", "all"]


def test_a_good_table(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps(GOOD | {"entries": [ENTRY]}))
    table = LinearTable.read(file)
    assert table.find("sm_90", "norm_swiglu", torch.bfloat16) == FusedRows(0, "x")
    assert table.find("sm_90", "norm_swiglu", torch.float16) == FusedRows(32, "x")
    file.write_text(json.dumps(GOOD | {"entries": [ENTRY | {"above": "cutlass"}]}))
    found = LinearTable.read(file).find("sm_90", "norm_swiglu", torch.bfloat16)
    assert found == FusedRows(0, "x", "cutlass")
    assert BUNDLED_TABLE.is_file()
