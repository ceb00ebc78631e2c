"""Where a test's tensors are, and who computes ops on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from p_eagle_cuda import ops
from sim import torch_ops
from sim.emulator import FOUR, Settings


@dataclass(frozen=True)
class Device:
    """A CPU, which computes ops by the reference; a GPU; or the emulator of one, on CPU tensors."""

    name: str  # of the tensors' device, for torch
    settings: Settings | None = None  # of the emulator; None for the others

    @property
    def is_emulated(self) -> bool:
        return self.settings is not None

    @property
    def runs_kernels(self) -> bool:
        return self.name == "cuda" or self.is_emulated

    def has(self, op: str) -> bool:
        """Whether `op` can run there."""
        if self.settings is not None:
            return torch_ops.has_kernel(op)
        return ops.implementations()[op][self.name]

    def call(self, op: str, arguments: dict[str, Any]) -> None:
        """Run ``p_eagle::<op>``; on the emulator a report is an AssertionError."""
        if self.settings is not None:
            torch_ops.call(op, arguments, self.settings)
        else:
            getattr(torch.ops.p_eagle, op)(*arguments.values())


DEVICES = {
    "cpu": Device("cpu"),
    "cuda": Device("cuda"),
    **{f"sim-{name}": Device("cpu", settings) for name, settings in FOUR.items()},
}
