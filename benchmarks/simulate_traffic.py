"""Bytes that each kernel of a pass moves, counted by the emulator of `tests/hostsim`; no GPU.

A sector of 32 bytes counts once for each launch that touches it, as if L2 were empty before every
kernel and as large as needed during it. `needed` is what `p_eagle_cuda.planning` says that a kernel
by itself must move: weights, keys and values, and rows, those too that another kernel hands over
and that a GPU keeps in L2. What thread blocks leave for each other in workspaces is `partial`.

The counts that come with the package, for `p-eagle-cuda plan` and the tests, are made by

    python benchmarks/simulate_traffic.py --json python/p_eagle_cuda/data/pass_traffic.json
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from drafters import BLOCK_SIZE, PATTERNS, Case, fill_batch
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.bundled import bundled_drafter
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.planning.phases import phases
from p_eagle_cuda.planning.prediction import LINEAR_OPS_OF_PHASES
from p_eagle_cuda.planning.tiles import partial_bytes
from timing import environment, write_json

SECTOR = 32
# Of a pass of few rows; other kernels share next to nothing through memory.
RUNS_ON = {"paged_attention": "attention", **dict.fromkeys(LINEAR_OPS_OF_PHASES, "mma.sync")}


def simulate(options: Namespace) -> dict[str, Any]:
    """Run a pass of the bundled drafter on the emulator and count."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import pytest

    from sim.emulated_drafter import emulated
    from sim.emulator import FOUR

    case = Case(options.batch, options.k, options.context, options.accepted)
    room = dict(
        num_speculative_tokens=case.k, max_requests=case.batch, batch_sizes=[case.batch],
        max_target_rows=case.batch * (case.k + 1), num_blocks=case.num_blocks(),
        block_size=BLOCK_SIZE,
    )  # fmt: skip
    with (
        pytest.MonkeyPatch.context() as patch,
        emulated(patch, FOUR["random"], path=bundled_drafter(), dtype=torch.bfloat16, **room) as (
            drafter,
            session,
        ),
    ):
        given = fill_batch(drafter, case)
        for buffer in session.buffers:
            if buffer.name.startswith("caches"):  # of the context
                session.mark_initialized(buffer)
        drafter.propose(*given)
        session.check()
        launches = list(session.launches)
    found = environment()
    found.pop("dry_run", None)  # it is none: all is counted
    return {
        "simulated": "on the emulator, no GPU",
        **found, "drafter": "bundled", **asdict(case), "num_layers": drafter.config.num_layers,
        "kernels": by_kernel(launches, drafter.config, case),
    }  # fmt: skip


def by_kernel(launches: list[Any], config: DrafterConfig, case: Case) -> list[dict[str, Any]]:
    """Sums over the launches of each phase, in the order of a pass."""
    from sim.emulated_drafter import ATTENTION_BLOCKS, EMULATED_SMS

    batch = case.as_batch()
    expected = phases(config, batch)
    if len(launches) != len(expected):
        raise PEagleError(f"expected {len(expected)} launches, got {len(launches)}")
    rows: dict[str, dict[str, Any]] = {}
    for phase, launch in zip(expected, launches, strict=True):
        row = rows.setdefault(phase.kernel, {
            "kernel": phase.kernel, "launches": 0, "needed_bytes": 0, "moved_bytes": 0,
            "planned_partial_bytes": 0, "partial_bytes": 0,
        })  # fmt: skip
        row["launches"] += 1
        row["needed_bytes"] += phase.all_bytes
        row["planned_partial_bytes"] += partial_bytes(
            phase, config, batch, RUNS_ON.get(phase.kernel, "rows"), EMULATED_SMS,
            ATTENTION_BLOCKS,
        )  # fmt: skip
        for buffer, traffic in launch.traffic.items():
            sectors = traffic.read.unique_sectors + traffic.written.unique_sectors
            is_partial = "_work" in buffer  # workspaces, and the map of attention
            row["partial_bytes" if is_partial else "moved_bytes"] += SECTOR * sectors
    return list(rows.values())


def table(report: dict[str, Any]) -> str:
    """Markdown, a line for each kernel."""
    lines = ["| Kernel | Launches | Moved | Needed | Moved / needed | Partial sums | Planned |"]
    lines.append("|" + " --- |" * 7)
    lines += [
        f"| {x['kernel']} | {x['launches']} | {x['moved_bytes']:,} | {x['needed_bytes']:,} "
        f"| {x['moved_bytes'] / x['needed_bytes']:.3f} | {x['partial_bytes']:,} "
        f"| {x['planned_partial_bytes']:,} |"
        for x in report["kernels"]
    ]
    return "\n".join(lines)


def main() -> int:
    """Count, print a table, write the JSON that was asked for."""
    options = _parser().parse_args()
    try:
        report = simulate(options)
        write_json(options.json, report)
        print(table(report))
    except (PEagleError, OSError) as error:
        print(f"simulate_traffic: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--batch", type=positive_int, default=2)
    parser.add_argument("--k", type=positive_int, default=5)
    parser.add_argument("--context", type=positive_int, default=256)
    parser.add_argument("--accepted", choices=PATTERNS, default="mean")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
