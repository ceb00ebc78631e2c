"""The training loop shared by both models: progress, atomic checkpoints, exact resumption."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import CheckpointError

Hyperparameters = Mapping[str, Any]


def generator_for(seed: int, stage: str, step: int) -> torch.Generator:
    """The random stream of one step: a function of its arguments, whatever ran before."""
    digest = hashlib.sha256(f"{seed}/{stage}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def write_atomically(path: Path, content: object) -> None:
    """`torch.save` that leaves either the old file or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def read_checkpoint(path: Path, stage: str) -> dict[str, Any]:
    """Read what a stage left behind.

    Raises:
        CheckpointError: The file is missing or is not a checkpoint.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: not found; run the stage `{stage}` first")
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    return content


def check_same(path: Path, found: Hyperparameters, expected: Hyperparameters) -> None:
    """Refuse to continue a run that was started with other settings.

    Raises:
        CheckpointError: Names the first setting that differs.
    """
    for name in sorted({*found, *expected}):
        old, new = found.get(name), expected.get(name)
        if old != new:
            raise CheckpointError(
                f"{path}: was made with {name}={old}, this run asks for {new}; "
                "use the same settings or another --out"
            )


def learning_rate(peak: float, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up to `peak`, then linear decay to zero after the last step."""
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup), 1.0)


def train(
    *,
    path: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step_loss: Callable[[int], tuple[Tensor, int]],
    steps: int,
    warmup: int,
    hyperparameters: Hyperparameters,
    save_every: int = 200,
    report: Callable[[int], str] | None = None,
) -> None:
    """Run `steps` optimiser steps, resuming from `path` when it exists.

    Ctrl-C finishes the step, writes a checkpoint and raises KeyboardInterrupt; a kill costs at
    most `save_every` steps. Either way the resumed run ends with the same bits.

    Args:
        path: The checkpoint: model, optimiser states, step and hyper-parameters.
        model: Trained in place.
        optimizers: Each group's initial `lr` is its peak.
        step_loss: From the step number to a loss and the tokens it stands for.
        steps: Of the whole schedule, not of this call.
        warmup: Steps of linear warm-up.
        hyperparameters: Everything that decides the result; a resumed run must agree with it.
        save_every: Steps between checkpoints.
        report: Called at every checkpoint; its text goes to the log.

    Raises:
        CheckpointError: `path` was made with other hyper-parameters.
    """
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    start = 0
    if path.exists():
        saved = read_checkpoint(path, "")
        check_same(path, saved["hyperparameters"], hyperparameters)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start = saved["step"]

    def save(step: int) -> None:
        write_atomically(
            path,
            {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
                "hyperparameters": dict(hyperparameters),
            },
        )

    average = 0.0
    tokens = 0
    began = time.monotonic()
    with _deferred_interrupt() as interrupted, _progress(path.stem, start, steps) as progress:
        for step in range(start, steps):
            for optimizer, rates in zip(optimizers, peaks, strict=True):
                for group, peak in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = learning_rate(peak, step, steps, warmup)
            loss, count = step_loss(step)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            tokens += count
            weight = max(0.02, 1 / (step - start + 1))
            average += weight * (loss.item() - average)
            rate = tokens / (time.monotonic() - began)
            progress.set_postfix_str(f"loss {average:.3f}, {rate:.0f} tok/s", refresh=False)
            progress.update()
            if (step + 1) % save_every == 0 or step + 1 == steps or interrupted():
                save(step + 1)
                if report:
                    progress.write(f"{path.stem} step {step + 1}: {report(step + 1)}")
            if interrupted():
                raise KeyboardInterrupt


def _progress(name: str, start: int, steps: int) -> tqdm[Any]:
    return tqdm(desc=name, initial=start, total=steps, unit="step", mininterval=1.0)


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Note SIGINT instead of raising it, so that no step stops half way."""
    seen = False

    def note(signum: int, frame: object) -> None:
        nonlocal seen
        seen = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, previous)
