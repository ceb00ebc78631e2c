"""What FP8 weights, activations and caches cost the bundled pair in acceptance.

Held-out functions (see `bench_acceptance.py`) are continued greedily once, by the target. Then each
precision drafts from every position of that text, as if every position began a step: a draft is
accepted as far as it is the text. Decoding visits about every fourth position, and which ones
changes with the first draft that differs; all positions are the same for every precision, so their
difference is several times less noisy. Acceptance does not depend on the machine.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import p_eagle_cuda
from p_eagle_cuda import Drafter
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.bundled import bundled_drafter, bundled_target
from p_eagle_cuda.engine import SpeculativeEngine, max_target_rows, num_blocks
from p_eagle_cuda.errors import PEagleError, PromptError
from p_eagle_cuda.generation import Generator
from p_eagle_cuda.statistics import Step, acceptance, before_loop
from p_eagle_cuda.target import Target, TargetRows
from p_eagle_cuda.train.corpus import held_out_prompts, load_corpus

BLOCK_SIZE = 16
# Of the matrices and of the keys and values; the first is what the others are compared with.
PRECISIONS = (
    ("auto", "auto"), ("fp8_head", "auto"), ("fp8", "auto"), ("w8a8", "auto"), ("auto", "fp8"),
    ("fp8", "fp8"), ("w8a8", "fp8"),
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A prompt with the target's own continuation, and what the drafter sees of the target."""

    tokens: list[int]
    prompt_length: int
    taps: list[Tensor]  # n of [len(tokens), Ht]


def main() -> int:
    """Measure, print a table, and write the JSON that was asked for."""
    options = _parser().parse_args()
    try:
        report = measure(options.k, options.prompts, options.max_tokens)
        print(table(report))
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except (PEagleError, OSError) as error:
        print(f"bench_precision: error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(
    k: int,
    num_prompts: int,
    max_tokens: int,
    precisions: Sequence[tuple[str, str]] = PRECISIONS,
) -> dict[str, Any]:
    """Draft with every precision from the same positions, in float32 where nothing is FP8."""
    if max_tokens < 20 + k:
        raise PromptError(f"--max-tokens must be at least 20 + k = {20 + k}, got {max_tokens}")
    texts = _texts(num_prompts, max_tokens)
    rows = []
    for weights, kv_dtype in precisions:
        steps = _steps(texts, k, weights, kv_dtype)
        outputs = [text.tokens[text.prompt_length :] for text in texts]
        every = acceptance((s for x in steps for s in x), k)
        early = (before_loop(o, x) for o, x in zip(outputs, steps, strict=True))
        rows.append({
            "weights": weights,
            "kv_dtype": kv_dtype,
            "positions": every.steps,
            "acceptance_length": every.length,
            "acceptance_length_not_looping": acceptance((s for x in early for s in x), k).length,
            "acceptance_length_decoding": acceptance((s for x in steps for s in _visited(x)), k)
            .length,
            "per_position": every.per_position,
        })  # fmt: skip
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "version": p_eagle_cuda.__version__,
        "k": k,
        "prompts": len(texts),
        "max_tokens": max_tokens,
        "rows": rows,
    }


def table(report: dict[str, Any]) -> str:
    """The report in Markdown, one line for each precision."""
    lines = [
        "| Weights | KV cache | Acceptance length | Change | before the text loops | Change "
        "| when decoding |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    first = report["rows"][0]
    for row in report["rows"]:
        cells = [row["weights"], row["kv_dtype"]]
        for name in ("acceptance_length", "acceptance_length_not_looping"):
            cells += [f"{row[name]:.3f}", f"{row[name] / first[name] - 1:+.2%}"]
        lines.append(f"| {' | '.join(cells)} | {row['acceptance_length_decoding']:.2f} |")
    return "\n".join(lines)


def _texts(num_prompts: int, max_tokens: int) -> list[Text]:
    generator = Generator(bundled_target(), bundled_drafter(), num_speculative_tokens=5)
    target = generator.target
    prompts = generator.encode(held_out_prompts(load_corpus(), limit=num_prompts), max_tokens)
    lanes, length = min(16, num_prompts), max(map(len, prompts)) + max_tokens
    drafter = _drafter("auto", "auto", 5, lanes, max_target_rows(lanes, 5), length)
    engine = SpeculativeEngine(target, drafter, max_requests=lanes, max_length=length)
    with tqdm(total=num_prompts, desc="target", unit="prompt", leave=False) as bar:
        completions = engine.generate(
            prompts, max_tokens, stop=target.config.eos_token_ids,
            on_finish=lambda _: bar.update(),
        )  # fmt: skip
    return [
        Text(tokens, len(prompt), _taps(target, tokens))
        for prompt, completion in zip(prompts, completions, strict=True)
        for tokens in [prompt + completion.token_ids]
    ]


def _taps(target: Target, tokens: list[int]) -> list[Tensor]:
    """One pass of the target over a whole text."""
    n, num_pages = len(tokens), -(-len(tokens) // BLOCK_SIZE)
    rows = TargetRows(
        token_ids=torch.tensor(tokens),
        positions=torch.arange(n),
        slots=torch.arange(n),
        row_start=torch.tensor([0, n], dtype=torch.int32),
        seq_lens=torch.tensor([n], dtype=torch.int32),
        block_table=torch.arange(num_pages, dtype=torch.int32)[None],
    )
    caches = target.allocate_cache(num_pages, BLOCK_SIZE)
    return target.forward(rows, caches, torch.zeros(1, dtype=torch.int64)).taps


def _steps(texts: Sequence[Text], k: int, weights: str, kv_dtype: str) -> list[list[Step]]:
    """For each text, a step from every position that k tokens of the text follow."""
    length = max(len(text.tokens) for text in texts)
    rows = sum(text.prompt_length for text in texts)
    drafter = _drafter(weights, kv_dtype, k, len(texts), rows, length)
    columns = -(-(length + k) // BLOCK_SIZE)
    block_table = torch.arange(len(texts) * columns, dtype=torch.int32).view(-1, columns)
    steps: list[list[Step]] = [[] for _ in texts]
    num_passes = max(len(text.tokens) - text.prompt_length - k for text in texts)
    for done in tqdm(range(num_passes), desc=f"{weights}, {kv_dtype}", unit="pass", leave=False):
        # The drafter has seen `done` tokens past the prompt; the one after those it is given.
        active = [
            i for i, text in enumerate(texts) if text.prompt_length + done + k < len(text.tokens)
        ]
        spans = [
            slice(text.prompt_length + done - 1 if done else 0, text.prompt_length + done)
            for text in (texts[i] for i in active)
        ]
        drafts = _propose(drafter, [texts[i] for i in active], spans, block_table[active])
        for i, span, draft in zip(active, spans, drafts, strict=True):
            truth = texts[i].tokens[span.stop + 1 :]
            equal = takewhile(lambda pair: pair[0] == pair[1], zip(draft, truth, strict=False))
            steps[i].append(Step(done + 1, k, len(list(equal))))
    return steps


def _propose(
    drafter: Drafter, texts: Sequence[Text], spans: Sequence[slice], block_table: Tensor
) -> list[list[int]]:
    """Drafts after the next token of each span of a text."""
    lengths = torch.tensor([0, *(span.stop - span.start for span in spans)])
    chosen = list(zip(texts, spans, strict=True))
    num_taps = len(texts[0].taps)
    drafts = drafter.propose(
        torch.tensor([token for text, span in chosen for token in text.tokens[span]]),
        torch.cat([torch.arange(span.start, span.stop) for span in spans]),
        [torch.cat([text.taps[i][span] for text, span in chosen]) for i in range(num_taps)],
        lengths.cumsum(0).int(),
        torch.zeros(len(texts), dtype=torch.int32),
        torch.tensor([text.tokens[span.stop] for text, span in chosen]),
        block_table.contiguous(),
    )
    return drafts.token_ids.tolist()


def _visited(steps: Sequence[Step]) -> list[Step]:
    """The steps of all that decoding takes: each emits its accepted drafts and one more token."""
    visited, at = [], 0
    while at < len(steps):
        visited.append(steps[at])
        at += steps[at].num_accepted + 1
    return visited


def _drafter(weights: str, kv_dtype: str, k: int, requests: int, rows: int, length: int) -> Drafter:
    return Drafter.from_pretrained(
        bundled_drafter(), num_speculative_tokens=k, max_requests=requests, max_target_rows=rows,
        num_blocks=num_blocks(requests, length, k, BLOCK_SIZE), block_size=BLOCK_SIZE,
        dtype=torch.float32, weights=weights, kv_dtype=kv_dtype,
    )  # fmt: skip


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--k", type=positive_int, default=5, help="tokens drafted in each step")
    parser.add_argument("--prompts", type=positive_int, default=64, help="how many")
    parser.add_argument("--max-tokens", type=positive_int, default=200, help="new tokens for each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
