"""A training at toy size, which the tests of the training share."""

from __future__ import annotations

from pathlib import Path

import torch

from p_eagle_cuda.train import continuations, drafter, model
from p_eagle_cuda.train import target as target_module

SHAPE = model.Shape(
    hidden_size=32,
    intermediate_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    target_layers=4,
    tap_layers=(1, 2, 3),
    max_positions=320,
)
TARGET = target_module.TargetRecipe(
    steps=6, batch_tokens=64, window=16, long_window=32, warmup=2, matrix_lr=1e-2
)
CONTINUATIONS = continuations.ContinuationRecipe(
    batches=2, batch=6, length=40, shortest_prompt=8, longest_prompt=12, branch_rate=0.1
)
DRAFTER = drafter.DrafterRecipe(steps=6, batch=2, window=40, depths=4, warmup=2, corpus_every=2)


def copy_stages(source: Path, destination: Path, *names: str) -> None:
    for name in names:
        for path in [source / name, *sorted((source / name).rglob("*"))]:
            if path.is_file():
                copied = destination / path.relative_to(source)
                copied.parent.mkdir(parents=True, exist_ok=True)
                copied.write_bytes(path.read_bytes())


def random_drafter(seed: int = 0) -> model.Drafter:
    """Weights large enough that what a row sees decides what it says."""
    generator = torch.Generator().manual_seed(seed)
    made = model.Drafter(SHAPE).double().requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    return made


def random_target(seed: int = 0) -> model.Target:
    generator = torch.Generator().manual_seed(seed)
    made = model.Target(SHAPE).requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    return made
