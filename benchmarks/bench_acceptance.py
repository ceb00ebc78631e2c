"""How many drafts of the bundled pair are accepted, over held-out functions, for several K.

The prompts are the opening lines of functions of the Python standard library that the pair was not
trained on (`p_eagle_cuda.train.corpus` holds them out by module). Each is continued greedily with
and without the drafter, to see that the text is the same. Acceptance is a property of the pair, not
of the machine; speed is not measured here.
"""

from __future__ import annotations

import json
import platform
import sys
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import p_eagle_cuda
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.bundled import bundled_drafter, bundled_target
from p_eagle_cuda.errors import PEagleError, PromptError
from p_eagle_cuda.generation import Generator
from p_eagle_cuda.train.corpus import held_out_prompts, load_corpus


def main() -> int:
    """Measure, print a table, and write the JSON and the plot that were asked for."""
    options = _parser().parse_args()
    try:
        if options.plot and find_spec("matplotlib") is None:
            raise PromptError("--plot needs matplotlib: pip install matplotlib")
        report = measure(options.k, options.prompts, options.max_tokens)
        print(table(report))
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if options.plot:
            plot(report, options.plot)
    except (PEagleError, OSError) as error:
        print(f"bench_acceptance: error: {error}", file=sys.stderr)
        return 2
    return 0 if all(row["lossless"] for row in report["rows"]) else 1


def measure(ks: list[int], num_prompts: int, max_tokens: int) -> dict[str, Any]:
    """Run every K over the same prompts."""
    if max_tokens < 20:
        raise PromptError(f"--max-tokens must be at least 20 to measure anything, got {max_tokens}")
    texts = held_out_prompts(load_corpus(), limit=num_prompts)
    rows = []
    for k in ks:
        generator = Generator(
            bundled_target(), bundled_drafter(), num_speculative_tokens=k, dtype=torch.float32
        )
        prompts = generator.encode(texts, max_tokens)
        with tqdm(total=2 * len(prompts), desc=f"K = {k}", unit="prompt") as bar:

            def advance(_: int, bar: tqdm[Any] = bar) -> None:
                bar.update()

            result = generator.run(prompts, max_tokens, batch_size=16, on_finish=advance)
        values = result.as_json()
        tokens = sum(map(len, values.pop("outputs")))
        for name in ("texts", "first_difference", "tokens_per_s", "tokens_per_s_plain"):
            values.pop(name)
        rows.append({"k": k, "tokens": tokens, **values})
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "version": p_eagle_cuda.__version__,
        "prompts": len(texts),
        "max_tokens": max_tokens,
        "rows": rows,
    }


def table(report: dict[str, Any]) -> str:
    """The report in Markdown, one line for each K."""
    lines = [
        "| K | Acceptance length | before the text loops | Tokens per target step | Lossless "
        "| Accepted by position |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        positions = " ".join(f"{share:.2f}" for share in row["per_position"])
        lines.append(
            f"| {row['k']} | {row['acceptance_length']:.2f} "
            f"| {row['acceptance_length_not_looping']:.2f} "
            f"| {row['tokens'] / row['target_steps']:.2f} "
            f"| {'yes' if row['lossless'] else 'NO'} | {positions} |"
        )
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Acceptance length over K, and acceptance by position at the largest K."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    ks = [row["k"] for row in report["rows"]]
    left.plot(ks, [row["acceptance_length"] for row in report["rows"]], "o-", label="all text")
    early = [row["acceptance_length_not_looping"] for row in report["rows"]]
    left.plot(ks, early, "o--", label="before the text loops")
    left.set(xlabel="K", ylabel="tokens per verification step", ylim=(1, None))
    left.legend()
    last = report["rows"][-1]
    right.bar(range(1, last["k"] + 1), last["per_position"])
    right.set(xlabel="draft position", ylabel=f"share accepted at K = {last['k']}", ylim=(0, 1))
    figure.savefig(path)


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--k", type=positive_int, nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 8])
    parser.add_argument("--prompts", type=positive_int, default=64, help="how many")
    parser.add_argument("--max-tokens", type=positive_int, default=200, help="new tokens for each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
