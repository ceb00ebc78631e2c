"""Whole drafter passes, replayed as graphs, against cuBLAS and a replay of vLLM's launches.

For each batch: microseconds of the GPU for a pass with a cold L2 (`timing.time_passes`), what the
host takes to launch it, the bytes that must move, the floor at the measured copy bandwidth and
product rate (`p_eagle_cuda.planning`), and ratios to it. Inputs lie in the drafter's static buffers
already.

`auto` is what a user gets; `fused`, `torch` and `cutlass` have every linear layer on one backend,
where that is worth timing; what `vllm_replay` is, the module of that name says. Before they are
timed, the passes must draft the same tokens but for the near-ties of random heads. `kernels` of a
result says where the time of `auto` goes.
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from clocks import ClockWatch
from drafters import (
    BLOCK_SIZE,
    KV_DTYPES,
    PATTERNS,
    WEIGHT_PRECISIONS,
    Case,
    drafter_of,
    fill_batch,
    quantized,
    random_caches,
    random_weights,
    widened,
)
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.linear import architecture_of, cutlass_refusals
from p_eagle_cuda.planning.phases import Precision, floor_us, phases, total_bytes
from p_eagle_cuda.weights import DrafterWeights
from shapes import DRAFTERS, DrafterShape, config_of
from timing import (
    copy_bandwidth,
    device_to_time,
    environment,
    gpu_state,
    kernel_times,
    product_rate,
    significant,
    time_passes,
    write_json,
)
from vllm_replay import VllmReplay

MEMORY_SHARE = 0.8  # of what is free, for a cache
FUSED_ROWS = 256  # with more, the fused kernels read every weight too often to wait for
CUTLASS_ROWS = 128  # with fewer, the one tile of CUTLASS's kernels is not full
MIN_AGREEMENT = 0.5  # of the drafts of two passes; unrelated ones agree in none of them


class BenchmarkError(PEagleError):
    """Something that makes a measurement pointless."""


def main() -> int:
    """Measure, print a table, write the JSON that was asked for as it grows."""
    options = _parser().parse_args()
    try:
        device = device_to_time(dry_run=options.dry_run)
        report = start_report(options.drafter, device)
        with ClockWatch() as clocks:
            for row in tqdm(measure(options, report, device), unit="case"):
                report["results"].append(row)
                write_json(options.json, report)
        clocks.note(report)
        report["gpu_state_after"] = gpu_state()
        write_json(options.json, report)
        print(table(report))
    except (PEagleError, OSError) as error:
        print(f"bench_pass: error: {error}", file=sys.stderr)
        return 2
    for failed in report["errors"]:
        print(f"bench_pass: error: {failed}", file=sys.stderr)
    return 1 if report["errors"] else 0


def start_report(drafter: str, device: torch.device) -> dict[str, Any]:
    """What is known before the first case."""
    is_dry = device.type != "cuda"
    return {
        **environment(),
        "drafter": drafter,
        "shape": asdict(DRAFTERS[drafter]),
        "copy_gb_per_s": significant(copy_bandwidth(device) / 1e9),
        "product_tflop_per_s": significant(product_rate(device, 64 if is_dry else 8192) / 1e12),
        "results": [],
        "left_out": [],  # cases that do not fit
        "errors": [],  # cases that went wrong
    }


def measure(
    options: Namespace, report: dict[str, Any], device: torch.device
) -> Iterator[dict[str, Any]]:
    """A row for each case that fits the memory, in order; the others are named in the report."""
    shape = DRAFTERS[options.drafter]
    every = [
        Case(batch, k, context, accepted)
        for context in options.context
        for accepted in options.accepted
        for k in options.k
        for batch in options.batch
    ]
    longest = max(max(case.positions()) for case in every)
    config = config_of(shape, -(-longest // BLOCK_SIZE) * BLOCK_SIZE)
    weights = quantized(random_weights(config, device), options.weights)
    wide = widened(weights)
    for kv in options.kv:
        gc.collect()
        torch.cuda.empty_cache()
        fitting = [case for case in every if _fits(shape, case, kv, device)]
        report["left_out"] += [
            {**asdict(case), "kv": kv, "reason": "the cache does not fit the memory"}
            for case in every
            if case not in fitting
        ]
        if not fitting:
            continue
        blocks = max(case.num_blocks() for case in fitting)
        caches = random_caches(config, blocks, KV_DTYPES[kv], device)
        rates = report["copy_gb_per_s"] * 1e9, report["product_tflop_per_s"] * 1e12
        for case in fitting:
            what = {**asdict(case), "kv": kv, "weights": options.weights}
            precision = Precision(
                weights.fc.element_size(), weights.lm_head.element_size(),
                KV_DTYPES[kv].itemsize, weights.fp8_activations,
            )  # fmt: skip
            found = phases(config, case.as_batch(), precision)
            floor = floor_us(found, *rates)
            try:
                timed = time_case(config, weights, wide, caches, case, options.rounds, floor)
            except (PEagleError, RuntimeError) as error:  # of this case: the others may go well
                report["errors"].append({**what, "error": str(error).splitlines()[0]})
                continue
            yield {**what, "bytes": total_bytes(found), "floor_us": round(floor, 2), **timed}
        del caches


def time_case(
    config: DrafterConfig,
    weights: DrafterWeights,
    wide: DrafterWeights,
    caches: list[Any],
    case: Case,
    rounds: int,
    floor: float,
) -> dict[str, Any]:
    """Time the passes over one batch.

    Torch's products, vLLM's with them, and CUTLASS's are of the matrices in the working dtype,
    `wide`.

    Raises:
        BenchmarkError: Two of them draft something else.
    """
    gc.collect()  # drafters are in cycles, and their graphs keep memory
    drafters = {
        name: drafter_of(
            config, wide if name in ("torch", "cutlass") else weights, caches, case.k,
            [case.batch], linear=name,
        )
        for name in backends(case.as_batch().padded_rows, wide)
    }  # fmt: skip
    inputs = {name: fill_batch(drafter, case) for name, drafter in drafters.items()}
    replay = VllmReplay(drafters["torch"], inputs["torch"])
    drafts = {
        name: drafter.propose(*inputs[name]).token_ids.clone() for name, drafter in drafters.items()
    }
    agreement = agreement_with_torch({**drafts, "vllm_replay": replay.run()})
    passes: dict[str, Any] = {
        name: (lambda name=name: drafters[name].propose(*inputs[name])) for name in drafters
    }
    timings = time_passes({**passes, "vllm_replay": replay.run}, rounds=rounds)
    auto = timings["auto"].median_us
    return {
        "agreement": agreement,
        "passes": {name: timing.as_json() for name, timing in timings.items()},
        "kernels": kernel_times(passes["auto"]),
        "over_floor": round(auto / floor, 3),
        "torch_over_auto": round(timings["torch"].median_us / auto, 3),
        "vllm_replay_over_auto": round(timings["vllm_replay"].median_us / auto, 3),
    }


def backends(rows: int, wide: DrafterWeights) -> list[str]:
    """Those of the linear layers that are worth timing with so many rows."""
    found = ["auto", "torch"]
    if rows <= FUSED_ROWS:
        found.append("fused")
    if rows > CUTLASS_ROWS and not cutlass_refusals(wide, architecture_of(wide.fc.device)):
        found.append("cutlass")
    return found


def _fits(shape: DrafterShape, case: Case, kv: str, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    width = 2 * shape.num_kv_heads * shape.head_dim * KV_DTYPES[kv].itemsize
    needed = case.num_blocks() * BLOCK_SIZE * width * shape.num_layers
    return needed <= MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]


def agreement_with_torch(drafts: dict[str, Tensor]) -> dict[str, float]:
    """The share of drafts that each pass has in common with the one of torch's products.

    Raises:
        BenchmarkError: It is too small for rounding to be the reason.
    """
    found = {}
    for name, ids in drafts.items():
        found[name] = round((ids == drafts["torch"]).double().mean().item(), 3)
        if found[name] < MIN_AGREEMENT:
            raise BenchmarkError(
                f"{name} drafts what torch does in {found[name]:.0%} of all positions, not worth "
                "timing"
            )
    return found


def table(report: dict[str, Any]) -> str:
    """Markdown, a line for each case."""
    lines = [
        "| Batch | K | Context | Accepted | KV | Floor us | auto us | fused us | torch us "
        "| cutlass us | vLLM replay us | auto / floor | replay / auto |",
        "|" + " --- |" * 13,
    ]
    for row in report["results"]:
        us = {name: f"{x['median_us']:.1f}" for name, x in row["passes"].items()}
        lines.append(
            f"| {row['batch']} | {row['k']} | {row['context']} | {row['accepted']} | {row['kv']} "
            f"| {row['floor_us']:.1f} | {us['auto']} | {us.get('fused', '-')} | {us['torch']} "
            f"| {us.get('cutlass', '-')} | {us['vllm_replay']} | {row['over_floor']:.2f} "
            f"| {row['vllm_replay_over_auto']:.2f} |"
        )
    return "\n".join(lines)


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--drafter", choices=DRAFTERS, default="gpt-oss-20b")
    parser.add_argument(
        "--batch", type=positive_int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128]
    )
    parser.add_argument("--k", type=positive_int, nargs="+", default=[5, 7, 8])
    parser.add_argument(
        "--context", type=positive_int, nargs="+", default=[1024, 4096, 16384, 65536]
    )
    parser.add_argument("--accepted", choices=PATTERNS, nargs="+", default=list(PATTERNS))
    parser.add_argument("--kv", choices=KV_DTYPES, nargs="+", default=list(KV_DTYPES))
    parser.add_argument("--weights", choices=WEIGHT_PRECISIONS, default="bf16")
    parser.add_argument("--rounds", type=positive_int, default=41)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU; measures nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
