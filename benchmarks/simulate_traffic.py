"""Bytes that each kernel of a pass moves, counted by the emulator of `tests/hostsim`; no GPU.

A sector of 32 bytes counts once for each launch that touches it, as if L2 were empty before every
kernel and as large as needed during it. So what one kernel hands to the next is counted, although
on a GPU it stays in L2, and `needed` is what `floor` says: weights, keys and values, inputs.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from drafters import BLOCK_SIZE, PATTERNS, Case, fill_batch
from floor import phases
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.bundled import bundled_drafter
from p_eagle_cuda.errors import PEagleError
from shapes import DRAFTERS
from timing import environment, write_json

SECTOR = 32
# Which phases of `floor` a kernel has, by the ops that launch it in the order of a pass.
PHASES = {
    "prepare_inputs": (), "project_taps": ("taps", "fc"),
    "embed_norm_concat": ("embedding",), "qkv_rope_cache": ("qkv of the first layer", "qkv"),
    "paged_attention": ("attention",), "o": ("o",), "norm_swiglu": ("gate_up",),
    "down": ("down",), "lm_head_topk": ("head",),
}  # fmt: skip


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
        **found, "drafter": "bundled", **asdict(case), "launches": len(launches),
        "kernels": by_kernel(launches, DRAFTERS["bundled"].num_layers, case),
    }  # fmt: skip


def by_kernel(launches: list[Any], num_layers: int, case: Case) -> list[dict[str, Any]]:
    """Sums over the launches of each op, in the order of a pass."""
    layer = ["qkv_rope_cache", "paged_attention", "o", "norm_swiglu", "down"]
    names = ["prepare_inputs", "project_taps", "embed_norm_concat"]
    names += [*layer * num_layers, "lm_head_topk"]
    if len(launches) != len(names):
        raise PEagleError(f"expected {len(names)} launches, got {len(launches)}")
    needed: dict[str, int] = {}
    for phase in phases(DRAFTERS["bundled"], case):
        needed[phase.name] = needed.get(phase.name, 0) + phase.bytes
    rows = []
    for name, parts in PHASES.items():
        own = [x for x, of in zip(launches, names, strict=True) if of == name]
        moved = {
            way: sum(getattr(t, way).unique_sectors for x in own for t in x.traffic.values())
            for way in ("read", "written")
        }
        rows.append({
            "kernel": name, "launches": len(own),
            "read_bytes": SECTOR * moved["read"], "written_bytes": SECTOR * moved["written"],
            "needed_bytes": sum(needed[part] for part in parts),
        })  # fmt: skip
    return rows


def table(report: dict[str, Any]) -> str:
    """Markdown, a line for each kernel."""
    lines = ["| Kernel | Launches | Read | Written | Needed |", "|" + " --- |" * 5]
    lines += [
        f"| {x['kernel']} | {x['launches']} | {x['read_bytes']:,} | {x['written_bytes']:,} "
        f"| {x['needed_bytes']:,} |"
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
