"""The drafter written a second time, to hold `p_eagle_cuda.reference` against.

It shares no code with the package: Hugging Face decoder layers and rotary embedding, no cache, no
packing, weights by their checkpoint names, and whatever mask the caller gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer


class DenseDrafter:
    """Logits of drafter rows under an explicit mask, in float64."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.tensors = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
        is_qwen3 = any("Qwen3" in name for name in config["architectures"])
        self.hf_config = self._hf_config(Qwen3Config if is_qwen3 else LlamaConfig)
        layer_class = Qwen3DecoderLayer if is_qwen3 else LlamaDecoderLayer
        self.rotary = LlamaRotaryEmbedding(self.hf_config)
        self.layers = [self._layer(layer_class, i) for i in range(config["num_hidden_layers"])]

    def hidden(self, taps: Tensor) -> Tensor:
        """Joined taps [R, n * Ht], or mask_hidden, to the drafter's width."""
        x = taps.double()
        if "input_norm.weight" in self.tensors:
            x = self._norm(x, "input_norm.weight")
        if "fc_norm.0.weight" in self.tensors:
            chunks = x.chunk(len(self.config["eagle_aux_hidden_state_layer_ids"]), dim=-1)
            x = torch.cat(
                [self._norm(c, f"fc_norm.{i}.weight") for i, c in enumerate(chunks)], dim=-1
            )
        return x @ self.tensors["fc.weight"].T

    @property
    def mask_hidden(self) -> Tensor:
        """[H], what every mask row takes in place of hidden states."""
        return self.hidden(self.tensors["mask_hidden"].flatten()[None])[0]

    def logits(self, token_ids: Tensor, hidden: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """[R, Vd] for token_ids [R], hidden [R, H], positions [R], mask [R, R] True = visible."""
        bias = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, float("-inf"))
        bias = bias[None, None]
        embedded = self._norm(
            self.tensors["embed_tokens.weight"][token_ids], "midlayer.input_layernorm.weight"
        )
        normed = self._norm(hidden, "midlayer.hidden_norm.weight")
        cos, sin = self._cos_sin(positions)
        first, residual = self.layers[0], normed if self._norm_before_residual else hidden
        x = torch.cat([embedded, normed], dim=-1)[None]
        x = residual[None] + first.self_attn(x, (cos, sin), bias)[0]
        x = x + first.mlp(first.post_attention_layernorm(x))
        for layer in self.layers[1:]:
            out = layer(x, attention_mask=bias, position_embeddings=(cos, sin))
            x = out[0] if isinstance(out, tuple) else out
        return self._norm(x[0], "norm.weight") @ self.tensors["lm_head.weight"].T

    @property
    def _norm_before_residual(self) -> bool:
        return bool(self.config.get("norm_before_residual"))

    def _cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        # The module computes angles in float32; the drafter's own table is exact. Give both the
        # same float32 table, so that what is compared is everything else.
        x = torch.zeros(1, dtype=torch.float64)
        cos, sin = self.rotary(x, positions[None])
        return cos.double(), sin.double()

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scaled = x / (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
        return scaled * self.tensors[name]

    def _hf_config(self, config_class: type) -> Any:
        names = (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings",
        )  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": self.config["rope_theta"]}
        rope |= self.config.get("rope_scaling", {})
        return config_class(
            **{name: self.config[name] for name in names},
            rope_parameters=rope,
            attention_bias=bool(self.config.get("attention_bias")),
            attn_implementation="eager",
        )

    def _layer(self, layer_class: type, index: int) -> Any:
        layer = layer_class(self.hf_config, index).double().eval().requires_grad_(False)
        prefix = "midlayer." if index == 0 else f"layers.{index}."
        own = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        if index == 0:  # takes embedding and hidden state side by side
            own.pop("hidden_norm.weight")
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = own[f"self_attn.{name}.weight"]
                bias = f"self_attn.{name}.bias" in own
                projection = nn.Linear(*weight.T.shape, bias=bias, dtype=torch.float64)
                setattr(layer.self_attn, name, projection.requires_grad_(False))
        layer.load_state_dict(own)
        return layer


def causal(num_rows: int) -> Tensor:
    """Row i sees rows 0 .. i."""
    return torch.ones(num_rows, num_rows, dtype=torch.bool).tril()


def parallel_mask(anchors: Sequence[int], depths: Sequence[int]) -> Tensor:
    """The paper's mask over rows (anchor, depth), by its definition.

    A depth-0 row sees the depth-0 rows of anchors up to its own. A row of depth d > 0 sees those
    too, and the rows of its own rollout, which has its anchor, of depths 1 to d.
    """
    n = len(anchors)
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            real = depths[j] == 0 and anchors[j] <= anchors[i]
            own = depths[j] > 0 and anchors[j] == anchors[i] and depths[j] <= depths[i]
            mask[i, j] = real or own
    return mask
