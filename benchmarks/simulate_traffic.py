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
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from drafters import BLOCK_SIZE, PATTERNS, Case, fill_batch
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.bundled import bundled_drafter
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.planning.gpus import GPUS
from p_eagle_cuda.planning.phases import Precision
from p_eagle_cuda.planning.prediction import PassModel
from p_eagle_cuda.planning.tiles import partial_bytes
from p_eagle_cuda.planning.traffic import PassTraffic
from timing import environment, write_json

SECTOR = 32
# Of the caches, so that both formats are counted.
KV_OF_WEIGHTS = {"bf16": "bf16", "fp8_head": "bf16", "fp8": "fp8", "w8a8": "fp8"}


def simulate(options: Namespace) -> dict[str, Any]:
    """Run passes of the bundled drafter on the emulator and count."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    settings = {"k": options.k, "context": options.context, "accepted": options.accepted}
    every = [(weights, batch) for weights in options.weights for batch in options.batch]
    passes = [
        {"weights": weights, "kv": KV_OF_WEIGHTS[weights], "batch": batch,
         "kernels": count(Case(batch, **settings), weights)}
        for weights, batch in tqdm(every, unit="pass", disable=None)
    ]  # fmt: skip
    found = environment()
    found.pop("dry_run", None)  # it is none: all is counted
    return {
        "simulated": "on the emulator, no GPU",
        **found, "drafter": "bundled", **settings, "passes": passes,
    }  # fmt: skip


def count(case: Case, weights: str) -> list[dict[str, Any]]:
    """Sums over the launches of each kernel of a pass, in the order of the pass."""
    import pytest

    from sim.emulated_drafter import emulated
    from sim.emulator import FOUR

    kv = KV_OF_WEIGHTS[weights]
    room = dict(
        num_speculative_tokens=case.k, max_requests=case.batch, batch_sizes=[case.batch],
        max_target_rows=case.batch * (case.k + 1), num_blocks=case.num_blocks(),
        block_size=BLOCK_SIZE, weights=weights, kv_dtype=kv,
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
        return by_kernel(list(session.launches), drafter.config, case, Precision.of(weights, kv))


def by_kernel(
    launches: list[Any], config: DrafterConfig, case: Case, precision: Precision
) -> list[dict[str, Any]]:
    """The same of launches that were counted; each is of one phase."""
    from sim.emulated_drafter import ATTENTION_BLOCKS, EMULATED_SMS

    batch = case.as_batch()
    model = PassModel(config, GPUS["h200"], precision, "fused", PassTraffic({}))
    expected = model.phases(batch)
    if len(launches) != len(expected):
        raise PEagleError(f"expected {len(expected)} launches, got {len(launches)}")
    rows: dict[str, dict[str, Any]] = {}
    for phase, launch in zip(expected, launches, strict=True):
        runs_on = model.runs_on(phase.kernel, phase.num_rows(batch)[1])
        row = rows.setdefault(phase.kernel, {
            "kernel": phase.kernel, "runs_on": runs_on, "launches": 0, "shared_bytes": 0,
            "needed_bytes": 0, "moved_bytes": 0, "planned_partial_bytes": 0, "partial_bytes": 0,
        })  # fmt: skip
        row["launches"] += 1
        row["shared_bytes"] = max(row["shared_bytes"], launch.dynamic_shared)
        row["needed_bytes"] += phase.all_bytes
        row["planned_partial_bytes"] += partial_bytes(
            phase, config, batch, runs_on, EMULATED_SMS, ATTENTION_BLOCKS
        )
        for buffer, traffic in launch.traffic.items():
            sectors = traffic.read.unique_sectors + traffic.written.unique_sectors
            is_partial = "_work" in buffer  # workspaces, and the map of attention
            row["partial_bytes" if is_partial else "moved_bytes"] += SECTOR * sectors
    return list(rows.values())


def table(report: dict[str, Any]) -> str:
    """Markdown, a line for each kernel of each pass."""
    lines = [
        "| Weights | Batch | Kernel | Runs on | Launches | Moved | Needed | Moved / needed "
        "| Partial sums | Planned | Shared |",
        "|" + " --- |" * 11,
    ]
    lines += [
        f"| {of_pass['weights']} | {of_pass['batch']} | {x['kernel']} | {x['runs_on']} "
        f"| {x['launches']} | {x['moved_bytes']:,} | {x['needed_bytes']:,} "
        f"| {x['moved_bytes'] / x['needed_bytes']:.3f} | {x['partial_bytes']:,} "
        f"| {x['planned_partial_bytes']:,} | {x['shared_bytes']:,} |"
        for of_pass in report["passes"]
        for x in of_pass["kernels"]
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
    parser.add_argument("--batch", type=positive_int, nargs="+", default=[2, 22])
    parser.add_argument(
        "--weights", choices=KV_OF_WEIGHTS, nargs="+", default=["bf16", "fp8", "w8a8"]
    )
    parser.add_argument("--k", type=positive_int, default=5)
    parser.add_argument("--context", type=positive_int, default=256)
    parser.add_argument("--accepted", choices=PATTERNS, default="mean")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
