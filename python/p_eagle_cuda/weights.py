"""Weights of a drafter, packed the way the ops take them, from any known checkpoint format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from p_eagle_cuda.checkpoint import Checkpoint
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.errors import CheckpointError
from p_eagle_cuda.rope import rope_table

# Tensors that some trainers save and no drafter needs: rotary tables, copies of the target's last
# layers (speculators), and the norm that vLLM allocates in every layer but uses in the first only.
_NOT_NEEDED = re.compile(
    r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)"
    r"|verifier_(norm|lm_head)\.weight"
    r"|layers\.[1-9]\d*\.hidden_norm\.weight"
)


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer; all tensors of one dtype on one device.

    Hin is 2H in the first layer of a drafter, where embedding and hidden state are joined, and H
    everywhere else.
    """

    input_norm: Tensor  # [H]
    hidden_norm: Tensor | None  # [H], only in the first layer of a drafter
    qkv: Tensor  # [(Nq + 2 Nkv) D, Hin], rows of queries, then keys, then values
    qkv_bias: Tensor | None  # [(Nq + 2 Nkv) D]
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    o: Tensor  # [H, Nq D]
    o_bias: Tensor | None  # [H]
    post_norm: Tensor  # [H]
    gate_up: Tensor  # [2I, H], gate rows, then up rows
    down: Tensor  # [H, I]


@dataclass(frozen=True)
class DrafterWeights:
    """A drafter; all float tensors but `rope` of one dtype, everything on one device."""

    embedding: Tensor  # [V, H]
    fc: Tensor  # [H, n Ht], n taps
    input_norm: Tensor | None  # [n Ht], with norm_before_fc
    fc_norms: Tensor | None  # [n, Ht], with fc_norm
    mask_hidden: Tensor  # [H], already through the norms before fc, and fc
    # The first layer's q, k and v of a mask row, not rotated: the input of all of them is the same.
    mask_heads: Tensor  # [(Nq + 2 Nkv) D] float32, float64 for float64
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # [H]
    lm_head: Tensor  # [Vd, H]
    draft_to_target: Tensor | None  # [Vd] int64 target token ids; None when they are the same
    rope: Tensor  # [max_position, D] float32, cosines, then sines


class LayerShape(Protocol):
    """What decides the shapes of a decoder layer; drafter and target configurations have it."""

    @property
    def hidden_size(self) -> int:
        """H."""

    @property
    def intermediate_size(self) -> int:
        """I."""

    @property
    def num_heads(self) -> int:
        """Nq."""

    @property
    def num_kv_heads(self) -> int:
        """Nkv."""

    @property
    def head_dim(self) -> int:
        """D."""

    @property
    def attention_bias(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised per head."""


def load_layer(
    checkpoint: Checkpoint,
    prefix: str,
    shape: LayerShape,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    joins_embedding: bool = False,
) -> LayerWeights:
    """Read one Llama-type layer and pack it.

    Args:
        checkpoint: an open checkpoint.
        prefix: what stands before `.self_attn`, e.g. `model.layers.0`.
        shape: sizes, and which optional tensors there are. With `attention_bias` the biases of
            queries, keys and values are required; one of the output projection is taken if it is
            there, because Llama has it and Qwen2 has not.
        dtype: of all tensors returned.
        device: of all tensors returned.
        joins_embedding: whether this is a drafter's first layer, which takes embedding and hidden
            state side by side and has a `hidden_norm` for the latter.

    Raises:
        CheckpointError: a tensor is missing or is not what it should be.
    """
    H, D = shape.hidden_size, shape.head_dim
    q_rows, kv_rows = shape.num_heads * D, shape.num_kv_heads * D

    def read(name: str, *size: int) -> Tensor:
        return checkpoint.read(f"{prefix}.{name}", size, dtype=dtype, device=device)

    def pack(names: Sequence[str], rows: Sequence[int], *columns: int) -> Tensor:
        packed = torch.empty(sum(rows), *columns, dtype=dtype, device=device)
        for name, part in zip(names, packed.split_with_sizes(rows), strict=True):
            checkpoint.read_into(f"{prefix}.{name}", part)
        return packed

    projections = [f"self_attn.{name}_proj" for name in "qkv"]
    qkv_rows = (q_rows, kv_rows, kv_rows)
    has_o_bias = shape.attention_bias and f"{prefix}.self_attn.o_proj.bias" in checkpoint
    return LayerWeights(
        input_norm=read("input_layernorm.weight", H),
        hidden_norm=read("hidden_norm.weight", H) if joins_embedding else None,
        qkv=pack(
            [f"{name}.weight" for name in projections], qkv_rows, 2 * H if joins_embedding else H
        ),
        qkv_bias=(
            pack([f"{name}.bias" for name in projections], qkv_rows)
            if shape.attention_bias
            else None
        ),
        q_norm=read("self_attn.q_norm.weight", D) if shape.qk_norm else None,
        k_norm=read("self_attn.k_norm.weight", D) if shape.qk_norm else None,
        o=read("self_attn.o_proj.weight", H, q_rows),
        o_bias=read("self_attn.o_proj.bias", H) if has_o_bias else None,
        post_norm=read("post_attention_layernorm.weight", H),
        gate_up=pack(
            ["mlp.gate_proj.weight", "mlp.up_proj.weight"], [shape.intermediate_size] * 2, H
        ),
        down=read("mlp.down_proj.weight", H, shape.intermediate_size),
    )


def load_drafter_weights(
    path: str | Path,
    config: DrafterConfig,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    target_embedding: Tensor | None = None,
    target_lm_head: Tensor | None = None,
    max_position: int | None = None,
    progress: bool = True,
) -> DrafterWeights:
    """Read a drafter checkpoint of any known format.

    Tensor names are those of the AWS checkpoints: `embed_tokens`, `fc`, `mask_hidden`,
    `midlayer.*` or `layers.0.*`, `layers.1.*` and so on, `norm`, `lm_head`, `d2t`, `t2d`, and
    `input_norm`, `fc_norm.0` and so on with the norms before fc. A leading `model.` (NeMo
    Automodel) is ignored. As in vLLM, an embedding or output head that the checkpoint lacks is the
    target's; only with `tie_word_embeddings` and an embedding of its own is the head that one.

    `mask_hidden`, the shared hidden state of mask rows, is stored as wide as the joined taps and
    goes through the same norms and fc as real taps, as vLLM 0.33 (`combine_hidden_states` in
    v1/spec_decode/llm_base_proposer.py) and the speculators trainer do. It is projected once, here,
    in float32 (float64 for a float64 drafter), and rounded once.

    Args:
        path: checkpoint folder, or one `.safetensors` file.
        config: its configuration.
        dtype: of the weights returned; by default that of the checkpoint's `fc`.
        device: of everything returned.
        target_embedding: `[V, H]`, for a checkpoint without `embed_tokens`; not copied where it
            has the right dtype and device already.
        target_lm_head: `[Vd, H]`, for a checkpoint without `lm_head`; likewise.
        max_position: rows of the rope table, by default `config.max_position_embeddings`.
        progress: whether to show a progress bar for a large checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit `config`.
    """
    H, taps_width = config.hidden_size, config.num_taps * config.target_hidden_size
    if max_position is None:
        max_position = config.max_position_embeddings
    with Checkpoint.open(path, rename=_canonical_name, progress=progress) as checkpoint:
        if dtype is None:
            dtype = checkpoint.dtype("fc.weight")

        def read(name: str, *size: int, meaning: str = "") -> Tensor:
            return checkpoint.read(name, size, dtype=dtype, device=device, meaning=meaning)

        taps = f"{config.num_taps} taps of width {config.target_hidden_size}"
        fc = read("fc.weight", H, taps_width, meaning=taps)
        input_norm = read("input_norm.weight", taps_width) if config.norm_before_fc else None
        fc_norms = None
        if config.fc_norm:
            fc_norms = torch.empty(
                config.num_taps, config.target_hidden_size, dtype=dtype, device=device
            )
            for tap, norm in enumerate(fc_norms):
                checkpoint.read_into(f"fc_norm.{tap}.weight", norm)
        mask_taps = _read_mask_taps(checkpoint, taps_width, dtype, device)
        mask_hidden = _project(mask_taps, fc, input_norm, fc_norms, config.rms_norm_eps)

        layers = tuple(
            load_layer(
                checkpoint,
                f"layers.{layer}",
                config,
                dtype=dtype,
                device=device,
                joins_embedding=layer == 0,
            )
            for layer in range(config.num_layers)
        )
        norm = read("norm.weight", H)

        has_embedding = "embed_tokens.weight" in checkpoint
        embedding = (
            read("embed_tokens.weight", config.vocab_size, H)
            if has_embedding
            else _of_target(
                checkpoint, "embed_tokens.weight", target_embedding, (config.vocab_size, H)
            ).to(device=device, dtype=dtype)
        )
        head_shape = (config.draft_vocab_size, H)
        if "lm_head.weight" in checkpoint:
            lm_head = read("lm_head.weight", *head_shape)
        elif config.tie_word_embeddings and has_embedding:
            lm_head = embedding
            if embedding.shape != head_shape:
                raise CheckpointError(
                    f"{checkpoint.path}: tensor `lm_head.weight` is missing, expected one with "
                    f"shape {list(head_shape)}, because the embedding has {config.vocab_size} rows"
                )
        else:
            lm_head = _of_target(checkpoint, "lm_head.weight", target_lm_head, head_shape).to(
                device=device, dtype=dtype
            )
        draft_to_target = _read_vocabulary_map(checkpoint, config)
        checkpoint.check_all_read(lambda name: _NOT_NEEDED.fullmatch(name) is not None)

    if draft_to_target is not None:
        draft_to_target = draft_to_target.to(device)
    return DrafterWeights(
        embedding=embedding,
        fc=fc,
        input_norm=input_norm,
        fc_norms=fc_norms,
        mask_hidden=mask_hidden,
        mask_heads=_mask_heads(
            layers[0], embedding[config.mask_token_id], mask_hidden, config.rms_norm_eps
        ),
        layers=layers,
        norm=norm,
        lm_head=lm_head,
        draft_to_target=draft_to_target,
        rope=rope_table(config.rope, config.head_dim, max_position).to(device),
    )


def _canonical_name(stored_name: str) -> str:
    name = stored_name.removeprefix("model.")
    return f"layers.0.{name.removeprefix('midlayer.')}" if name.startswith("midlayer.") else name


def _read_mask_taps(
    checkpoint: Checkpoint, width: int, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """`mask_hidden` as a vector; every trainer adds other leading dimensions of size 1."""
    shape: tuple[int, ...] = (1, 1, width)
    if "mask_hidden" in checkpoint:
        stored = checkpoint.shape("mask_hidden")
        if stored and stored[-1] == width and set(stored[:-1]) <= {1}:
            shape = stored
    return checkpoint.read("mask_hidden", shape, dtype=dtype, device=device).flatten()


def _project(
    taps: Tensor, fc: Tensor, input_norm: Tensor | None, fc_norms: Tensor | None, eps: float
) -> Tensor:
    """The norms that there are, then fc, of one row of joined taps `[n Ht]`."""
    dtype = torch.promote_types(fc.dtype, torch.float32)
    x = taps.to(dtype)
    if input_norm is not None:
        x = x * (x.square().mean() + eps).rsqrt() * input_norm.to(dtype)
    if fc_norms is not None:
        chunks = x.view_as(fc_norms)
        scale = (chunks.square().mean(dim=1, keepdim=True) + eps).rsqrt()
        x = (chunks * scale * fc_norms.to(dtype)).flatten()
    return (fc.to(dtype) @ x).to(fc.dtype)


def _mask_heads(
    first: LayerWeights, mask_embedding: Tensor, mask_hidden: Tensor, eps: float
) -> Tensor:
    """Queries, keys and values of a mask row in the first layer, before they are rotated."""
    wide = torch.promote_types(mask_hidden.dtype, torch.float32)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        x = x.to(wide)
        return x * (x.square().mean() + eps).rsqrt() * weight.to(wide)

    assert first.hidden_norm is not None, "the first layer of a drafter norms the hidden state"
    x = torch.cat([norm(mask_embedding, first.input_norm), norm(mask_hidden, first.hidden_norm)])
    heads = first.qkv.to(wide) @ x
    return heads if first.qkv_bias is None else heads + first.qkv_bias.to(wide)


def _of_target(
    checkpoint: Checkpoint, name: str, tensor: Tensor | None, shape: tuple[int, int]
) -> Tensor:
    missing = f"{checkpoint.path}: tensor `{name}` is missing"
    if tensor is None:
        raise CheckpointError(
            f"{missing}, expected one with shape {list(shape)} or the target's in its place"
        )
    if tensor.shape != shape:
        raise CheckpointError(
            f"{missing} and the target's in its place has shape {list(tensor.shape)}, expected "
            f"{list(shape)}"
        )
    return tensor


def _read_vocabulary_map(checkpoint: Checkpoint, config: DrafterConfig) -> Tensor | None:
    """Target token ids `[Vd]` int64 of the draft vocabulary, None when they are the same.

    A checkpoint stores them as offsets `d2t`, target = draft + d2t[draft], and may add the set of
    target tokens that have a draft token as flags `t2d` `[V]`.
    """
    V, Vd = config.vocab_size, config.draft_vocab_size
    targets = torch.arange(Vd)
    if "d2t" in checkpoint:
        targets = targets + checkpoint.read_integers("d2t", (Vd,))
        outside = ((targets < 0) | (targets >= V)).nonzero()
        if len(outside):
            draft = int(outside[0])
            raise CheckpointError(
                f"{checkpoint.path}: tensor `d2t` maps draft token {draft} to target token "
                f"{int(targets[draft])}, expected one of 0 to {V - 1}"
            )
        num_targets = len(set(targets.tolist()))
        if num_targets != Vd:
            raise CheckpointError(
                f"{checkpoint.path}: tensor `d2t` maps {Vd} draft tokens to {num_targets} target "
                "tokens, expected as many"
            )
    if "t2d" in checkpoint:
        flagged = checkpoint.read_integers("t2d", (V,)).nonzero().flatten()
        if not torch.equal(flagged, targets.sort().values):
            raise CheckpointError(
                f"{checkpoint.path}: tensor `t2d` flags {len(flagged)} target tokens, expected "
                f"the {Vd} that the draft vocabulary maps to"
            )
    return None if torch.equal(targets, torch.arange(Vd)) else targets
