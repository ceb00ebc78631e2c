"""Weights of a drafter, packed the way the ops take them, from any known checkpoint format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from p_eagle_cuda.checkpoint import Checkpoint
from p_eagle_cuda.config import DrafterConfig, LayerShape
from p_eagle_cuda.errors import CheckpointError
from p_eagle_cuda.precision import (
    FP8_ACTIVATIONS,
    FP8_LAYERS,
    QUANTIZED,
    check_weight_precision,
    quantize_activations,
    quantize_rows,
)
from p_eagle_cuda.quantized_cache import QuantizedCache
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
    """One decoder layer; all tensors of one dtype on one device, but for quantised matrices.

    Hin is 2H in the first layer of a drafter, where embedding and hidden state are joined, and H
    everywhere else. A matrix may be float8_e4m3fn, with a float32 scale for each of its rows.
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
    qkv_scale: Tensor | None = None  # [(Nq + 2 Nkv) D]
    o_scale: Tensor | None = None  # [H]
    gate_up_scale: Tensor | None = None  # [2I]
    down_scale: Tensor | None = None  # [H]


@dataclass(frozen=True)
class DrafterWeights:
    """A drafter; all float tensors of one dtype, everything on one device.

    Exceptions are `rope`, `mask_heads`, and quantised matrices, as in `LayerWeights`.
    """

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
    fc_scale: Tensor | None = None  # [H]
    lm_head_scale: Tensor | None = None  # [Vd]
    fp8_activations: bool = False  # of the linear layers that are quantised, but for the head

    @property
    def dtype(self) -> torch.dtype:
        """The working dtype."""
        return self.norm.dtype


def load_layer(
    checkpoint: Checkpoint,
    prefix: str,
    shape: LayerShape,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    joins_embedding: bool = False,
    quantized: dict[str, Tensor] | None = None,
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
        quantized: if given, matrices are quantised: those that are here already are taken, by a
            name such as `model.layers.0.qkv`, and the others are added.

    Raises:
        CheckpointError: a tensor is missing or is not what it should be.
    """
    H, D = shape.hidden_size, shape.head_dim
    q_rows, kv_rows = shape.num_heads * D, shape.num_kv_heads * D

    def read(name: str, *size: int) -> Tensor:
        return checkpoint.read(f"{prefix}.{name}", size, dtype=dtype, device=device)

    def matrix(name: str, parts: Sequence[str], rows: Sequence[int], columns: int) -> _Matrix:
        tensors = {f"{prefix}.{p}.weight": n for p, n in zip(parts, rows, strict=True)}
        return _read_matrix(
            checkpoint, f"{prefix}.{name}", tensors, columns, dtype, device, quantized
        )

    projections = [f"self_attn.{name}_proj" for name in "qkv"]
    qkv_rows = (q_rows, kv_rows, kv_rows)
    qkv_bias = None
    if shape.attention_bias:
        parts = zip(projections, qkv_rows, strict=True)
        qkv_bias = torch.cat([read(f"{name}.bias", rows) for name, rows in parts])
    has_o_bias = shape.attention_bias and f"{prefix}.self_attn.o_proj.bias" in checkpoint
    qkv, qkv_scale = matrix("qkv", projections, qkv_rows, 2 * H if joins_embedding else H)
    o, o_scale = matrix("o", ["self_attn.o_proj"], [H], q_rows)
    gate_up, gate_up_scale = matrix(
        "gate_up", ["mlp.gate_proj", "mlp.up_proj"], [shape.intermediate_size] * 2, H
    )
    down, down_scale = matrix("down", ["mlp.down_proj"], [H], shape.intermediate_size)
    return LayerWeights(
        input_norm=read("input_layernorm.weight", H),
        hidden_norm=read("hidden_norm.weight", H) if joins_embedding else None,
        qkv=qkv,
        qkv_bias=qkv_bias,
        q_norm=read("self_attn.q_norm.weight", D) if shape.qk_norm else None,
        k_norm=read("self_attn.k_norm.weight", D) if shape.qk_norm else None,
        o=o,
        o_bias=read("self_attn.o_proj.bias", H) if has_o_bias else None,
        post_norm=read("post_attention_layernorm.weight", H),
        gate_up=gate_up,
        down=down,
        qkv_scale=qkv_scale,
        o_scale=o_scale,
        gate_up_scale=gate_up_scale,
        down_scale=down_scale,
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
    precision: str = "auto",
    quantized_cache: bool | str | Path = False,
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

    Quantised matrices are float8_e4m3fn with the scales of `precision.quantize_rows`, made of what
    the checkpoint stores, whatever the working dtype. What is computed from them here is computed
    as in a pass: a quantised drafter is the drafter whose checkpoint has the rounded matrices.

    Args:
        path: checkpoint folder, or one `.safetensors` file.
        config: its configuration.
        dtype: of the weights returned; by default that of the checkpoint's `fc`.
        device: of everything returned.
        target_embedding: `[V, H]`, for a checkpoint without `embed_tokens`; not copied where it
            has the right dtype and device already.
        target_lm_head: `[Vd, H]`, for a checkpoint without `lm_head`; likewise.
        max_position: rows of the rope table, by default `config.max_position_embeddings`.
        precision: of the matrices: "auto" for the working dtype; "bf16" for the same, if that is
            bfloat16; "fp8_head" to quantise the output head; "fp8" to quantise all, that is, fc,
            the projections of every layer and the head, but no embedding; "w8a8" for the same
            matrices and `fp8_activations`.
        quantized_cache: a folder, or True for the checkpoint's own, where quantised matrices are
            kept in a file and taken from it next time, once its checksum and that of the
            checkpoint were verified. One that does not fit or is damaged is made again, with a
            warning; so is a file that cannot be written. A head of the target's is not kept.
        progress: whether to show a progress bar for a large checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit `config`.
        ConfigError: there is no such precision for the working dtype.
    """
    H, taps_width = config.hidden_size, config.num_taps * config.target_hidden_size
    if max_position is None:
        max_position = config.max_position_embeddings
    with Checkpoint.open(path, rename=_canonical_name, progress=progress) as checkpoint:
        if dtype is None:
            dtype = checkpoint.dtype("fc.weight")
        check_weight_precision(precision, dtype)
        cache = _open_cache(checkpoint, precision, quantized_cache)
        cached = {} if cache is None else cache.read(device)
        quantized = dict(cached)
        for_layers = quantized if precision in FP8_LAYERS else None
        fp8_activations = precision in FP8_ACTIVATIONS
        for_head = quantized if precision in QUANTIZED else None

        def read(name: str, *size: int, meaning: str = "") -> Tensor:
            return checkpoint.read(name, size, dtype=dtype, device=device, meaning=meaning)

        taps = f"{config.num_taps} taps of width {config.target_hidden_size}"
        fc, fc_scale = _read_matrix(
            checkpoint, "fc", {"fc.weight": H}, taps_width, dtype, device, for_layers, taps
        )
        input_norm = read("input_norm.weight", taps_width) if config.norm_before_fc else None
        fc_norms = None
        if config.fc_norm:
            fc_norms = torch.empty(
                config.num_taps, config.target_hidden_size, dtype=dtype, device=device
            )
            for tap, norm in enumerate(fc_norms):
                checkpoint.read_into(f"fc_norm.{tap}.weight", norm)
        mask_taps = _read_mask_taps(checkpoint, taps_width, dtype, device)
        mask_hidden = project_mask_taps(
            mask_taps, fc, fc_scale, input_norm, fc_norms, config.rms_norm_eps, fp8_activations
        )

        layers = tuple(
            load_layer(
                checkpoint,
                f"layers.{layer}",
                config,
                dtype=dtype,
                device=device,
                joins_embedding=layer == 0,
                quantized=for_layers,
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
        Vd = config.draft_vocab_size
        head = "lm_head.weight"
        if head not in checkpoint and config.tie_word_embeddings and has_embedding:
            head = "embed_tokens.weight"
            if Vd != config.vocab_size:
                raise CheckpointError(
                    f"{checkpoint.path}: tensor `lm_head.weight` is missing, expected one with "
                    f"shape {[Vd, H]}, because the embedding has {config.vocab_size} rows"
                )
        if head == "embed_tokens.weight" and for_head is None:
            lm_head, lm_head_scale = embedding, None
        elif head in checkpoint:
            lm_head, lm_head_scale = _read_matrix(
                checkpoint, "lm_head", {head: Vd}, H, dtype, device, for_head
            )
        else:
            lm_head = _of_target(checkpoint, head, target_lm_head, (Vd, H))
            lm_head, lm_head_scale = (
                (lm_head.to(device=device, dtype=dtype), None)
                if for_head is None
                else quantize_rows(lm_head.to(device))
            )
        draft_to_target = _read_vocabulary_map(checkpoint, config)
        checkpoint.check_all_read(lambda name: _NOT_NEEDED.fullmatch(name) is not None)

    if cache is not None and quantized.keys() != cached.keys():
        cache.write(quantized)
    if draft_to_target is not None:
        draft_to_target = draft_to_target.to(device)
    return DrafterWeights(
        embedding=embedding,
        fc=fc,
        input_norm=input_norm,
        fc_norms=fc_norms,
        mask_hidden=mask_hidden,
        mask_heads=mask_row_heads(
            layers[0],
            embedding[config.mask_token_id],
            mask_hidden,
            config.rms_norm_eps,
            fp8_activations,
        ),
        layers=layers,
        norm=norm,
        lm_head=lm_head,
        draft_to_target=draft_to_target,
        rope=rope_table(config.rope, config.head_dim, max_position).to(device),
        fc_scale=fc_scale,
        lm_head_scale=lm_head_scale,
        fp8_activations=fp8_activations,
    )


def _canonical_name(stored_name: str) -> str:
    name = stored_name.removeprefix("model.")
    return f"layers.0.{name.removeprefix('midlayer.')}" if name.startswith("midlayer.") else name


_Matrix = tuple[Tensor, Tensor | None]  # values, and the scales of its rows if they are e4m3


def _read_matrix(
    checkpoint: Checkpoint,
    name: str,
    tensors: Mapping[str, int],
    columns: int,
    dtype: torch.dtype,
    device: torch.device | str,
    quantized: dict[str, Tensor] | None,
    meaning: str = "",
) -> _Matrix:
    """Tensors, given with their rows, one below the other.

    In `dtype`, or with `quantized` as the e4m3 matrix `name` that is there or is then added.
    """
    shapes = {tensor: (rows, columns) for tensor, rows in tensors.items()}
    if quantized is None:
        matrix = torch.empty(sum(tensors.values()), columns, dtype=dtype, device=device)
        parts = matrix.split_with_sizes(list(tensors.values()))
        for tensor, part in zip(tensors, parts, strict=True):
            checkpoint.read_into(tensor, part, meaning=meaning)
        return matrix, None
    if name in quantized:
        for tensor, shape in shapes.items():
            checkpoint.skip(tensor, shape, meaning=meaning)
    else:
        values, scales = zip(*(
            quantize_rows(
                checkpoint.read(
                    tensor, shape, dtype=checkpoint.dtype(tensor), device=device, meaning=meaning
                )
            )
            for tensor, shape in shapes.items()
        ), strict=True)  # fmt: skip
        quantized[name], quantized[f"{name}_scale"] = torch.cat(values), torch.cat(scales)
    return quantized[name], quantized[f"{name}_scale"]


def _open_cache(
    checkpoint: Checkpoint, precision: str, where: bool | str | Path
) -> QuantizedCache | None:
    if where is False or precision not in QUANTIZED:
        return None
    folder = checkpoint.path if where is True else Path(where)
    folder = folder.parent if folder.is_file() else folder
    stored = "fp8" if precision in FP8_LAYERS else precision
    return QuantizedCache(folder, stored, checkpoint.sha256())


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


def project_mask_taps(
    taps: Tensor,
    fc: Tensor,
    fc_scale: Tensor | None,
    input_norm: Tensor | None,
    fc_norms: Tensor | None,
    eps: float,
    fp8_activations: bool = False,
) -> Tensor:
    """The norms that there are, then fc, of one row of joined taps `[n Ht]`."""
    dtype = torch.promote_types(taps.dtype, torch.float32)
    x = taps.to(dtype)
    if input_norm is not None:
        x = x * (x.square().mean() + eps).rsqrt() * input_norm.to(dtype)
    if fc_norms is not None:
        chunks = x.view_as(fc_norms)
        scale = (chunks.square().mean(dim=1, keepdim=True) + eps).rsqrt()
        x = (chunks * scale * fc_norms.to(dtype)).flatten()
    return _product(fc, fc_scale, x, fp8_activations).to(taps.dtype)


def mask_row_heads(
    first: LayerWeights,
    mask_embedding: Tensor,
    mask_hidden: Tensor,
    eps: float,
    fp8_activations: bool = False,
) -> Tensor:
    """Queries, keys and values of a mask row in the first layer, before they are rotated."""
    wide = torch.promote_types(mask_hidden.dtype, torch.float32)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        x = x.to(wide)
        return x * (x.square().mean() + eps).rsqrt() * weight.to(wide)

    assert first.hidden_norm is not None, "the first layer of a drafter norms the hidden state"
    x = torch.cat([norm(mask_embedding, first.input_norm), norm(mask_hidden, first.hidden_norm)])
    heads = _product(first.qkv, first.qkv_scale, x, fp8_activations)
    return heads if first.qkv_bias is None else heads + first.qkv_bias.to(wide)


def _product(matrix: Tensor, scale: Tensor | None, x: Tensor, fp8_activations: bool) -> Tensor:
    """Of a matrix and a vector, whose dtype it is computed in; scaled after the sum, as in ops."""
    product = matrix.to(x.dtype) @ (quantize_activations(x) if fp8_activations else x)
    return product if scale is None else product * scale.to(x.dtype)


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
