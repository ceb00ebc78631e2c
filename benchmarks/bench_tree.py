"""What draft trees of the bundled pair accept, and what their verification may cost.

Chains, static shapes and dynamic trees of several sizes continue the same held-out functions of the
Python standard library greedily; static shapes are calibrated on others. Acceptance is a property
of the pair, not of the machine; whether a tree pays depends on what verifying its nodes costs,
which is not measured here: `break-even` is how many times the cost of the chain's it may be.
"""

from __future__ import annotations

import json
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import p_eagle_cuda
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.bundled import bundled_drafter, bundled_target
from p_eagle_cuda.draft_tree import DraftTree
from p_eagle_cuda.errors import PEagleError, PromptError
from p_eagle_cuda.generation import MAX_SPECULATIVE_TOKENS, Decoded, Generator
from p_eagle_cuda.statistics import nodes_per_step
from p_eagle_cuda.train.corpus import held_out_prompts, load_corpus


def main() -> int:
    """Measure, print a table, and write the JSON that was asked for."""
    options = _parser().parse_args()
    try:
        report = measure(
            options.k, options.nodes, options.calibration, options.prompts, options.max_tokens
        )
        print(table(report))
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except (PEagleError, OSError) as error:
        print(f"bench_tree: error: {error}", file=sys.stderr)
        return 2
    return 0 if all(row["lossless"] for row in report["rows"]) else 1


def measure(
    k: int, nodes: list[int], calibration: int, prompts: int, max_tokens: int
) -> dict[str, Any]:
    """Run every tree over the same prompts, after the chain of k to which all are compared."""
    if max_tokens < 20:
        raise PromptError(f"--max-tokens must be at least 20 to measure anything, got {max_tokens}")
    dynamic = [DraftTree.dynamic(n) for n in nodes]  # refuses other numbers before anything runs
    texts = held_out_prompts(load_corpus(), limit=calibration + prompts)
    if len(texts) < calibration + prompts:
        raise PromptError(
            f"expected at most {len(texts)} held-out prompts in all, got {calibration} for "
            f"calibration and {prompts} more"
        )
    generator = _generator(k)
    ids = generator.encode(texts, max_tokens)
    others, own = ids[:calibration], ids[calibration:]
    chain = DraftTree.chain(k)

    def decode(
        name: str, generator: Generator, prompts: list[list[int]], tree: DraftTree | None
    ) -> Decoded:
        with tqdm(total=len(prompts), desc=name, unit="prompt") as bar:

            def advance(_: int) -> None:
                bar.update()

            return generator.decode(
                prompts, max_tokens, tree=tree, batch_size=16, on_finish=advance
            )

    accuracies = generator.accuracies(decode("calibration", generator, others, chain))
    expected = [c.token_ids for c in decode("no drafts", generator, own, None).completions]
    trees: list[tuple[str, Generator, DraftTree]] = [("chain", generator, chain)]
    for n in nodes:
        if n != k + 1 and n <= MAX_SPECULATIVE_TOKENS + 1:
            trees.append(("chain", _generator(n - 1), DraftTree.chain(n - 1)))
    trees += [("static", generator, DraftTree.static(accuracies, n)) for n in nodes]
    trees += [("dynamic", generator, tree) for tree in dynamic]
    rows: list[dict[str, Any]] = []
    for kind, drafting, tree in trees:
        decoded = decode(f"{kind}, {tree.num_nodes} nodes", drafting, own, tree)
        K = drafting.num_speculative_tokens
        overall, early = decoded.acceptance(K), decoded.acceptance_not_looping(K)
        assert overall.length, "a step was verified"
        assert early.length, "also before the text loops"
        base = rows[0] if rows else None
        rows.append(
            {
                "tree": kind,
                "k": K,
                "nodes": tree.num_nodes,
                "nodes_per_step": nodes_per_step(s for c in decoded.completions for s in c.steps),
                "acceptance_length": overall.length,
                "break_even": overall.length / base["acceptance_length"] if base else None,
                "acceptance_length_not_looping": early.length,
                "break_even_not_looping": (
                    early.length / base["acceptance_length_not_looping"] if base else None
                ),
                "per_position": overall.per_position,
                "lossless": [c.token_ids for c in decoded.completions] == expected,
            }
        )
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "version": p_eagle_cuda.__version__,
        "device": "cpu",
        "prompts": prompts,
        "calibration_prompts": calibration,
        "max_tokens": max_tokens,
        "accuracies": accuracies,
        "rows": rows,
    }


def _generator(k: int) -> Generator:
    return Generator(
        bundled_target(), bundled_drafter(), num_speculative_tokens=k, dtype=torch.float32
    )


def table(report: dict[str, Any]) -> str:
    """The report in Markdown, one line for each tree."""
    lines = [
        "| Tree | K | Nodes | Acceptance length | Break-even | before the text loops | Break-even "
        "| Lossless |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]

    def times(ratio: float | None) -> str:
        return "1" if ratio is None else f"{ratio:.2f}"

    for row in report["rows"]:
        lines.append(
            f"| {row['tree']} | {row['k']} | {row['nodes']} | {row['acceptance_length']:.2f} "
            f"| {times(row['break_even'])} | {row['acceptance_length_not_looping']:.2f} "
            f"| {times(row['break_even_not_looping'])} | {'yes' if row['lossless'] else 'NO'} |"
        )
    return "\n".join(lines)


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--k", type=positive_int, default=7, help="positions drafted for a tree")
    parser.add_argument("--nodes", type=positive_int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--calibration", type=positive_int, default=16, help="prompts, of shapes")
    parser.add_argument("--prompts", type=positive_int, default=32, help="other ones, to measure")
    parser.add_argument("--max-tokens", type=positive_int, default=100, help="new tokens for each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
