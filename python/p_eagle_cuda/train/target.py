"""Train the target on the corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .checkpointing import generator_for, train
from .corpus import Corpus
from .model import Shape, Target, initialise
from .muon import Muon
from .tokenizer import encode, load_tokenizer


@dataclass(frozen=True)
class TargetRecipe:
    """How the target is trained; one step sees `batch_tokens` tokens.

    One step in eight uses windows of `long_window` tokens, so that late positions are not foreign
    to the model; they cost more than short ones because attention is quadratic.
    """

    seed: int = 0
    steps: int = 2000
    batch_tokens: int = 4096
    window: int = 256
    long_window: int = 1024
    warmup: int = 100
    matrix_lr: float = 5e-3
    other_lr: float = 3e-3
    compile: bool = False


def train_target(
    folder: Path, corpus: Corpus, recipe: TargetRecipe, shape: Shape, save_every: int = 200
) -> Target:
    """Train the target, or resume it, and leave `target.ckpt` in `folder`.

    Raises:
        CheckpointError: No tokenizer in `folder`, or a checkpoint made with other settings.
    """
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokens = encode(tokenizer, (source.text for source in corpus.training))
    held_out = encode(tokenizer, (source.text for source in corpus.held_out))
    model = Target(shape)
    initialise(model, shape.target_layers, generator_for(recipe.seed, "target-init", 0))
    forward = torch.compile(model, dynamic=False) if recipe.compile else model

    def step_loss(step: int) -> tuple[Tensor, int]:
        generator = generator_for(recipe.seed, "target", step)
        window = recipe.long_window if step % 8 == 7 else recipe.window
        batch = windows(tokens, recipe.batch_tokens // window, window + 1, generator)
        return next_token_loss(forward, batch), recipe.batch_tokens

    def report(step: int) -> str:
        return "held-out loss {:.4f}, accuracy {:.4f}".format(*evaluate(model, held_out))

    train(
        path=folder / "target.ckpt",
        model=model,
        optimizers=target_optimizers(model, recipe),
        step_loss=step_loss,
        steps=recipe.steps,
        warmup=recipe.warmup,
        hyperparameters={
            **asdict(recipe),
            **asdict(shape),
            "corpus_sha256": corpus.sha256(),
        },
        save_every=save_every,
        report=report,
    )
    return model


def target_optimizers(model: nn.Module, recipe: TargetRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "layers" not in n]
    return [
        torch.optim.AdamW(
            others, recipe.other_lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True
        ),
        Muon(matrices, recipe.matrix_lr, weight_decay=0.05),
    ]


def windows(tokens: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """`count` random stretches [count, length] of a token stream."""
    starts = torch.randint(len(tokens) - length + 1, (count, 1), generator=generator)
    return tokens[starts + torch.arange(length)]


def next_token_loss(forward: Callable[..., Tensor], batch: Tensor) -> Tensor:
    """Mean cross-entropy of each token of [B, T + 1] given those before it."""
    return F.cross_entropy(forward(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: Target, tokens: Tensor, window: int = 256) -> tuple[float, float]:
    """Mean loss and accuracy over at most 96 windows, evenly spread over a token stream."""
    length = min(window + 1, len(tokens))
    starts = torch.linspace(0, len(tokens) - length, min(96, len(tokens) // length)).long()
    batch = tokens[starts[:, None] + torch.arange(length)]
    logits = torch.cat([model(rows[:, :-1]) for rows in batch.split(16)])
    loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    return loss.item(), (logits.argmax(-1) == batch[:, 1:]).float().mean().item()
