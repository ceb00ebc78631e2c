"""The embedded engine on a CPU, as ratios within one run: what of a change can be timed anywhere.

The bundled pair continues held-out functions greedily, in float32: without drafts, with chains of
each K, with dynamic trees, and with FP8 weights and cache. All of them take turns in one process,
forwards in one round and backwards in the next, and a ratio is of two times of the same round, so
that what else the machine does counts for both. The tokens must be those of plain decoding.

A CPU says nothing of a GPU, where a pass waits for its weights and not for its rows: the speed-ups
are this machine's. What they are good for is to compare one version of the engine with another.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import p_eagle_cuda
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.bundled import bundled_drafter, bundled_target
from p_eagle_cuda.draft_tree import DraftTree
from p_eagle_cuda.errors import PEagleError, PromptError
from p_eagle_cuda.generation import Decoded, Generator, check_k
from p_eagle_cuda.train.corpus import held_out_prompts, load_corpus


class Candidate(NamedTuple):
    """A way to decode, and the name of the one that it is compared with."""

    against: str
    k: int  # 0: no drafts
    decode: Callable[[], Decoded]


def main() -> int:
    """Measure, print a table, and write the JSON that was asked for."""
    options = _parser().parse_args()
    try:
        report = measure(
            options.k, options.nodes, options.prompts, options.max_tokens, options.rounds
        )
        print(table(report))
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except (PEagleError, OSError) as error:
        print(f"bench_cpu: error: {error}", file=sys.stderr)
        return 2
    return 0 if all(row["lossless"] for row in report["rows"]) else 1


def measure(
    ks: Sequence[int], nodes: Sequence[int], num_prompts: int, max_tokens: int, rounds: int
) -> dict[str, Any]:
    """Time every candidate in every round, after one round that is not counted."""
    texts = held_out_prompts(load_corpus(), limit=num_prompts)
    if len(texts) < num_prompts:
        raise PromptError(f"--prompts must be at most {len(texts)}, got {num_prompts}")
    found = candidates(ks, nodes, texts, max_tokens)
    decoded = {name: x.decode() for name, x in found.items()}  # also pays for what is set up lazily
    speeds: dict[str, list[float]] = {name: [] for name in found}
    with tqdm(total=rounds * len(found), unit="run") as bar:
        for i in range(rounds):
            for name in list(found) if i % 2 == 0 else reversed(found):
                speeds[name].append(found[name].decode().tokens_per_s)
                bar.update()
    plain = [c.token_ids for c in decoded["plain"].completions]
    rows = []
    for name, candidate in found.items():
        length = decoded[name].acceptance(candidate.k).length if candidate.k else None
        base = speeds[candidate.against]
        rows.append({
            "candidate": name,
            "against": candidate.against,
            "acceptance_length": length,
            "tokens_per_s": spread(speeds[name]),
            "speedup": spread([x / y for x, y in zip(speeds[name], base, strict=True)]),
            "lossless": [c.token_ids for c in decoded[name].completions] == plain,
        })  # fmt: skip
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "version": p_eagle_cuda.__version__,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "prompts": num_prompts,
        "max_tokens": max_tokens,
        "rounds": rounds,
        "rows": rows,
    }


def candidates(
    ks: Sequence[int], nodes: Sequence[int], texts: list[str], max_tokens: int
) -> dict[str, Candidate]:
    """By name, in the order of the first round; those that are compared with come first."""
    for k in ks:
        check_k(k)
    most = max(ks)
    trees = [DraftTree.dynamic(n) for n in nodes]  # refuses other numbers before anything loads
    generators = {k: Generator(bundled_target(), bundled_drafter(), num_speculative_tokens=k)
                  for k in dict.fromkeys(ks)}  # fmt: skip
    fp8 = Generator(
        bundled_target(), bundled_drafter(), num_speculative_tokens=most, weights="fp8",
        kv_dtype="fp8",
    )  # fmt: skip
    prompts = fp8.encode(texts, max_tokens)

    def candidate(against: str, generator: Generator, tree: DraftTree | None) -> Candidate:
        k = generator.num_speculative_tokens if tree else 0
        return Candidate(against, k, partial(generator.decode, prompts, max_tokens, tree=tree))

    found = {"plain": candidate("plain", fp8, None)}
    for k, generator in generators.items():
        found[f"chain, K = {k}"] = candidate("plain", generator, DraftTree.chain(k))
    chain = f"chain, K = {most}"
    for tree in trees:
        name = f"dynamic tree, K = {most}, {tree.num_nodes} nodes"
        found[name] = candidate(chain, generators[most], tree)
    found[f"{chain}, FP8"] = candidate(chain, fp8, DraftTree.chain(most))
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, tenth and ninetieth percentile."""
    if len(values) == 1:
        return dict.fromkeys(("median", "p10", "p90"), values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1]}


def table(report: dict[str, Any]) -> str:
    """The report in Markdown, one line for each candidate."""
    lines = [
        "| Decoding | Acceptance length | Tokens per second | Speed-up | p10 to p90 | Against "
        "| Lossless |",
        "|" + " --- |" * 7,
    ]
    for row in report["rows"]:
        length, speedup = row["acceptance_length"], row["speedup"]
        lines.append(
            f"| {row['candidate']} | {'-' if length is None else f'{length:.2f}'} "
            f"| {row['tokens_per_s']['median']:.0f} | {speedup['median']:.2f} "
            f"| {speedup['p10']:.2f} to {speedup['p90']:.2f} | {row['against']} "
            f"| {'yes' if row['lossless'] else 'NO'} |"
        )
    return "\n".join(lines)


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--k", type=positive_int, nargs="+", default=[1, 2, 3, 4, 5, 6, 7])
    parser.add_argument("--nodes", type=positive_int, nargs="*", default=[8, 16], help="of trees")
    parser.add_argument("--prompts", type=positive_int, default=8)
    parser.add_argument("--max-tokens", type=positive_int, default=64, help="new tokens for each")
    parser.add_argument("--rounds", type=positive_int, default=11)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
