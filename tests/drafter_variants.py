"""One drafter for each code path of the pass, as overrides of a toy configuration."""

from __future__ import annotations

from typing import Any

# Plain; norms and biases that only some formats have; the
# Qwen3 kind; five taps with their own norms; one layer; a smaller draft vocabulary.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "normed-residual": {"norm_before_residual": True, "norm_before_fc": True},
    "bias": {"attention_bias": True},
    "qwen3": {"architectures": ["PeagleQwen3ForCausalLM"]},
    "five-taps": {"eagle_aux_hidden_state_layer_ids": [1, 2, 3, 4, 5], "fc_norm": True},
    "one-layer": {"num_hidden_layers": 1},
    "small-vocabulary": {"draft_vocab_size": 20},
    "llama3-rope": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}
