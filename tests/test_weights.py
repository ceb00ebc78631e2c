"""Packed drafter weights: every format gives the same tensors, every mistake one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from checkpoints import (
    FORMATS,
    drafter_config,
    drafter_tensors,
    in_format,
    target_config,
    target_tensors,
    write_checkpoint,
    write_drafter,
    write_target,
)
from p_eagle_cuda.checkpoint import Checkpoint
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.errors import CheckpointError
from p_eagle_cuda.rope import rope_table
from p_eagle_cuda.weights import DrafterWeights, LayerWeights, load_drafter_weights, load_layer

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one layer": {"num_hidden_layers": 1},
    "draft vocabulary": {"draft_vocab_size": 40},
    "norm before fc": {"norm_before_fc": True},
    "norm of each tap": {"fc_norm": True},
    "bias": {"attention_bias": True},
}


def load(path: Path, **options: Any) -> DrafterWeights:
    return load_drafter_weights(path, DrafterConfig.from_pretrained(path), **options)


def expected_layer(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor | None]:
    def stack(*names: str) -> Tensor | None:
        parts = [tensors.get(prefix + name) for name in names]
        return None if parts[0] is None else torch.cat(parts)

    attention = [f"self_attn.{name}_proj" for name in "qkv"]
    return {
        "input_norm": stack("input_layernorm.weight"),
        "hidden_norm": stack("hidden_norm.weight"),
        "qkv": stack(*(f"{name}.weight" for name in attention)),
        "qkv_bias": stack(*(f"{name}.bias" for name in attention)),
        "q_norm": stack("self_attn.q_norm.weight"),
        "k_norm": stack("self_attn.k_norm.weight"),
        "o": stack("self_attn.o_proj.weight"),
        "o_bias": stack("self_attn.o_proj.bias"),
        "post_norm": stack("post_attention_layernorm.weight"),
        "gate_up": stack("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "down": stack("mlp.down_proj.weight"),
    }


def assert_layer(layer: LayerWeights, tensors: dict[str, Tensor], prefix: str) -> None:
    for name, expected in expected_layer(tensors, prefix).items():
        actual = getattr(layer, name)
        if expected is None:
            assert actual is None, f"{prefix}: {name}"
        else:
            assert torch.equal(actual, expected), f"{prefix}: {name}"
            assert actual.dtype == expected.dtype, f"{prefix}: {name}"


def expected_mask_hidden(tensors: dict[str, Tensor], eps: float) -> Tensor:
    """The mask taps through the norms that there are and fc, in float64."""
    x = tensors["mask_hidden"].double().flatten()
    if "input_norm.weight" in tensors:
        x = rms_norm(x, x.shape, tensors["input_norm.weight"].double(), eps)
    if "fc_norm.0.weight" in tensors:
        chunks = x.chunk(3)
        x = torch.cat(
            [
                rms_norm(chunk, chunk.shape, tensors[f"fc_norm.{tap}.weight"].double(), eps)
                for tap, chunk in enumerate(chunks)
            ]
        )
    return linear(x, tensors["fc.weight"].double())


def assert_drafter(weights: DrafterWeights, tensors: dict[str, Tensor], num_layers: int) -> None:
    """`tensors` are those of a flat checkpoint, in the dtype in which they are to be packed."""
    assert torch.equal(weights.embedding, tensors["embed_tokens.weight"])
    assert torch.equal(weights.fc, tensors["fc.weight"])
    assert torch.equal(weights.norm, tensors["norm.weight"])
    assert torch.equal(weights.lm_head, tensors["lm_head.weight"])

    assert (weights.input_norm is None) == ("input_norm.weight" not in tensors)
    if weights.input_norm is not None:
        assert torch.equal(weights.input_norm, tensors["input_norm.weight"])
    assert (weights.fc_norms is None) == ("fc_norm.0.weight" not in tensors)
    if weights.fc_norms is not None:
        norms = [tensors[f"fc_norm.{tap}.weight"] for tap in range(3)]
        assert torch.equal(weights.fc_norms, torch.stack(norms))
    exact = expected_mask_hidden(tensors, eps=1e-5)
    assert weights.mask_hidden.dtype == weights.fc.dtype
    unit = torch.finfo(weights.fc.dtype).eps * exact.abs()
    assert ((weights.mask_hidden.double() - exact).abs() <= unit / 2 + 1e-5).all()

    assert len(weights.layers) == num_layers
    assert_layer(weights.layers[0], tensors, "midlayer.")
    for index in range(1, num_layers):
        assert_layer(weights.layers[index], tensors, f"layers.{index}.")

    assert (weights.draft_to_target is None) == ("d2t" not in tensors)
    if weights.draft_to_target is not None:
        assert weights.draft_to_target.dtype == torch.int64
        assert weights.draft_to_target.tolist() == tensors["t2d"].nonzero().flatten().tolist()


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tensors(name: str, option: str, tmp_path: Path) -> None:
    flat = drafter_config(**OPTIONS[option])
    tensors = drafter_tensors(flat)
    write_checkpoint(tmp_path, *in_format(name, flat, tensors))
    assert_drafter(load(tmp_path), tensors, flat["num_hidden_layers"])


@pytest.mark.parametrize("name", ["aws", "speculators"])
def test_qwen3_kind(name: str, tmp_path: Path) -> None:
    flat = drafter_config(architectures=["PeagleQwen3ForCausalLM"], model_type="qwen3")
    tensors = drafter_tensors(flat)
    assert "midlayer.self_attn.q_norm.weight" in tensors
    write_checkpoint(tmp_path, *in_format(name, flat, tensors))
    assert_drafter(load(tmp_path), tensors, 3)


def test_five_taps(tmp_path: Path) -> None:
    tensors = write_drafter(tmp_path, eagle_aux_hidden_state_layer_ids=[2, 3, 4, 5, 6])
    weights = load(tmp_path)
    assert weights.fc.shape == (64, 5 * 128)
    exact = expected_mask_hidden(tensors, eps=1e-5)
    torch.testing.assert_close(weights.mask_hidden.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_the_checkpoints_or_the_one_asked_for(stored: torch.dtype, tmp_path: Path) -> None:
    tensors = write_drafter(tmp_path, dtype=stored, draft_vocab_size=40)
    assert_drafter(load(tmp_path), tensors, 3)
    as_double = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    assert_drafter(load(tmp_path, dtype=torch.float64), as_double, 3)


def test_norms_in_float32_beside_bfloat16(tmp_path: Path) -> None:
    flat = drafter_config(norm_before_fc=True)
    tensors = drafter_tensors(flat)
    mixed = {n: t if "norm" in n else t.to(torch.bfloat16) for n, t in tensors.items()}
    write_checkpoint(tmp_path, flat, {})
    save_file(mixed, tmp_path / "model.safetensors")
    weights = load(tmp_path)
    assert_drafter(weights, {n: t.to(torch.bfloat16) for n, t in tensors.items()}, 3)


@pytest.mark.parametrize("shape", [(384,), (1, 384), (1, 1, 384)])
def test_shapes_of_mask_hidden(shape: tuple[int, ...], tmp_path: Path) -> None:
    flat = drafter_config()
    tensors = drafter_tensors(flat)
    tensors["mask_hidden"] = tensors["mask_hidden"].reshape(shape)
    write_checkpoint(tmp_path, flat, tensors)
    assert_drafter(load(tmp_path), tensors, 3)


def test_rope_table(tmp_path: Path) -> None:
    write_drafter(tmp_path, rope_scaling={"rope_type": "linear", "factor": 2.0})
    config = DrafterConfig.from_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).rope, rope_table(config.rope, 64, 256))
    assert torch.equal(load(tmp_path, max_position=17).rope, rope_table(config.rope, 64, 17))


def test_identity_vocabulary_is_no_map(tmp_path: Path) -> None:
    """GPT-OSS-20B-P-EAGLE carries `d2t` and `t2d` for its full vocabulary."""
    flat = drafter_config()
    tensors = drafter_tensors(flat)
    tensors |= {"d2t": torch.zeros(50, dtype=torch.int64), "t2d": torch.ones(50, dtype=torch.bool)}
    write_checkpoint(tmp_path, flat, tensors)
    assert load(tmp_path).draft_to_target is None


def test_smaller_vocabulary_without_a_map_is_the_first_tokens(tmp_path: Path) -> None:
    flat = drafter_config(draft_vocab_size=40)
    tensors = drafter_tensors(flat)
    del tensors["d2t"], tensors["t2d"]
    write_checkpoint(tmp_path, flat, tensors)
    weights = load(tmp_path)
    assert weights.draft_to_target is None
    assert weights.lm_head.shape == (40, 64)


def test_tensors_that_nobody_needs(tmp_path: Path) -> None:
    flat = drafter_config()
    tensors = drafter_tensors(flat)
    extra = {
        "layers.1.hidden_norm.weight": torch.ones(64),
        "layers.2.self_attn.rotary_emb.inv_freq": torch.ones(32),
        "rotary_emb.inv_freq": torch.ones(32),
        "verifier_norm.weight": torch.ones(64),
        "verifier_lm_head.weight": torch.ones(50, 64),
    }
    write_checkpoint(tmp_path, flat, tensors | extra)
    assert_drafter(load(tmp_path), tensors, 3)


def without(path: Path, *names: str, **fields: object) -> dict[str, Tensor]:
    """Write a drafter without some tensors; return all of them."""
    flat = drafter_config(**fields)
    tensors = drafter_tensors(flat)
    kept = {name: tensor for name, tensor in tensors.items() if name not in names}
    write_checkpoint(path, flat, kept)
    return tensors


def test_embedding_and_head_of_the_target(tmp_path: Path) -> None:
    without(tmp_path, "embed_tokens.weight", "lm_head.weight")
    embedding, lm_head = torch.randn(50, 64), torch.randn(50, 64)
    weights = load(
        tmp_path, target_embedding=embedding, target_lm_head=lm_head, dtype=torch.bfloat16
    )
    assert torch.equal(weights.embedding, embedding.to(torch.bfloat16))
    assert torch.equal(weights.lm_head, lm_head.to(torch.bfloat16))


def test_own_embedding_and_head_win(tmp_path: Path) -> None:
    tensors = write_drafter(tmp_path, tie_word_embeddings=True)
    other = torch.randn(50, 64)
    assert_drafter(load(tmp_path, target_embedding=other, target_lm_head=other), tensors, 3)


def test_tied_head(tmp_path: Path) -> None:
    tensors = without(tmp_path, "lm_head.weight", tie_word_embeddings=True)
    weights = load(tmp_path, target_lm_head=torch.randn(50, 64))
    assert torch.equal(weights.lm_head, tensors["embed_tokens.weight"])
    assert weights.lm_head is weights.embedding


def test_tied_head_without_own_embedding_is_the_targets(tmp_path: Path) -> None:
    """Then the flag came from the target, whose head may be another than its embedding."""
    without(tmp_path, "embed_tokens.weight", "lm_head.weight", tie_word_embeddings=True)
    embedding, lm_head = torch.randn(50, 64), torch.randn(50, 64)
    weights = load(tmp_path, target_embedding=embedding, target_lm_head=lm_head)
    assert torch.equal(weights.lm_head, lm_head)


def failure(path: Path, **options: Any) -> str:
    """The message of the `CheckpointError`, a single line."""
    with pytest.raises(CheckpointError) as error:
        load(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_embedding_anywhere(tmp_path: Path) -> None:
    without(tmp_path, "embed_tokens.weight")
    assert failure(tmp_path) == (
        f"{tmp_path}: tensor `embed_tokens.weight` is missing, expected one with shape [50, 64] or "
        "the target's in its place"
    )
    assert failure(tmp_path, target_embedding=torch.zeros(50, 128)) == (
        f"{tmp_path}: tensor `embed_tokens.weight` is missing and the target's in its place has "
        "shape [50, 128], expected [50, 64]"
    )


def test_no_head_anywhere(tmp_path: Path) -> None:
    without(tmp_path, "lm_head.weight", draft_vocab_size=40)
    assert failure(tmp_path).startswith(f"{tmp_path}: tensor `lm_head.weight` is missing, expected")
    assert failure(tmp_path, target_lm_head=torch.zeros(50, 64)) == (
        f"{tmp_path}: tensor `lm_head.weight` is missing and the target's in its place has shape "
        "[50, 64], expected [40, 64]"
    )


def test_tied_head_of_another_size(tmp_path: Path) -> None:
    without(tmp_path, "lm_head.weight", draft_vocab_size=40, tie_word_embeddings=True)
    assert failure(tmp_path) == (
        f"{tmp_path}: tensor `lm_head.weight` is missing, expected one with shape [40, 64], "
        "because the embedding has 50 rows"
    )


REQUIRED = [
    "fc.weight",
    "norm.weight",
    "midlayer.hidden_norm.weight",
    "midlayer.input_layernorm.weight",
    "midlayer.self_attn.k_proj.weight",
    "midlayer.self_attn.k_proj.bias",
    "layers.2.mlp.up_proj.weight",
    "input_norm.weight",
    "fc_norm.1.weight",
]


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_tensor(name: str, tmp_path: Path) -> None:
    norm = "norm_before_fc" if name == "input_norm.weight" else "fc_norm"
    tensors = without(tmp_path, name, attention_bias=True, **{norm: True})
    shown = name.replace("midlayer", "layers.0")
    expected = "" if name == "fc.weight" else f" with shape {list(tensors[name].shape)}"
    assert failure(tmp_path) == f"{tmp_path}: tensor `{shown}` is missing, expected one{expected}"


def test_missing_mask_hidden(tmp_path: Path) -> None:
    """What a plain EAGLE-3 drafter lacks."""
    without(tmp_path, "mask_hidden")
    assert failure(tmp_path) == (
        f"{tmp_path}: tensor `mask_hidden` is missing, expected one with shape [1, 1, 384]"
    )


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("fc.weight", [64, 640], "[64, 384] (3 taps of width 128)"),
        ("mask_hidden", [1, 1, 64], "[1, 1, 384]"),
        ("mask_hidden", [2, 192], "[1, 1, 384]"),
        ("midlayer.self_attn.q_proj.weight", [128, 64], "[128, 128]"),
        ("layers.1.self_attn.q_proj.weight", [128, 128], "[128, 64]"),
        ("layers.1.self_attn.v_proj.weight", [128, 64], "[64, 64]"),
        ("layers.1.mlp.gate_proj.weight", [64, 96], "[96, 64]"),
        ("embed_tokens.weight", [49, 64], "[50, 64]"),
        ("lm_head.weight", [40, 64], "[50, 64]"),
    ],
)
def test_wrong_shape(name: str, shape: list[int], expected: str, tmp_path: Path) -> None:
    flat = drafter_config()
    tensors = drafter_tensors(flat) | {name: torch.zeros(shape)}
    write_checkpoint(tmp_path, flat, tensors)
    assert failure(tmp_path) == (
        f"{tmp_path / 'model.safetensors'}: tensor `{name}` has shape {shape}, expected {expected}"
    )


@pytest.mark.parametrize(
    "name",
    [
        "layers.3.input_layernorm.weight",  # a configuration with too few layers
        "layers.0.hidden_norm.weights",
        "midlayer.self_attn.q_proj.bias",
        "midlayer.self_attn.o_proj.bias",
        "midlayer.self_attn.q_norm.weight",
        "input_norm.weight",
        "fc.bias",
        "fc_norm.0.weight",
    ],
)
def test_extra_tensor(name: str, tmp_path: Path) -> None:
    flat = drafter_config()
    write_checkpoint(tmp_path, flat, drafter_tensors(flat) | {name: torch.zeros(64)})
    assert failure(tmp_path) == (
        f"{tmp_path / 'model.safetensors'}: tensor `{name}` of shape [64] found, expected only "
        "what the configuration calls for"
    )


def test_first_layer_under_both_names(tmp_path: Path) -> None:
    flat = drafter_config()
    extra = {"layers.0.input_layernorm.weight": torch.zeros(64)}
    write_checkpoint(tmp_path, flat, drafter_tensors(flat) | extra)
    assert "is there twice, also as `layers.0.input_layernorm.weight`" in failure(tmp_path)


def test_not_finite(tmp_path: Path) -> None:
    flat = drafter_config()
    tensors = drafter_tensors(flat)
    tensors["layers.2.self_attn.v_proj.weight"][5, 6] = float("nan")
    write_checkpoint(tmp_path, flat, tensors)
    assert failure(tmp_path) == (
        f"{tmp_path / 'model.safetensors'}: tensor `layers.2.self_attn.v_proj.weight` is nan at "
        "[5, 6], expected finite values only"
    )


MAPS = [
    ({"d2t": torch.zeros(39, dtype=torch.int64)}, "`d2t` has shape [39], expected [40]"),
    ({"d2t": torch.zeros(40)}, "`d2t` has dtype F32, expected one of BOOL, U8, I8, I16, I32, I64"),
    (
        {"d2t": torch.full((40,), 11)},
        "`d2t` maps draft token 39 to target token 50, expected one of 0 to 49",
    ),
    (
        {"d2t": torch.full((40,), -1)},
        "`d2t` maps draft token 0 to target token -1, expected one of 0 to 49",
    ),
    (
        {"d2t": torch.tensor([1] + [0] * 39)},
        "`d2t` maps 40 draft tokens to 39 target tokens, expected as many",
    ),
    (
        {"d2t": torch.zeros(40, dtype=torch.int64)},
        "`t2d` flags 40 target tokens, expected the 40 that the draft vocabulary maps to",
    ),
    ({"t2d": torch.ones(49, dtype=torch.bool)}, "`t2d` has shape [49], expected [50]"),
]


@pytest.mark.parametrize(("maps", "sentence"), MAPS)
def test_bad_vocabulary_map(maps: dict[str, Tensor], sentence: str, tmp_path: Path) -> None:
    flat = drafter_config(draft_vocab_size=40)
    write_checkpoint(tmp_path, flat, drafter_tensors(flat) | maps)
    message = failure(tmp_path)
    assert message.startswith(str(tmp_path))
    assert message.endswith(f": tensor {sentence}")


class TargetShape:
    """What a target's configuration tells `load_layer`."""

    hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim = 128, 160, 2, 1, 64

    def __init__(self, attention_bias: bool, qk_norm: bool) -> None:
        self.attention_bias = attention_bias
        self.qk_norm = qk_norm


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, TargetShape(attention_bias=False, qk_norm=False)),
        ({"attention_bias": True}, TargetShape(attention_bias=True, qk_norm=False)),
        ({"model_type": "qwen3"}, TargetShape(attention_bias=False, qk_norm=True)),
    ],
)
def test_layer_of_a_target(fields: dict[str, Any], shape: TargetShape, tmp_path: Path) -> None:
    tensors = write_target(tmp_path, **fields)
    with Checkpoint.open(tmp_path) as checkpoint:
        layer = load_layer(checkpoint, "model.layers.3", shape, dtype=torch.float32)
    assert_layer(layer, tensors, "model.layers.3.")


def test_qwen2_has_no_output_bias(tmp_path: Path) -> None:
    config = target_config(model_type="qwen2", attention_bias=True)
    tensors = target_tensors(config)
    tensors = {n: t for n, t in tensors.items() if not n.endswith("o_proj.bias")}
    write_checkpoint(tmp_path, config, tensors)
    shape = TargetShape(attention_bias=True, qk_norm=False)
    with Checkpoint.open(tmp_path) as checkpoint:
        layer = load_layer(checkpoint, "model.layers.0", shape, dtype=torch.float32)
    assert layer.o_bias is None
    assert_layer(layer, tensors, "model.layers.0.")
