"""The two trainable models, with the tensor names of their checkpoints.

Both are Llama-type decoders computed densely: a target with tied embeddings, and a P-EAGLE drafter
whose first layer joins a token embedding with the fused hidden states of three target layers.
They exist for training only; inference runs on `reference` and `ops`, and the tests compare both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .tokenizer import VOCAB_SIZE


@dataclass(frozen=True)
class Shape:
    """Sizes that target and drafter share, so that the drafter can start as a copy of its target.

    `tap_layers` follows vLLM: id i is the residual stream that enters target layer i.
    """

    vocab_size: int = VOCAB_SIZE
    hidden_size: int = 256
    intermediate_size: int = 384
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    target_layers: int = 5
    drafter_layers: int = 4
    tap_layers: tuple[int, ...] = (1, 3, 4)
    max_positions: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


class KvCache:
    """Keys and values of one batch for every layer, [B, num_kv_heads, capacity, head_dim] each."""

    def __init__(self, shape: Shape, batch: int, capacity: int) -> None:
        size = (batch, shape.num_kv_heads, capacity, shape.head_dim)
        self.keys = [torch.empty(size) for _ in range(shape.target_layers)]
        self.values = [torch.empty(size) for _ in range(shape.target_layers)]
        self.length = 0


class Attention(nn.Module):
    """Grouped-query attention with rotate-halves RoPE; the drafter's first has 2H inputs."""

    def __init__(self, shape: Shape, input_size: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = shape.num_heads, shape.num_kv_heads
        self.head_dim = shape.head_dim
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(input_size, q_size, bias=False)
        self.k_proj = nn.Linear(input_size, kv_size, bias=False)
        self.v_proj = nn.Linear(input_size, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, shape.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rope: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor, int] | None
    ) -> Tensor:
        """Attend from [B, T, input_size] to itself, causally unless a mask [T, T] is given.

        With `past` = (keys, values, length), the T new rows are written behind the first `length`
        and seen together with them; then T is 1 or `length` is 0.
        """
        batch, rows, _ = x.shape
        q = self.q_proj(x).view(batch, rows, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, rows, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, rows, self.num_kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, rope), rotate(k, rope)
        group = self.num_heads // self.num_kv_heads
        if past is not None:
            keys, values, length = past
            keys[:, :, length : length + rows] = k
            values[:, :, length : length + rows] = v
            k, v = keys[:, :, : length + rows], values[:, :, : length + rows]
        if past is not None and rows == 1:
            # The heads of a group take the place of the rows: no key is copied.
            q = q.reshape(batch, self.num_kv_heads, group, self.head_dim)
            out = F.scaled_dot_product_attention(q, k, v).reshape(batch, 1, -1)
        else:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
            out = out.transpose(1, 2).reshape(batch, rows, -1)
        projected: Tensor = self.o_proj(out)
        return projected


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H] to [B, T, H]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """A pre-norm decoder layer; with `joins_embedding`, the first layer of a drafter."""

    def __init__(self, shape: Shape, joins_embedding: bool = False) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        if joins_embedding:
            self.hidden_norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape, shape.hidden_size * (2 if joins_embedding else 1))
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        mask: Tensor | None = None,
        embedded: Tensor | None = None,
        past: tuple[Tensor, Tensor, int] | None = None,
    ) -> Tensor:
        """Residual stream [B, T, H] in and out; `embedded` [B, T, H] joins it in the first."""
        if embedded is None:
            normed = self.input_layernorm(x)
        else:
            normed = torch.cat([self.input_layernorm(embedded), self.hidden_norm(x)], -1)
        x = x + self.self_attn(normed, rope, mask, past)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Target(nn.Module):
    """The target: logits, and on request the residual streams that the drafter taps."""

    rope: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.target_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.register_buffer("rope", rope_table(shape), persistent=False)

    def forward(self, ids: Tensor, cache: KvCache | None = None) -> Tensor:
        """Token ids [B, T] to logits [B, T, V], T being the new tokens when there is a cache."""
        return self.run(ids, cache)[0]

    def run(self, ids: Tensor, cache: KvCache | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] and taps [B, T, 3H] of token ids [B, T]."""
        start = cache.length if cache else 0
        rope = self.rope[start : start + ids.shape[1]]
        x = self.embed_tokens(ids)
        taps = []
        for i, layer in enumerate(self.layers):
            if i in self.shape.tap_layers:
                taps.append(x)
            past = (cache.keys[i], cache.values[i], cache.length) if cache else None
            x = layer(x, rope, past=past)
        if cache:
            cache.length += ids.shape[1]
        return F.linear(self.norm(x), self.embed_tokens.weight), torch.cat(taps, -1)


class Drafter(nn.Module):
    """The P-EAGLE drafter over an explicit list of rows and an explicit mask."""

    rope: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = len(shape.tap_layers) * shape.hidden_size
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.mask_hidden = nn.Parameter(torch.empty(1, 1, width))
        self.fc = nn.Linear(width, shape.hidden_size, bias=False)
        self.midlayer = Layer(shape, joins_embedding=True)
        # Keyed by their number: the checkpoint has `midlayer` and `layers.1` onwards.
        self.layers = nn.ModuleDict({str(i): Layer(shape) for i in range(1, shape.drafter_layers)})
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self.register_buffer("rope", rope_table(shape), persistent=False)

    def forward(self, ids: Tensor, taps: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, R, V] of R rows: first the A real ones, then the mask rows.

        Args:
            ids: [B, R], the token after each real row's position; the mask token on mask rows.
            taps: [B, A, 3H], target hidden states of the real rows.
            positions: [R], absolute.
            mask: [R, R], true where a row (first index) sees another; None for plain causal.
        """
        hidden = self.fc(taps)
        shared = self.fc(self.mask_hidden).expand(ids.shape[0], ids.shape[1] - taps.shape[1], -1)
        rope = self.rope[positions]
        x = torch.cat([hidden, shared], 1)
        x = self.midlayer(x, rope, mask, embedded=self.embed_tokens(ids))
        for layer in self.layers.values():
            x = layer(x, rope, mask)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def rope_table(shape: Shape) -> Tensor:
    """Float32 [max_positions, head_dim]: cosines of the D/2 frequencies, then sines."""
    exponents = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
    angles = torch.outer(torch.arange(shape.max_positions).float(), shape.rope_theta**-exponents)
    return torch.cat([angles.cos(), angles.sin()], -1)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the halves of [..., T, D] by the angles of `rope` [T, D]."""
    cos, sin = rope.chunk(2, -1)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def initialise(model: nn.Module, num_layers: int, generator: torch.Generator) -> None:
    """Normal weights of deviation 0.02, scaled down where a layer writes to the residual stream."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            continue
        writes_residual = "o_proj" in name or "down_proj" in name
        std = 0.02 / math.sqrt(2 * num_layers) if writes_residual else 0.02
        nn.init.normal_(parameter, 0.0, std, generator=generator)
