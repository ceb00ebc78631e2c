"""Times GPU work the way it runs when serving: in CUDA graphs, with weights that are not in L2.

A *candidate* is one call for each copy of its weights. All its calls go into one graph, copy after
copy, so that none finds its weights in L2 and none waits for the host. Candidates that are compared
are replayed in turn, so that clocks and neighbours are the same for all.

A whole *pass* has too many weights for copies. Before each, a kernel reads memory that fills L2
several times, as the target's pass would, and before that one the GPU idles for as long as the host
needs to launch the pass. Events around the pass alone then give the GPU's time, and how long the
host took to launch it is given beside it.

Without a GPU everything runs once, on the CPU and under no clock worth reading: a dry run, which
finds mistakes and measures nothing.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

MIN_ROUNDS = 41
MIN_CALLS = 20  # in a graph
WARM_UP_S = 0.025
L2_SHARE = 2  # all copies together are at least this many times L2
EVICTION_BYTES = 256 << 20
CLOCK_HZ = 2_000_000_000  # about that of a large GPU, for how long it is told to idle

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


@dataclass(frozen=True)
class PassTiming(Timing):
    """Of a whole pass, L2 cold."""

    host_us: float = 0.0  # median, that the host takes to launch it


def num_copies(bytes_read: int, device: torch.device) -> int:
    """So many that the first is no longer in L2 when its turn comes again."""
    if device.type != "cuda":
        return 2
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
    if not torch.cuda.is_available():
        return {name: _dry_run(calls) for name, calls in candidates.items()}
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


def time_passes(passes: dict[str, Call], *, rounds: int = MIN_ROUNDS) -> dict[str, PassTiming]:
    """Run whole passes in turn, each with a cold L2, and time each.

    Args:
        passes: For each name what launches a pass. May launch graphs, kernels, or both.
        rounds: How often.

    Returns:
        For each name the time of one pass, from when its first kernel may start.
    """
    if not torch.cuda.is_available():
        return {name: PassTiming(**asdict(_dry_run([call]))) for name, call in passes.items()}
    evicting = torch.empty(EVICTION_BYTES // 4, dtype=torch.int32, device="cuda").view(-1, 4096)
    kept = torch.empty(len(evicting), dtype=torch.int32, device="cuda")
    idle_cycles = {}
    for name, call in passes.items():
        host = [_seconds(call) for _ in range(5)]
        idle_cycles[name] = int(2 * max(host[2:]) * CLOCK_HZ) + CLOCK_HZ // 20_000
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(rounds):
        for name, call in passes.items():
            torch.cuda._sleep(idle_cycles[name])
            torch.amax(evicting, dim=1, out=kept)
            begin.record()
            start = time.perf_counter()
            call()
            host_us = (time.perf_counter() - start) * 1e6
            end.record()
            end.synchronize()
            samples[name].append((begin.elapsed_time(end) * 1000, host_us))
    return {
        name: PassTiming(
            **asdict(_summary([us for us, _ in found])),
            host_us=statistics.median([host for _, host in found]),
        )
        for name, found in samples.items()
    }


def kernel_times(call: Call, *, rounds: int = 10) -> dict[str, dict[str, float]]:
    """What CUPTI, by way of torch's profiler, says of the kernels of a pass that is repeated.

    L2 is warm, and the profiler is not free: it tells where time goes, not how long a pass takes.

    Returns:
        By kernel, without template arguments, the longest first: `launches` and `us` of one call.
        Nothing without a GPU.
    """
    if not torch.cuda.is_available():
        return {}
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(rounds):
            call()
        torch.cuda.synchronize()
    found = [(x.key, x.count, x.self_device_time_total) for x in profile.key_averages()]
    return sum_by_kernel(found, rounds)


def sum_by_kernel(
    found: Sequence[tuple[str, int, float]], rounds: int
) -> dict[str, dict[str, float]]:
    """Sums instances of one kernel: (signature, launches, microseconds) of all rounds."""
    sums: dict[str, dict[str, float]] = {}
    for signature, launches, us in found:
        if us <= 0:  # what the host did
            continue
        name = re.split(r"[<(]", re.sub(r"^void |\(anonymous namespace\)::", "", signature))[0]
        sum_of_name = sums.setdefault(name, {"launches": 0.0, "us": 0.0})
        sum_of_name["launches"] += launches / rounds
        sum_of_name["us"] += us / rounds
    ordered = sorted(sums.items(), key=lambda item: -item[1]["us"])
    return {name: {k: round(v, 2) for k, v in each.items()} for name, each in ordered}


def device_to_time(*, dry_run: bool) -> torch.device:
    """The GPU; the CPU for a dry run.

    Raises:
        PEagleError: There is no GPU.
    """
    from p_eagle_cuda.errors import PEagleError  # this file also runs before there is a package

    if not dry_run and not torch.cuda.is_available():
        raise PEagleError("needs a CUDA device; there is none, so nothing is measured")
    return torch.device("cpu" if dry_run else "cuda")


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a large copy, read and written, what memory gives at best in practice."""
    megabytes = 512 if device.type == "cuda" else 1
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (timing,) = time_candidates({"copy": [lambda: target.copy_(source)]}).values()
    return 2 * source.numel() / (timing.median_us * 1e-6)


def product_rate(device: torch.device, size: int = 8192) -> float:
    """Operations per second of a large bf16 product, what tensor cores give at best in practice."""
    a, b, out = (torch.randn(size, size, device=device).bfloat16() for _ in range(3))
    (timing,) = time_candidates({"mm": [lambda: torch.mm(a, b, out=out)]}).values()
    return 2 * size**3 / (timing.median_us * 1e-6)


def significant(value: float) -> float:
    """With the four digits that a measurement is good for."""
    return float(f"{value:.4g}")


def environment() -> dict[str, Any]:
    """What a result is worth nothing without.

    Where there is no repository, P_EAGLE_COMMIT says the commit.
    """
    found = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "version": _version(),
        "commit": os.environ.get("P_EAGLE_COMMIT") or _run("git", "rev-parse", "--short", "HEAD"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": gpu.name, "capability": f"{gpu.major}.{gpu.minor}",
            "sms": gpu.multi_processor_count, "l2_bytes": gpu.L2_cache_size,
            "memory_bytes": gpu.total_memory, **gpu_state(),
        }  # fmt: skip
    else:
        found["dry_run"] = True
    return found


def gpu_state() -> dict[str, str | None]:
    """Driver, clocks, power, and why the clocks are what they are; of the moment."""
    fields = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    fields += ",clocks_event_reasons.active"
    values = _run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0")
    if values is None:
        return {"nvidia-smi": None}
    return dict(zip(fields.split(","), values.split(", "), strict=False))


def write_json(path: Path | None, report: dict[str, Any]) -> None:
    """Write or rewrite a result, so that what is measured so far survives being stopped."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


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


def _seconds(call: Call) -> float:
    """That the host takes for a call, the GPU being idle before."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    return seconds


def _dry_run(calls: Sequence[Call]) -> Timing:
    start = time.perf_counter()
    for call in calls:
        call()
    us = (time.perf_counter() - start) * 1e6 / len(calls)
    return Timing(us, us, us, 1)


def _summary(samples: list[float]) -> Timing:
    tenths = statistics.quantiles(samples, n=10)
    return Timing(statistics.median(samples), tenths[0], tenths[-1], len(samples))


def _version() -> str | None:
    """Of the package, None before it is installed."""
    try:
        return metadata.version("p_eagle_cuda")
    except metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    print(json.dumps(environment(), indent=1))
