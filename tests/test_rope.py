"""The rope table against the formulas of transformers, evaluated in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from p_eagle_cuda.config import RopeConfig
from p_eagle_cuda.rope import rope_table

# Every branch of the formulas: llama3 with kept, blended and stretched frequencies; yarn with each
# source of its attention factor, with bounds that are rounded or not, cut off at both ends
# (theta 4), and both cut off to dimension 0 (less than one turn).
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPES = {
    "default": {"rope_theta": 10_000.0},
    "theta": {"rope_theta": 500_000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500_000.0, **LLAMA3},
    **{
        f"yarn {name}": {
            "rope_type": "yarn",
            "factor": 32.0,
            "rope_theta": 150_000.0,
            "original_max_position_embeddings": 4096,
            **fields,
        }
        for name, fields in {
            "plain": {},
            "untruncated": {"truncate": False},
            "attention factor": {"attention_factor": 1.25},
            "mscale": {"mscale": 0.8, "mscale_all_dim": 0.3},
            "mscale alone": {"mscale": 0.8},
            "betas": {"beta_fast": 16.0, "beta_slow": 2.0},
            "cut off": {"rope_theta": 4.0, "original_max_position_embeddings": 512},
            "equal bounds": {"original_max_position_embeddings": 6},
            "shrinking": {"factor": 0.5},
        }.items()
    },
}


def hugging_face(fields: dict[str, float | str | bool], head_dim: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", **fields},
    )


def ours(fields: dict[str, float | str | bool]) -> RopeConfig:
    names = {"rope_theta": "theta", "original_max_position_embeddings": "original_max_position"}
    return RopeConfig(**{names.get(name, name): value for name, value in fields.items()})


def exact_table(config: LlamaConfig, max_position: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Cosines and sines by the formulas of transformers, in float64 all the way."""
    rope_type = config.rope_parameters["rope_type"]
    with monkeypatch.context() as patch:
        # The formulas ask for float32 by these names.
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch, "float32", torch.float64)
        if rope_type == "default":
            frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](config, device="cpu")
    assert frequencies.dtype == torch.float64
    angles = torch.arange(max_position, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.cos() * factor, angles.sin() * factor], dim=1)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", ROPES)
def test_matches_transformers(name: str, head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    max_position = 5000  # past every original context but llama3's
    table = rope_table(ours(ROPES[name]), head_dim, max_position)
    exact = exact_table(hugging_face(ROPES[name], head_dim), max_position, monkeypatch)

    assert table.dtype == torch.float32
    assert table.shape == (max_position, head_dim)
    # Half a unit in the last place, and what two orders of float64 operations differ by.
    allowed = exact.abs() * 2**-24 + 1e-11
    assert ((table.double() - exact).abs() <= allowed).all()


def test_layout_is_that_of_llama() -> None:
    """Element j turns with j + D / 2, at small positions also against the float32 original."""
    config = hugging_face(ROPES["llama3"], 64)
    positions = torch.arange(100)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    table = rope_table(ours(ROPES["llama3"]), 64, 100)
    expected = torch.cat([cos[0, :, :32], sin[0, :, :32]], dim=1)
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-4)


def test_far_positions_stay_exact() -> None:
    """Position 131071 in float32 angles would be off by 1e-2; the table is not."""
    table = rope_table(RopeConfig(), 64, 131_072)
    angle = torch.tensor(131_071.0, dtype=torch.float64) * 10_000 ** (-2 / 64)
    assert table[-1, 1] == angle.cos().float()
    assert table[-1, 33] == angle.sin().float()
