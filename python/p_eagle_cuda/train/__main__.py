"""Command line of the training: `python -m p_eagle_cuda.train all --out DIR`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..arguments import OneLineParser, positive_int
from ..errors import ConfigError, PEagleError
from .continuations import ContinuationRecipe, held_out_text, write_continuations
from .corpus import held_out_prompts, load_corpus
from .drafter import DrafterRecipe, describe, evaluate, train_drafter
from .export import export_checkpoints, export_drafter, export_target, load_drafter, load_target
from .model import Shape
from .target import TargetRecipe, train_target
from .tokenizer import save_tokenizer, train_tokenizer

_STAGES = ("tokenizer", "target", "continuations", "drafter")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages asked for; the exit code is 2 when the request cannot be carried out."""
    options = _parser().parse_args(arguments)
    try:
        if options.threads:
            torch.set_num_threads(options.threads)
        _run(options)
    except (PEagleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the checkpoint", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.compile and shutil.which("g++") is None:
        raise ConfigError("--compile needs g++, which was not found on this machine")
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    corpus = load_corpus()
    for path, reason in corpus.skipped.items():
        print(f"left out {path}: {reason}", file=sys.stderr)
    stages = _STAGES if options.stage == "all" else (options.stage,)
    steps = {} if options.steps is None else {"steps": options.steps}
    for stage in stages:
        if stage == "tokenizer":
            tokenizer = train_tokenizer(source.text for source in corpus.training)
            save_tokenizer(tokenizer, folder / "tokenizer")
        elif stage == "target":
            target_recipe = replace(
                TargetRecipe(seed=options.seed, compile=options.compile), **steps
            )
            model = train_target(folder, corpus, target_recipe, shape, options.save_every)
            export_target(folder / "target", model, folder / "tokenizer")
        elif stage == "continuations":
            recipe = ContinuationRecipe(seed=options.seed)
            if options.batches is not None:
                recipe = replace(recipe, batches=options.batches)
            write_continuations(folder, corpus, recipe, shape)
        elif stage == "drafter":
            drafter_recipe = replace(
                DrafterRecipe(seed=options.seed, compile=options.compile), **steps
            )
            drafter = train_drafter(folder, corpus, drafter_recipe, shape, options.save_every)
            export_drafter(folder / "drafter", drafter, folder / "target", drafter_recipe.depths)
        elif stage == "export":
            export_checkpoints(folder, shape)
        elif stage == "evaluate":
            target = load_target(folder / "target", shape)
            drafter = load_drafter(folder / "drafter", folder / "target", shape)
            text = held_out_text(folder, corpus, shape)
            print(describe(*evaluate(drafter, target, text, options.k)))
        elif stage == "prompts":
            for prompt in held_out_prompts(corpus):
                print(json.dumps({"prompt": prompt}))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m p_eagle_cuda.train",
        description="Train a small target on the Python standard library, and its drafter.",
    )
    parser.add_argument(
        "stage",
        choices=["all", *_STAGES, "export", "evaluate", "prompts"],
        help="`all` runs the four stages in order; each continues from its checkpoint. "
        "`export` writes both models from their checkpoints, finished or not. "
        "`evaluate` prints the held-out acceptance, `prompts` the held-out prompts as JSON lines.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--seed", type=int, default=0, help="decides every random choice")
    parser.add_argument(
        "--steps", type=positive_int, help="optimiser steps, for a shorter trial run"
    )
    parser.add_argument(
        "--batches", type=positive_int, help="batches of continuations, for a trial run"
    )
    parser.add_argument("--k", type=positive_int, default=5, help="drafted tokens in `evaluate`")
    parser.add_argument(
        "--save-every", type=positive_int, default=200, help="steps between checkpoints"
    )
    parser.add_argument(
        "--threads", type=positive_int, help="CPU threads; part of what decides the bits"
    )
    parser.add_argument(
        "--compile", action="store_true", help="use torch.compile, a third faster; needs g++"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
