"""Times GPU work the way it runs when serving: in CUDA graphs, with weights that are not in L2.

A *candidate* is one call for each copy of its weights. All its calls go into one graph, copy after
copy, so that none finds its weights in L2 and none waits for the host. Candidates that are compared
are replayed in turn, so that clocks and neighbours are the same for all.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import torch

import p_eagle_cuda

MIN_ROUNDS = 41
MIN_CALLS = 20  # in a graph
WARM_UP_S = 0.025
L2_SHARE = 2  # all copies together are at least this many times L2

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call, over the rounds."""

    median_us: float
    p10_us: float
    p90_us: float
    rounds: int

    def as_json(self) -> dict[str, Any]:
        """Rounded to what can be told apart."""
        return {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def num_copies(bytes_read: int, device: torch.device) -> int:
    """So many that the first is no longer in L2 when its turn comes again."""
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return max(8, -(-L2_SHARE * l2 // max(bytes_read, 1)))


def time_candidates(
    candidates: dict[str, Sequence[Call]], *, min_seconds: float = 0.1
) -> dict[str, Timing]:
    """Replay the candidates in turn and time each.

    Args:
        candidates: For each name the calls on different copies; all allocate nothing.
        min_seconds: Time to spend on each at least, with at least 41 rounds.

    Returns:
        For each name the time of one call.
    """
    graphs = {name: _capture(calls) for name, calls in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    start = time.monotonic()
    while time.monotonic() - start < WARM_UP_S:
        for graph, _ in graphs.values():
            graph.replay()
        torch.cuda.synchronize()
    start = time.monotonic()
    while len(
        next(iter(samples.values()))
    ) < MIN_ROUNDS or time.monotonic() - start < min_seconds * len(graphs):
        for name, (graph, num_calls) in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples[name].append(begin.elapsed_time(end) * 1000 / num_calls)
    return {name: _summary(values) for name, values in samples.items()}


def copy_bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes per second of a large copy, read and written, what memory gives at best in practice."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (timing,) = time_candidates({"copy": [lambda: target.copy_(source)]}).values()
    return 2 * source.numel() / (timing.median_us * 1e-6)


def environment() -> dict[str, Any]:
    """What a result is worth nothing without."""
    found = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "version": p_eagle_cuda.__version__,
        "commit": _run("git", "rev-parse", "--short", "HEAD"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        fields = "driver_version,clocks.sm,clocks.mem,power.draw,clocks_event_reasons.active"
        found[f"nvidia-smi {fields}"] = _run(
            "nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"
        )
    return found


def _capture(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
    repeats = -(-MIN_CALLS // len(calls))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # once outside of a graph, for whatever is made lazily
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            for call in calls:
                call()
    return graph, repeats * len(calls)


def _summary(samples: list[float]) -> Timing:
    tenths = statistics.quantiles(samples, n=10)
    return Timing(statistics.median(samples), tenths[0], tenths[-1], len(samples))


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
