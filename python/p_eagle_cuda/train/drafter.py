"""Train the P-EAGLE drafter on its target's continuations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ..errors import ConfigError
from ..statistics import Acceptance, Step, acceptance, before_loop
from .checkpointing import generator_for, read_checkpoint, train
from .cod import on_policy, sample_rows, visible
from .continuations import held_out_text
from .corpus import Corpus
from .export import file_sha256, load_target
from .model import Drafter, Shape, Target, initialise
from .muon import Muon
from .target import windows
from .tokenizer import MASK_ID, encode, load_tokenizer


@dataclass(frozen=True)
class DrafterRecipe:
    """The paper's recipe at the size of two CPU cores.

    `depths` counts the real row; `rate` is r of the drop sampling. One step in `corpus_every` sees
    corpus text instead of continuations, none in the last `on_policy_tail` of the steps.
    `soft_share` of the loss is the divergence from the target's distribution, the rest the
    cross-entropy of its first choice.
    """

    seed: int = 0
    steps: int = 1000
    batch: int = 4
    window: int = 256
    depths: int = 8
    rate: float = 0.8
    corpus_every: int = 4
    on_policy_tail: float = 0.2
    soft_share: float = 0.5
    warmup: int = 50
    matrix_lr: float = 3e-3
    other_lr: float = 1e-3
    compile: bool = False


def train_drafter(
    folder: Path, corpus: Corpus, recipe: DrafterRecipe, shape: Shape, save_every: int = 200
) -> Drafter:
    """Train the drafter, or resume it, and leave `drafter.ckpt` in `folder`.

    Raises:
        CheckpointError: An earlier stage has not run, or a checkpoint was made with other settings
            or for another target.
        ConfigError: The continuations are shorter than the window.
    """
    target = load_target(folder / "target", shape)
    target_sha256 = file_sha256(folder / "target" / "model.safetensors")
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokens = encode(tokenizer, (source.text for source in corpus.training))
    continuations = load_continuations(folder, target_sha256, recipe.window)
    evaluation = held_out_text(folder, corpus, shape)

    drafter = Drafter(shape)
    start_from_target(drafter, target, generator_for(recipe.seed, "drafter-init", 0))
    forward = torch.compile(drafter, dynamic=False) if recipe.compile else drafter

    def step_loss(step: int) -> tuple[Tensor, int]:
        generator = generator_for(recipe.seed, "drafter", step)
        tail = step >= recipe.steps * (1 - recipe.on_policy_tail)
        if step % recipe.corpus_every == recipe.corpus_every - 1 and not tail:
            text = windows(tokens, recipe.batch, recipe.window, generator)
        else:
            chosen = torch.randint(len(continuations), (recipe.batch,), generator=generator)
            text = continuations[chosen, : recipe.window].long()
        anchors, depths = sample_rows(recipe.window - 1, recipe.depths, recipe.rate, generator)
        loss = drafter_loss(forward, target, text, anchors, depths, recipe.soft_share)
        return loss, text.numel()

    train(
        path=folder / "drafter.ckpt",
        model=drafter,
        optimizers=drafter_optimizers(drafter, recipe),
        step_loss=step_loss,
        steps=recipe.steps,
        warmup=recipe.warmup,
        hyperparameters={
            **asdict(recipe),
            **asdict(shape),
            "corpus_sha256": corpus.sha256(),
            "target_sha256": target_sha256,
        },
        save_every=save_every,
        report=lambda step: describe(*evaluate(drafter, target, evaluation, drafted=5)),
    )
    return drafter


def load_continuations(folder: Path, target_sha256: str, window: int) -> Tensor:
    """The continuations in `folder`, int16 [N, T], after checking whose they are.

    Raises:
        CheckpointError: They are missing.
        ConfigError: They are another target's, or shorter than `window`.
    """
    path = folder / "continuations.ckpt"
    saved = read_checkpoint(path, "continuations")
    found = saved["settings"]["target_sha256"]
    if found != target_sha256:
        raise ConfigError(
            f"{path}: was written by the target with sha256 {found[:12]}, "
            f"expected {target_sha256[:12]}; run the stage `continuations` again"
        )
    tokens: Tensor = saved["tokens"]
    if tokens.shape[1] < window:
        raise ConfigError(f"{path}: texts have {tokens.shape[1]} tokens, the window is {window}")
    return tokens


def start_from_target(drafter: Drafter, target: Target, generator: torch.Generator) -> None:
    """Give a fresh drafter everything of the target that fits.

    The embedding, the head, the final norm and the last layers are copied; `fc` passes on the last
    tap; the rest is random.
    """
    shape = drafter.shape
    initialise(drafter, shape.drafter_layers, generator)
    with torch.no_grad():
        drafter.mask_hidden.normal_(generator=generator)
        drafter.fc.weight[:, -shape.hidden_size :] += torch.eye(shape.hidden_size)
        drafter.embed_tokens.weight.copy_(target.embed_tokens.weight)
        drafter.lm_head.weight.copy_(target.embed_tokens.weight)
        drafter.norm.weight.copy_(target.norm.weight)
    for layer, copied in zip(
        reversed(list(drafter.layers.values())), reversed(list(target.layers)), strict=False
    ):
        layer.load_state_dict(copied.state_dict())


def drafter_optimizers(drafter: Drafter, recipe: DrafterRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest, which starts out trained."""
    matrices = [p for n, p in drafter.named_parameters() if p.dim() == 2 and "layer" in n]
    others = [p for n, p in drafter.named_parameters() if p.dim() != 2 or "layer" not in n]
    return [
        torch.optim.AdamW(
            others, recipe.other_lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        ),
        Muon(matrices, recipe.matrix_lr, weight_decay=0.01),
    ]


def drafter_inputs(text: Tensor, anchors: Tensor, depths: Tensor) -> Tensor:
    """Token ids [B, R] of the rows: the token after a real row, the mask token on mask rows."""
    following = text[:, (anchors + 1).clamp(max=text.shape[1] - 1)]
    return torch.where(depths == 0, following, MASK_ID)


def drafter_loss(
    forward: Callable[..., Tensor],
    target: Target,
    text: Tensor,
    anchors: Tensor,
    depths: Tensor,
    soft_share: float,
) -> Tensor:
    """Mean loss over the rows of a text [B, T] that greedy decoding could reach.

    Args:
        forward: The drafter.
        target: Labels are its choices after the same text, not the text's tokens.
        text: Token ids [B, T].
        anchors: Of the rows, [R], the real ones 0, 1, ... first.
        depths: Of the rows, [R].
        soft_share: Weight of the divergence from the target's distribution.
    """
    with torch.no_grad():
        target_logits, taps = target.run(text)
    positions = anchors + depths
    labels = target_logits[:, positions + 1]
    argmax = target_logits.argmax(-1)
    used = on_policy(text, argmax, positions, depths)
    num_real = int((depths == 0).sum())
    logits = forward(
        drafter_inputs(text, anchors, depths),
        taps[:, :num_real].contiguous(),
        positions,
        visible(anchors, depths),
    )[used]
    hard = F.cross_entropy(logits, argmax[:, positions + 1][used])
    soft = F.kl_div(logits.log_softmax(-1), labels[used].softmax(-1), reduction="batchmean")
    return soft_share * soft + (1 - soft_share) * hard


def evaluate(
    drafter: Drafter, target: Target, text: Tensor, drafted: int, prompt: int = 48
) -> tuple[Acceptance, Acceptance]:
    """Acceptance over the target's own greedy texts [N, T], and over them before they loop.

    Args:
        drafter: With float32 weights.
        target: The model that wrote the texts.
        text: Token ids, the first `prompt` of which were given.
        drafted: K.
        prompt: Tokens of each prompt.
    """
    steps, early = [], []
    for ids, own in zip(text.tolist(), replay(drafter, target, text, drafted, prompt), strict=True):
        steps += own
        early += before_loop(ids[prompt:], own)
    return acceptance(steps, drafted), acceptance(early, drafted)


@torch.inference_mode()
def replay(
    drafter: Drafter, target: Target, text: Tensor, drafted: int, prompt: int
) -> list[list[Step]]:
    """The steps that greedy speculative decoding takes through texts that the target wrote.

    Such a text is what decoding would produce whatever is drafted, so one dense pass over every
    (anchor, depth) gives every draft, and decoding is a walk over the anchors. It stops where
    fewer than `drafted` tokens are left.
    """
    num_anchors = text.shape[1] - 1 - drafted
    anchors = torch.arange(num_anchors).repeat(drafted)
    depths = torch.arange(drafted).repeat_interleave(num_anchors)
    positions = anchors + depths
    mask = visible(anchors, depths)
    drafts = []
    for rows in text.split(8):
        taps = target.run(rows)[1][:, :num_anchors]
        logits = drafter(drafter_inputs(rows, anchors, depths), taps, positions, mask)
        drafts.append(logits.argmax(-1))
    right = (torch.cat(drafts) == text[:, positions + 2]).view(-1, drafted, num_anchors)
    walks = []
    for accepted in right.cumprod(1).sum(1).tolist():
        steps = []
        anchor = prompt - 1
        while anchor < num_anchors:
            # The token after the anchor, the target's own, had already been generated.
            steps.append(Step(anchor + 2 - prompt, drafted, accepted[anchor]))
            anchor += accepted[anchor] + 1
        walks.append(steps)
    return walks


def describe(overall: Acceptance, early: Acceptance) -> str:
    """One line with the numbers that tell how far a drafter has come."""

    def line(part: Acceptance) -> str:
        shares = " ".join(f"{share:.3f}" for share in part.per_position)
        return f"{part.length or 1:.3f} ({shares})"

    return f"acceptance length {line(overall)}, before loops {line(early)}"
