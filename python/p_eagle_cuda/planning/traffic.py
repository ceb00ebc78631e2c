"""What the kernels of a pass move, as the emulator of the tests has counted it.

The counts are of the bundled drafter and of few rows, and come with the package;
`benchmarks/simulate_traffic.py` makes them, and a test counts again. For other drafters, and for
kernels of more rows, what moves is taken to be the same multiple of what `phases` says that must,
and of what `tiles` says that thread blocks leave for each other. A kernel that passes of few rows
do not have is taken to move what must.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p_eagle_cuda.fields import ConfigFields, read_json_object

BUNDLED_TRAFFIC = Path(__file__).parents[1] / "data" / "pass_traffic.json"


@dataclass(frozen=True)
class KernelTraffic:
    """Sums over the launches of a kernel in one pass, each with a cold L2.

    Attributes:
        launches: How many.
        needed_bytes: `Phase.all_bytes`.
        moved_bytes: Read or written, each sector of 32 bytes once a launch, but for partial sums.
        planned_partial_bytes: `tiles.partial_bytes`.
        partial_bytes: Written to workspaces and read from them.
    """

    launches: int
    needed_bytes: int
    moved_bytes: int
    planned_partial_bytes: int
    partial_bytes: int

    @property
    def moved_over_needed(self) -> float:
        """1 where each byte moves once."""
        return self.moved_bytes / self.needed_bytes

    @property
    def partial_over_planned(self) -> float:
        """The same of what is in workspaces; 1 where none is planned."""
        if not self.planned_partial_bytes:
            return 1.0
        return self.partial_bytes / self.planned_partial_bytes


AS_NEEDED = KernelTraffic(1, 1, 1, 0, 0)


@dataclass(frozen=True)
class PassTraffic:
    """A pass that was simulated."""

    num_layers: int
    kernels: Mapping[str, KernelTraffic]

    @property
    def launches(self) -> int:
        """Of the whole pass."""
        return sum(kernel.launches for kernel in self.kernels.values())

    @classmethod
    def read(cls, file: Path = BUNDLED_TRAFFIC) -> PassTraffic:
        """The counts in a file, by default those that come with the package.

        Raises:
            ConfigError: It is missing, or holds something else.
        """
        return cls.of(read_json_object(file), file)

    @classmethod
    def of(cls, report: Mapping[str, Any], file: Path = BUNDLED_TRAFFIC) -> PassTraffic:
        """The counts in what `benchmarks/simulate_traffic.py` reports."""
        fields = ConfigFields(report, file)
        kernels = {}
        for i, row in enumerate(report["kernels"]):
            of_kernel = ConfigFields(row, file, f"kernels[{i}].")
            kernels[of_kernel.string("kernel", "")] = KernelTraffic(
                of_kernel.integer("launches"),
                of_kernel.integer("needed_bytes"),
                of_kernel.integer("moved_bytes"),
                of_kernel.integer("planned_partial_bytes", minimum=0),
                of_kernel.integer("partial_bytes", minimum=0),
            )
        return cls(fields.integer("num_layers"), kernels)
