"""The target's own continuations of corpus windows: the text that a drafter has to predict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import trange

from ..errors import ConfigError
from .checkpointing import check_same, generator_for, read_checkpoint, write_atomically
from .corpus import Corpus, held_out_prompts
from .export import file_sha256, load_target
from .model import KvCache, Shape, Target
from .target import windows
from .tokenizer import encode, load_tokenizer

# A text loops when its last tokens, at least this many, repeat what stood one period earlier.
_LOOP_TOKENS = 16
_LONGEST_PERIOD = 32


@dataclass(frozen=True)
class ContinuationRecipe:
    """How much text to write and how.

    The text is greedy but for rare branches: a token is sampled with probability `branch_rate`,
    and with `loop_branch_rate` while the text loops, which a small target's greedy text does for
    ever once it has begun. The rows that a branch spoils are left out of the drafter's loss.
    """

    seed: int = 0
    batches: int = 16
    batch: int = 256
    length: int = 256
    shortest_prompt: int = 24
    longest_prompt: int = 96
    branch_rate: float = 0.02
    loop_branch_rate: float = 0.5
    temperature: float = 0.8


def write_continuations(
    folder: Path, corpus: Corpus, recipe: ContinuationRecipe, shape: Shape
) -> Tensor:
    """Write `continuations.ckpt` in `folder`, continuing where a killed run stopped.

    Returns:
        Token ids, int16 [batches * batch, length].

    Raises:
        CheckpointError: No exported target, or a file made with other settings or another target.
    """
    target = load_target(folder / "target", shape)
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokens = encode(tokenizer, (source.text for source in corpus.training))
    path = folder / "continuations.ckpt"
    settings = {
        **asdict(recipe),
        "target_sha256": file_sha256(folder / "target" / "model.safetensors"),
    }
    written = torch.empty(0, recipe.length, dtype=torch.int16)
    if path.exists():
        saved = read_checkpoint(path, "continuations")
        check_same(path, saved["settings"], settings)
        written = saved["tokens"]
    done = len(written) // recipe.batch
    for index in trange(done, recipe.batches, initial=done, total=recipe.batches, desc="text"):
        generator = generator_for(recipe.seed, "continuations", index)
        spread = recipe.longest_prompt - recipe.shortest_prompt + 1
        prompt = recipe.shortest_prompt + int(torch.randint(spread, (), generator=generator))
        prompts = windows(tokens, recipe.batch, prompt, generator)
        text = continue_text(target, prompts, recipe, generator)
        written = torch.cat([written, text.to(torch.int16)])
        write_atomically(path, {"tokens": written, "settings": settings})
    return written


@torch.inference_mode()
def continue_text(
    target: Target,
    prompts: Tensor,
    recipe: ContinuationRecipe,
    generator: torch.Generator | None,
) -> Tensor:
    """Extend prompts [B, P] to [B, recipe.length]; purely greedy without a generator."""
    batch, start = prompts.shape
    text = torch.empty(batch, recipe.length, dtype=torch.long)
    text[:, :start] = prompts
    cache = KvCache(target.shape, batch, recipe.length)
    new = prompts
    for position in range(start, recipe.length):
        logits = target(new, cache)[:, -1]
        chosen = logits.argmax(-1)
        if generator is not None:
            looping = repeated_tail(text[:, :position]) > 0
            rates = torch.where(looping, recipe.loop_branch_rate, recipe.branch_rate)
            branches = torch.rand(batch, generator=generator) < rates
            weights = (logits / recipe.temperature).softmax(-1)
            sampled = torch.multinomial(weights, 1, generator=generator)[:, 0]
            chosen = torch.where(branches, sampled, chosen)
        text[:, position] = chosen
        new = chosen[:, None]
    return text


def repeated_tail(text: Tensor) -> Tensor:
    """Int64 [B]: how many last tokens of each text [B, T] repeat what stood one period earlier.

    The period is the shortest of at most 32 that repeats at least 16 tokens and at least one whole
    period; zero where there is none.
    """
    length = text.shape[1]
    tail = torch.zeros(len(text), dtype=torch.long)
    for period in range(_LONGEST_PERIOD, 0, -1):
        span = max(_LOOP_TOKENS, period)
        if length >= span + period:
            recent, earlier = text[:, -span:], text[:, length - span - period : length - period]
            tail[(recent == earlier).all(1)] = span
    return tail


def held_out_text(
    folder: Path, corpus: Corpus, shape: Shape, prompt: int = 48, length: int = 256
) -> Tensor:
    """Greedy continuations [N, length] of held-out functions, cut to `prompt` tokens each."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    encoded = [
        ids[:prompt]
        for text in held_out_prompts(corpus, limit=64, lines=8)
        if len(ids := tokenizer.encode(text).ids) >= prompt
    ]
    if not encoded:
        raise ConfigError(f"held-out text: no function has {prompt} tokens to start from")
    target = load_target(folder / "target", shape)
    recipe = ContinuationRecipe(length=length)
    return continue_text(target, torch.tensor(encoded), recipe, None)
