"""The target model of the embedded engine: a Hugging Face Llama-type checkpoint in plain PyTorch.

It exists so that speculative decoding can be seen, tested and measured from end to end without a
serving engine. Its speed is not the point: it is made of the functions of `reference`, over the
same paged cache as the drafter, and hands out the residual stream at the tapped layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from p_eagle_cuda import reference
from p_eagle_cuda.checkpoint import Checkpoint
from p_eagle_cuda.config import (
    RopeConfig,
    attention_heads,
    check_decoder_supported,
    context_length,
)
from p_eagle_cuda.fields import ConfigFields
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.reference import LayerCache
from p_eagle_cuda.rope import rope_table
from p_eagle_cuda.weights import LayerWeights, load_layer

# What each architecture adds to Llama: biases of queries, keys and values by default; head norms.
_ARCHITECTURES = {
    "LlamaForCausalLM": (False, False),
    "MistralForCausalLM": (False, False),
    "Qwen2ForCausalLM": (True, False),
    "Qwen3ForCausalLM": (False, True),
}
_NOT_NEEDED = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class TargetConfig:
    """A dense Llama-type target, as its config.json describes it.

    Attributes:
        hidden_size: H, the width of a tap.
        intermediate_size: I.
        num_layers: Decoder layers.
        num_heads: Nq.
        num_kv_heads: Nkv.
        head_dim: D.
        vocab_size: V.
        rms_norm_eps: Added to the mean square of every norm.
        rope: Rotary embedding.
        max_position_embeddings: Longest context in tokens.
        attention_bias: Whether q, k and v have biases.
        qk_norm: Whether query and key heads are normed.
        tie_word_embeddings: Whether the head is the embedding.
        bos_token_id: Token that starts a text, if the model has one.
        eos_token_ids: Tokens that end a text.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    attention_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def from_pretrained(cls, path: str | Path) -> TargetConfig:
        """Read a checkpoint folder's config.json.

        Raises:
            ConfigError: It is missing, malformed, or of an architecture that is not Llama-type.
        """
        fields = ConfigFields.read(path)
        names = fields.values.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else ""
        if name not in _ARCHITECTURES:
            raise fields.error("architectures", f"a list of one of {', '.join(_ARCHITECTURES)}")
        bias, qk_norm = _ARCHITECTURES[name]
        check_decoder_supported(fields)
        num_heads, num_kv_heads, head_dim = attention_heads(fields)
        return cls(
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=fields.integer("vocab_size"),
            rms_norm_eps=fields.number("rms_norm_eps"),
            rope=RopeConfig.from_fields(fields),
            max_position_embeddings=context_length(fields),
            attention_bias=fields.boolean("attention_bias", bias),
            qk_norm=qk_norm,
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            bos_token_id=(
                fields.integer("bos_token_id", minimum=0) if "bos_token_id" in fields else None
            ),
            eos_token_ids=_eos_token_ids(fields),
        )


class TargetRows(NamedTuple):
    """The rows of one target pass; those of a request are adjacent.

    Requests come in two kinds. Rows of the first `num_causal` follow each other, in the order of
    their positions. The others have the nodes of a draft tree, at most 64, parents first: node j
    has its position by its depth, its key in the cache j places after the root's, and sees what is
    before the root and the nodes in its mask.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, absolute
    slots: Tensor  # [T] int64, where keys and values go
    row_start: Tensor  # [B + 1] int32
    seq_lens: Tensor  # [B] int32, keys in the cache once these rows have stored theirs
    block_table: Tensor  # [B, max_blocks] int32
    tree_mask: Tensor | None = None  # [T] int64, bit j: node j of the request; None: no trees
    num_causal: int = 0  # how many of the requests have no tree, where others have


class TargetOutput(NamedTuple):
    """What a target pass computes."""

    logits: Tensor  # [N, V] of the sampled rows
    taps: list[Tensor]  # n of [T, H], the residual stream entering the tapped layers


class Target:
    """A loaded target."""

    def __init__(
        self,
        config: TargetConfig,
        embedding: Tensor,
        layers: Sequence[LayerWeights],
        norm: Tensor,
        lm_head: Tensor,
        tap_layer_ids: Sequence[int] = (),
    ) -> None:
        """Put a target together.

        Args:
            config: Its configuration.
            embedding: ``[V, H]``.
            layers: One per decoder layer.
            norm: ``[H]``, the final norm.
            lm_head: ``[V, H]``.
            tap_layer_ids: Layers whose input is handed out; the number of layers stands for the
                last one's output.
        """
        self.config, self.embedding, self.layers = config, embedding, tuple(layers)
        self.norm, self.lm_head = norm, lm_head
        self.tap_layer_ids = tuple(tap_layer_ids)
        self.rope = rope_table(config.rope, config.head_dim, config.max_position_embeddings)
        self.rope = self.rope.to(embedding.device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        tap_layer_ids: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> Target:
        """Load a checkpoint folder.

        Args:
            path: Folder with config.json and safetensors.
            tap_layer_ids: See the constructor.
            dtype: Working dtype.
            device: Where the weights go.
            progress: Show a progress bar for a large checkpoint.

        Raises:
            ConfigError: The configuration is missing or not supported.
            CheckpointError: The tensors are not those that the configuration calls for.
        """
        config = TargetConfig.from_pretrained(path)
        V, H = config.vocab_size, config.hidden_size
        with Checkpoint.open(path, progress=progress) as checkpoint:

            def read(name: str, *shape: int) -> Tensor:
                return checkpoint.read(name, shape, dtype=dtype, device=device)

            embedding = read("model.embed_tokens.weight", V, H)
            layers = [
                load_layer(checkpoint, f"model.layers.{i}", config, dtype=dtype, device=device)
                for i in range(config.num_layers)
            ]
            norm = read("model.norm.weight", H)
            tied = config.tie_word_embeddings and "lm_head.weight" not in checkpoint
            lm_head = embedding if tied else read("lm_head.weight", V, H)
            checkpoint.check_all_read(lambda name: name.endswith(_NOT_NEEDED))
        return cls(config, embedding, layers, norm, lm_head, tap_layer_ids)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.device

    def allocate_cache(self, num_blocks: int, block_size: int = 16) -> list[LayerCache]:
        """A paged cache of the target's own shape and dtype."""
        c = self.config
        return allocate_cache(
            c.num_layers, num_blocks, c.num_kv_heads, block_size, c.head_dim,
            self.embedding.dtype, self.device,
        )  # fmt: skip

    def forward(
        self, rows: TargetRows, caches: Sequence[LayerCache], sample_rows: Tensor
    ) -> TargetOutput:
        """Run the rows through the model, storing their keys and values.

        Args:
            rows: What to compute.
            caches: One per layer, from `allocate_cache`.
            sample_rows: ``[N]`` int64, the rows whose logits are wanted.
        """
        c, eps = self.config, self.config.rms_norm_eps
        x = self.embedding[rows.token_ids]
        taps = {}
        for i, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            if i in self.tap_layer_ids:
                taps[i] = x
            q, k, v = reference.qkv_rope(
                x, layer.input_norm, layer.qkv, layer.qkv_bias, layer.q_norm, layer.k_norm,
                self.rope, rows.positions, c.num_kv_heads, eps,
            )  # fmt: skip
            reference.write_cache(k, rows.slots, cache.k, cache.k_scale)
            reference.write_cache(v, rows.slots, cache.v, cache.v_scale)
            attended = self._attention(q, cache, rows)
            x = reference.linear_residual(attended, layer.o, layer.o_bias, x)
            activated = reference.norm_swiglu(x, layer.post_norm, layer.gate_up, eps)
            x = reference.linear_residual(activated, layer.down, None, x)
        if c.num_layers in self.tap_layer_ids:
            taps[c.num_layers] = x
        final = reference.rms_norm(x[sample_rows], self.norm, eps)
        logits = reference.widen(linear(final, self.lm_head))
        return TargetOutput(logits, [taps[i] for i in self.tap_layer_ids])

    def _attention(self, q: Tensor, cache: LayerCache, rows: TargetRows) -> Tensor:
        """Of both kinds of requests; each kind leaves zeros in the rows of the other."""
        B = rows.seq_lens.numel()
        n = B if rows.tree_mask is None else rows.num_causal
        attended = [
            reference.paged_attention(
                q, cache.k, cache.v, cache.k_scale, cache.v_scale, rows.block_table[first:end],
                rows.row_start[first : end + 1], rows.seq_lens[first:end], rows.positions,
                self.config.head_dim**-0.5, tree_mask,
            )
            for first, end, tree_mask in ((0, n, None), (n, B, rows.tree_mask))
            if first < end
        ]  # fmt: skip
        return attended[0] if len(attended) == 1 else attended[0] + attended[1]


def _eos_token_ids(fields: ConfigFields) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, which engines go by, else of config.json."""
    generation = fields.file.with_name("generation_config.json")
    if generation.is_file():
        own = ConfigFields.read(generation)
        fields = own if "eos_token_id" in own else fields
    value = fields.values.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
        raise fields.error("eos_token_id", "a token id or a list of them")
    return tuple(ids)
