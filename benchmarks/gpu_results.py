"""Puts together what the steps of `gpu_check.sh` have left: one JSON, one table, one log.

Standard library only, because it also runs when everything else is broken.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

LOG_CHARACTERS = 400_000  # of each step
PIECES = (
    "pass",
    "pass-fp8",
    "pass-sweep",
    "pass-qwen3",
    "linear",
    "linear-wide",
    "kernels",
    "verification",
    "linear-compiled",
    "kernels-compiled",
    "serving",
)
STALLED = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")


def main() -> int:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("work", type=Path, help="where the steps have left their files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", required=True)
    options = parser.parse_args()
    report = collect(options.work, options.command)
    (options.out / f"{slug({})}.json").unlink(missing_ok=True)  # of before there was a GPU's name
    name = f"{slug(report['environment'])}.json"
    (options.out / name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "table.txt").write_text(table(report["steps"]) + "\n", encoding="utf-8")
    (options.out / "log.txt").write_text(log(options.work, report["steps"]), encoding="utf-8")
    return 0


def collect(work: Path, command: str) -> dict[str, Any]:
    """Everything that is there; a piece that cannot be read says why."""
    report: dict[str, Any] = {
        "command": command,
        "environment": read_json(work / "environment.json"),
        "steps": steps(work),
        "results": {
            name: read_json(work / f"{name}.json")
            for name in PIECES
            if (work / f"{name}.json").exists()
        },
    }
    if (work / "ncu.csv").exists():
        launches = counters((work / "ncu.csv").read_text("utf-8", errors="replace"))
        report["counters"] = {"kernels": by_kernel(launches), "launches": launches}
    return report


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {"unreadable": str(error)}
    return found


def slug(environment: dict[str, Any]) -> str:
    """``<gpu>-<date>``."""
    gpu = environment.get("gpu") or ("dry-run" if environment.get("dry_run") else "unknown")
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{name}-{environment.get('date', 'undated')}"


def steps(work: Path) -> list[dict[str, Any]]:
    """What ran, in order, with the line that says the most about it."""
    found = []
    for line in (work / "steps.tsv").read_text(encoding="utf-8").splitlines():
        name, result, seconds = line.split("\t")
        found.append({
            "step": name, "result": result, "seconds": int(seconds),
            "detail": detail(work / f"{name}.log"),
        })  # fmt: skip
    return found


def detail(file: Path) -> str:
    """Pytest's or the sanitizer's own summary, the size of a table, or the last line of a log."""
    if not file.exists():
        return ""
    lines = [x.strip() for x in file.read_text("utf-8", errors="replace").splitlines()]
    lines = [x for x in lines if x]
    summaries = r"\d+ (passed|failed|error)|ERROR SUMMARY|RACECHECK SUMMARY|error: "
    found = [x for x in lines if re.search(summaries, x)]
    cases = sum(x.startswith("| ") for x in lines) - sum(x.startswith("| ---") for x in lines) * 2
    if not found and cases > 0:
        return f"{cases} cases"
    found = found or lines
    return found[-1].strip("= ")[:100] if found else ""


def table(found: list[dict[str, Any]]) -> str:
    """Check, result, time."""
    rows = [("check", "result", "time", "")]
    rows += [(s["step"], s["result"], f"{s['seconds']} s", s["detail"]) for s in found]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(x.ljust(n) for x, n in zip(row[:3], widths, strict=True)), row[3]]).rstrip()
        for row in rows
    )


def log(work: Path, found: list[dict[str, Any]]) -> str:
    """All logs, each after a line with its step; of a long one the end."""
    parts = []
    for step in found:
        file = work / f"{step['step']}.log"
        text = file.read_text("utf-8", errors="replace") if file.exists() else ""
        parts.append(f"==== {step['step']}: {step['result']}\n{text[-LOG_CHARACTERS:]}")
    return "\n".join(parts)


def counters(text: str) -> list[dict[str, Any]]:
    """The launches in what ``ncu --csv --page raw --print-units base`` writes.

    Its own messages start with ``==``; then come the names of the columns, their units in a row
    without an ID, and a row for each launch.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    launches = []
    for row in csv.DictReader(lines):
        if not row.get("ID"):
            continue
        values: dict[str, Any] = {"kernel": re.split(r"[<(]", row.get("Kernel Name", ""))[0]}
        for name, value in row.items():
            if "__" in (name or ""):
                values[name] = number(value)
        launches.append(values)
    return launches


def by_kernel(launches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What counters say of each kernel, over its launches, the longest in all first.

    Sums are of launches where ncu has written a number. Shares are means, weighted by time: of the
    peak of memory and of the tensor cores, both in percent, and of sectors that were found in L2.
    `stalls` are warps that wait for each reason while one issues, the most first.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for launch in launches:
        groups.setdefault(launch["kernel"].split("::")[-1].split(" ")[-1], []).append(launch)
    found = []
    for name, own in groups.items():
        us = total(own, "gpu__time_duration.sum")
        read, written = total(own, "dram__bytes_read.sum"), total(own, "dram__bytes_write.sum")
        row = {
            "kernel": name,
            "launches": len(own),
            "us": None if us is None else us / 1e3,
            "dram_read_bytes": read,
            "dram_written_bytes": written,
            "dram_gb_per_s": (read + written) / us if us and None not in (read, written) else None,
            "dram_percent": mean(own, "dram__throughput.avg.pct_of_peak_sustained_elapsed"),
            "tensor_instructions": total(own, "sm__inst_executed_pipe_tensor.sum"),
            "tensor_percent": mean(
                own, "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
            ),
            "l2_hit_percent": mean(own, "lts__t_sector_hit_rate.pct"),
            "registers": max((x.get("launch__registers_per_thread", 0) for x in own), default=0),
        }
        metrics = dict.fromkeys(metric for x in own for metric in x if STALLED.fullmatch(metric))
        stalls = {STALLED.fullmatch(metric)[1]: mean(own, metric) for metric in metrics}
        told = {reason: x for reason, x in stalls.items() if x is not None}
        row["stalls"] = dict(sorted(told.items(), key=lambda item: -item[1]))
        found.append(row)
    return sorted(found, key=lambda row: -(row["us"] or 0))


def total(launches: list[dict[str, Any]], metric: str) -> float | None:
    """The sum of a counter; None where no launch has it."""
    values = [x[metric] for x in launches if isinstance(x.get(metric), float)]
    return sum(values) if values else None


def mean(launches: list[dict[str, Any]], metric: str) -> float | None:
    """The mean of a share over the time of the launches; None where no launch has it."""
    pairs = [(x[metric], x.get("gpu__time_duration.sum")) for x in launches
             if isinstance(x.get(metric), float)]  # fmt: skip
    weights = [ns if isinstance(ns, float) else 0.0 for _, ns in pairs]
    if not sum(weights):
        return None
    return sum(x * w for (x, _), w in zip(pairs, weights, strict=True)) / sum(weights)


def number(text: str) -> float | str:
    """What ncu writes, thousands with commas, and now and then no number."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
