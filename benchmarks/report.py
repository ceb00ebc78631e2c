"""Committed results -> the performance table of README.md, and pictures.

    python benchmarks/report.py                        print the table
    python benchmarks/report.py --readme               put it into README.md
    python benchmarks/report.py --plots FOLDER         write pictures, needs matplotlib

Every number says what it is: measured (on which device, when), predicted (at which rates), or
simulated. What is not measured is called that.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Any

from drafters import Case
from p_eagle_cuda.arguments import OneLineParser
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.planning.gpus import GPUS
from p_eagle_cuda.planning.phases import floor_us, phases, total_bytes
from p_eagle_cuda.planning.traffic import BUNDLED_TRAFFIC
from shapes import DRAFTERS, config_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- performance: begin -->\n", "<!-- performance: end -->\n"
DRAFTER, K, CONTEXT, ACCEPTED, KV = "gpt-oss-20b", 7, 4096, "mean", "bf16"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
# Where nothing was measured: bytes and operations per second.
ASSUMED_RATES = GPUS["h200"].bytes_per_s, GPUS["h200"].flops_per_s
COLUMNS = {"auto": "Ours", "torch": "Ours on cuBLAS", "vllm_replay": "Replay of vLLM V1"}
NOT_MEASURED = "not measured"


class Measured:
    """The passes of the newest run of `gpu_check.sh` that has any, by batch."""

    def __init__(self, folder: Path) -> None:
        """Read the results in a folder."""
        self.environment: dict[str, Any] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.rates = ASSUMED_RATES
        for file in sorted(folder.glob("*.json")):
            report = json.loads(file.read_text(encoding="utf-8"))
            found = report.get("results", {})
            passes = found.get("pass") if isinstance(found, dict) else None
            if not passes or not passes.get("gpu") or passes["drafter"] != DRAFTER:
                continue
            rows = {
                row["batch"]: row
                for row in passes["results"]
                if (row["k"], row["context"], row["accepted"], row["kv"], row["weights"])
                == (K, CONTEXT, ACCEPTED, KV, "bf16")
            }
            if rows and passes["date"] >= self.environment.get("date", ""):
                self.environment, self.rows = passes, rows
                self.rates = passes["copy_gb_per_s"] * 1e9, passes["product_tflop_per_s"] * 1e12

    def median_us(self, batch: int, name: str) -> float | None:
        """Of a pass, None if it was not measured."""
        timing = self.rows.get(batch, {}).get("passes", {}).get(name)
        return None if timing is None else float(timing["median_us"])


def floors(rates: tuple[float, float]) -> dict[int, tuple[int, float]]:
    """Bytes and microseconds at least, by batch."""
    found = {}
    for batch in BATCHES:
        case = Case(batch, K, CONTEXT, ACCEPTED)
        parts = phases(config_of(DRAFTERS[DRAFTER]), case.as_batch())
        found[batch] = total_bytes(parts), floor_us(parts, *rates)
    return found


def performance(folder: Path = RESULTS) -> str:
    """The part of README.md between the marks."""
    measured = Measured(folder)
    accepted = Case(1, K, CONTEXT, ACCEPTED).num_accepted()[0]
    bandwidth, products = (rate / 1e12 for rate in measured.rates)
    rates = f"{bandwidth:.2f} TB/s and {products:.0f} TFLOP/s"
    if measured.rows:
        e = measured.environment
        what = (
            f"Measured on {e['gpu']} on {e['date']}, commit {e['commit']}, torch {e['torch']}: "
            f"`{e['command']}`. The floor is predicted at the {rates} measured there."
        )
    else:
        what = (
            "No time of a GPU was measured yet. The floor is predicted, for an H200 taken to reach "
            f"{rates}."
        )
    caption = (
        f"A pass of the {DRAFTER} drafter (random weights of its sizes), K = {K}, {CONTEXT} tokens "
        f"of context, {accepted} of {K} drafts accepted, bf16 weights and cache, L2 cold. {what}"
    )
    lines = [
        fill(caption, 100, break_long_words=False, break_on_hyphens=False),
        "",
        "| Batch | MB that must move | Floor, us | "
        + " | ".join(f"{title}, us" for title in COLUMNS.values())
        + " |",
        "|" + " --- |" * (3 + len(COLUMNS)),
    ]
    for batch, (num_bytes, floor) in floors(measured.rates).items():
        times = [measured.median_us(batch, name) for name in COLUMNS]
        shown = [NOT_MEASURED if us is None else f"{us:.0f}" for us in times]
        lines.append(f"| {batch} | {num_bytes / 1e6:.0f} | {floor:.0f} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def with_table(readme: str, table: str) -> str:
    """README.md with the table between its marks.

    Raises:
        PEagleError: It has no such marks, or several.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise PEagleError(f"README.md: expected one line {BEGIN.strip()} and one {END.strip()}")
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def plot(folder: Path) -> None:
    """Three pictures: pass time over batch, bytes by kernel, acceptance by position.

    Raises:
        PEagleError: matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise PEagleError("--plots needs matplotlib: pip install matplotlib")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (
        ("pass_time", _draw_pass_time),
        ("kernel_bytes", _draw_kernel_bytes),
        ("acceptance", _draw_acceptance),
    ):
        figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
        draw(axes)
        axes.legend()
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
        pyplot.close(figure)


def _draw_pass_time(axes: Any) -> None:  # noqa: ANN401
    measured = Measured(RESULTS)
    floor = [us for _, us in floors(measured.rates).values()]
    axes.plot(BATCHES, floor, "k--", label="floor (predicted)")
    for name, title in COLUMNS.items():
        times = [(b, us) for b in BATCHES if (us := measured.median_us(b, name)) is not None]
        if times:
            axes.plot(*zip(*times, strict=True), "o-", label=f"{title} (measured)")
    e = measured.environment
    where = f"{e['gpu']}, {e['date']}" if e else "no GPU measured yet; floor for an H200"
    axes.set(xlabel="batch", ylabel="us per pass", title=f"{DRAFTER}, K = {K}: {where}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")


def _draw_kernel_bytes(axes: Any) -> None:  # noqa: ANN401
    report = json.loads(BUNDLED_TRAFFIC.read_text(encoding="utf-8"))
    drawn = report["passes"][0]
    kernels = drawn["kernels"]
    names = [x["kernel"] for x in kernels]
    moved = [(x["moved_bytes"] + x["partial_bytes"]) / 1024 for x in kernels]
    axes.barh(names, moved, label="moved (simulated)")
    axes.plot([x["needed_bytes"] / 1024 for x in kernels], names, "k|", ms=14, label="needed")
    axes.invert_yaxis()
    title = f"bundled drafter, {drawn['batch']} requests, K = {report['k']}: simulated"
    axes.set(xlabel="KiB per pass, each kernel with a cold L2", title=title)


def _draw_acceptance(axes: Any) -> None:  # noqa: ANN401
    report = json.loads((RESULTS / "acceptance-bundled.json").read_text(encoding="utf-8"))
    for row in report["rows"]:
        shares = row["per_position"]
        axes.plot(range(1, len(shares) + 1), shares, "o-", label=f"K = {row['k']}")
    axes.set(
        xlabel="draft position", ylabel="share accepted", ylim=(0, 1),
        title=f"bundled pair: measured on a CPU, {report['date']}",
    )  # fmt: skip


def main() -> int:
    """Print the table, or put it and the pictures where they belong."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--readme", action="store_true", help="rewrite the table in README.md")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write pictures there")
    options = parser.parse_args()
    try:
        table = performance()
        if options.readme:
            readme = ROOT / "README.md"
            text = with_table(readme.read_text(encoding="utf-8"), table)
            readme.write_text(text, encoding="utf-8")
        else:
            print(table, end="")
        if options.plots:
            plot(options.plots)
    except (PEagleError, OSError) as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
