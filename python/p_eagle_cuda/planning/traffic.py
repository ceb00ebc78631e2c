"""What the kernels of a pass move, as the emulator of the tests has counted it.

The counts are of the bundled drafter, of passes of few rows and of many with each format of the
weights, and come with the package; `benchmarks/simulate_traffic.py` makes them, and a test counts
again. For other drafters and batches, what moves is taken to be the same multiple of what `phases`
says that must, and of what `tiles` says that thread blocks leave for each other. A kernel that no
such pass has is taken to move what must.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from p_eagle_cuda.fields import ConfigFields, read_json_object
from p_eagle_cuda.linear_table import FEW_ROWS
from p_eagle_cuda.planning.phases import Batch, Precision

BUNDLED_TRAFFIC = Path(__file__).parents[1] / "data" / "pass_traffic.json"


@dataclass(frozen=True)
class KernelTraffic:
    """Sums over the launches of a kernel in one pass, each with a cold L2.

    Attributes:
        launches: How many.
        shared_bytes: Dynamic shared memory of a thread block, the most of any launch.
        needed_bytes: `Phase.all_bytes`.
        moved_bytes: Read or written, each sector of 32 bytes once a launch, but for partial sums.
        planned_partial_bytes: `tiles.partial_bytes`.
        partial_bytes: Written to workspaces and read from them.
    """

    launches: int
    shared_bytes: int
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


AS_NEEDED = KernelTraffic(1, 0, 1, 1, 0, 0)


class PassKind(NamedTuple):
    """What the kernels of a pass depend on."""

    weights: str  # `Precision.kind`
    has_many_rows: bool  # more than FEW_ROWS in its buffers

    @classmethod
    def of(cls, precision: Precision, padded_rows: int) -> PassKind:
        """Of a pass whose buffers have so many rows."""
        return cls(precision.kind, padded_rows > FEW_ROWS)


@dataclass(frozen=True)
class PassTraffic:
    """Passes that were simulated, and in each the kernels by name."""

    passes: Mapping[PassKind, Mapping[str, KernelTraffic]]

    def find(self, kind: PassKind, kernel: str) -> KernelTraffic:
        """Of a kernel, or `AS_NEEDED` where no simulated pass of the kind has it."""
        return self.passes.get(kind, {}).get(kernel, AS_NEEDED)

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
        found = ConfigFields(report, file)
        k, passes = found.integer("k"), {}
        for of_pass in found.sections("passes"):
            precision = Precision.of(of_pass.string("weights", ""), of_pass.string("kv", ""))
            padded_rows = Batch.of_equal(of_pass.integer("batch"), k, 0, 0).padded_rows
            passes[PassKind.of(precision, padded_rows)] = {
                kernel.string("kernel", ""): KernelTraffic(
                    *(kernel.integer(x.name, minimum=0) for x in fields(KernelTraffic))
                )
                for kernel in of_pass.sections("kernels")
            }
        return cls(passes)
