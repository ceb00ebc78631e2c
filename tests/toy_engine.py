"""A toy pair for the engine, whose fixtures are in `toy_engine_fixtures`."""

from __future__ import annotations

from pathlib import Path

from p_eagle_cuda.drafter import Drafter
from p_eagle_cuda.engine import SpeculativeEngine, max_target_rows, num_blocks
from p_eagle_cuda.target import Target

K, LENGTH = 3, 120
TAPS = (2, 4, 5)
PROMPTS = [[5, 6, 7], [1], list(range(40)), [3, 3], [9] * 20]


def make_drafter(
    folder: Path,
    lanes: int,
    k: int = K,
    length: int = LENGTH,
    num_drafts: int = 0,
    top_k: int = 1,
) -> Drafter:
    return Drafter.from_pretrained(
        folder, num_speculative_tokens=k, max_requests=lanes,
        max_target_rows=max_target_rows(lanes, k),
        num_blocks=num_blocks(lanes, length, max(k, num_drafts), 16), top_k=top_k,
    )  # fmt: skip


def plain(
    target: Target, prompts: list[list[int]], n: int, temperature: float = 0.0, seed: int = 0
) -> list[list[int]]:
    engine = SpeculativeEngine(target, None, max_requests=2, max_length=LENGTH)
    completions = engine.generate(prompts, n, temperature=temperature, seed=seed)
    return [c.token_ids for c in completions]
