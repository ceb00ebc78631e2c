"""Whole passes with torch's products, and with CUTLASS's: the kernels of either on the emulator.

`test_pass.py` has those of fused layers. Here every kernel has ended when its op returns, as
torch's products on the CPU need it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import write_drafter
from drafter_passes import SIZES
from drafter_variants import VARIANTS
from p_eagle_cuda import Drafter
from p_eagle_cuda.linear import LinearLayers
from p_eagle_cuda.linear_table import LINEAR_OPS
from sim import torch_ops
from sim.emulator import FOUR, Settings
from sim.linear_cases import workspace
from test_linear_backends import assert_drafts_right

ROW_OPS = {"gather_taps", "norm_rows", "gate_rows", "rope_cache"}
GEMMS = {"gemm", "gemm_residual", "gemm_swiglu"}

Names = set[str]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Sends the ops of linear layers to the emulator; the names of those that ran there."""
    names: Names = set()
    for name in ROW_OPS | GEMMS | set(LINEAR_OPS):
        op = OnEmulator(name, FOUR["random"], names)
        monkeypatch.setattr(torch.ops.p_eagle, name, op)
    return names


class OnEmulator:
    """What takes the place of an op; `default` is the op's own, which has its schema."""

    def __init__(self, name: str, settings: Settings, names: Names) -> None:
        self.name, self.settings, self.names = name, settings, names
        self.default = getattr(torch.ops.p_eagle, name).default

    def __call__(self, *values: Any) -> None:
        self.names.add(self.name)
        parameters = self.default._schema.arguments
        arguments = {x.name: value for x, value in zip(parameters, values, strict=True)}
        if "workspace" in arguments:  # that of a CPU is empty
            arguments["workspace"] = workspace()
        torch_ops.call(self.name, arguments, self.settings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_drafts(variant: str, tmp_path: Path, ran: Names) -> None:
    write_drafter(tmp_path, **VARIANTS[variant])
    drafter = Drafter.from_pretrained(tmp_path, dtype=torch.bfloat16, linear="torch", **SIZES)
    assert_drafts_right(tmp_path, drafter, torch.bfloat16)
    assert ran == ROW_OPS


def test_drafts_with_cutlass(tmp_path: Path, ran: Names) -> None:
    """With a bias; no product of gate and up is stored, so nothing gates one."""
    write_drafter(tmp_path, **VARIANTS["bias"])
    drafter = Drafter.from_pretrained(tmp_path, dtype=torch.bfloat16, linear="cutlass", **SIZES)
    assert_drafts_right(tmp_path, drafter, torch.bfloat16)
    assert ran == ROW_OPS - {"gate_rows"} | GEMMS


def test_both_backends_in_one_pass(tmp_path: Path, ran: Names) -> None:
    """An intermediate size that the fused kernels refuse, and passes of up to 67 rows."""
    write_drafter(tmp_path, intermediate_size=96)
    drafter = Drafter.from_pretrained(tmp_path, dtype=torch.bfloat16, **SIZES)
    drafter._pass.linear = LinearLayers(
        drafter.weights, drafter.config.num_taps, drafter.limits.most_rows,
        drafter._buffers.linear_workspace, architecture="sm_90",
    )  # fmt: skip
    assert_drafts_right(tmp_path, drafter, torch.bfloat16)
    assert ran == ROW_OPS | set(LINEAR_OPS) - {"linear_residual"}
