"""Drafter configurations: every format gives the same drafter, every mistake one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checkpoints import FORMATS, drafter_config, drafter_tensors, in_format
from p_eagle_cuda.config import DrafterConfig, RopeConfig
from p_eagle_cuda.errors import ConfigError

EXPECTED = DrafterConfig(
    hidden_size=64,
    target_hidden_size=128,
    num_taps=3,
    tap_layer_ids=(2, 4, 5),
    intermediate_size=96,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=64,
    vocab_size=50,
    draft_vocab_size=50,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    max_position_embeddings=256,
    mask_token_id=49,
)
DIFFERENCES: dict[str, dict[str, Any]] = {
    "aws": {},
    "vllm": {},
    "nested": {"source_format": "nested", "num_speculative_tokens": 8},
    "speculators": {"source_format": "speculators", "num_speculative_tokens": 8},
    # Automodel does not write down the layers it tapped.
    "automodel": {
        "source_format": "automodel",
        "num_speculative_tokens": 8,
        "tap_layer_ids": None,
    },
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "draft vocabulary": ({"draft_vocab_size": 40}, {"draft_vocab_size": 40}),
    "norms": (
        {
            "norm_before_residual": True,
            "norm_before_fc": True,
            "norm_output": True,
        },
        {
            "norm_before_residual": True,
            "norm_before_fc": True,
            "norm_output": True,
        },
    ),
    "bias and tying": (
        {"attention_bias": True, "tie_word_embeddings": True},
        {"attention_bias": True, "tie_word_embeddings": True},
    ),
    "norm of each tap": ({"fc_norm": True}, {"fc_norm": True}),
    "linear rope": (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope": RopeConfig("linear", 5e5, 2.0)},
    ),
}


def write(path: Path, config: object) -> Path:
    path.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text, encoding="utf-8")
    return path


def failure(path: Path) -> str:
    """The message of the `ConfigError`, without the path it must begin with."""
    with pytest.raises(ConfigError) as error:
        DrafterConfig.from_pretrained(path)
    message, file = str(error.value), f"{path / 'config.json'}: "
    assert message.startswith(file)
    assert "\n" not in message
    return message.removeprefix(file)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_drafter(name: str, option: str, tmp_path: Path) -> None:
    fields, expected = OPTIONS[option]
    flat = drafter_config(**fields)
    config, _ = in_format(name, flat, drafter_tensors(flat))
    expected_config = replace(EXPECTED, **{**DIFFERENCES[name], **expected})
    assert DrafterConfig.from_pretrained(write(tmp_path, config)) == expected_config


def test_path_may_be_the_file_itself(tmp_path: Path) -> None:
    write(tmp_path, drafter_config())
    assert DrafterConfig.from_pretrained(tmp_path / "config.json") == EXPECTED
    assert DrafterConfig.from_pretrained(str(tmp_path)) == EXPECTED


@pytest.mark.parametrize("name", ["aws", "speculators"])
def test_qwen3_kind(name: str, tmp_path: Path) -> None:
    flat = drafter_config(architectures=["PeagleQwen3ForCausalLM"], model_type="qwen3")
    config, _ = in_format(name, flat, drafter_tensors(flat))
    assert DrafterConfig.from_pretrained(write(tmp_path, config)).qk_norm


def test_model_type_decides_without_architectures(tmp_path: Path) -> None:
    for model_type, qk_norm in (("qwen3", True), ("llama", False), (None, False)):
        config = drafter_config(architectures=None, model_type=model_type)
        assert DrafterConfig.from_pretrained(write(tmp_path, config)).qk_norm is qk_norm


def test_defaults_of_absent_fields(tmp_path: Path) -> None:
    names = ("target_hidden_size", "num_key_value_heads", "head_dim", "rope_theta")
    absent = dict.fromkeys((*names, "eagle_aux_hidden_state_layer_ids", "hidden_act"))
    config = DrafterConfig.from_pretrained(write(tmp_path, drafter_config(**absent)))
    assert config.target_hidden_size == 64
    assert (config.num_kv_heads, config.head_dim) == (2, 32)
    assert config.rope.theta == 10_000
    assert (config.num_taps, config.tap_layer_ids) == (3, None)


def test_five_taps(tmp_path: Path) -> None:
    ids = [2, 10, 18, 26, 34]
    config = drafter_config(eagle_aux_hidden_state_layer_ids=ids)
    loaded = DrafterConfig.from_pretrained(write(tmp_path, config))
    assert (loaded.num_taps, loaded.tap_layer_ids) == (5, tuple(ids))


def test_number_of_taps_without_layers(tmp_path: Path) -> None:
    config = drafter_config(eagle_aux_hidden_state_layer_ids=None, num_aux_hidden_states=4)
    loaded = DrafterConfig.from_pretrained(write(tmp_path, config))
    assert (loaded.num_taps, loaded.tap_layer_ids) == (4, None)


def test_dflash_layers_are_one_lower(tmp_path: Path) -> None:
    config = drafter_config(
        eagle_aux_hidden_state_layer_ids=None, dflash_config={"target_layer_ids": [1, 3, 7]}
    )
    assert DrafterConfig.from_pretrained(write(tmp_path, config)).tap_layer_ids == (2, 4, 8)


def test_eagle_config_wins_for_norm_before_fc(tmp_path: Path) -> None:
    config = drafter_config(norm_before_fc=True, eagle_config={"norm_before_fc": False})
    assert not DrafterConfig.from_pretrained(write(tmp_path, config)).norm_before_fc


def test_outer_fields_win_over_nested_ones(tmp_path: Path) -> None:
    flat = drafter_config()
    config, _ = in_format("nested", flat, drafter_tensors(flat))
    config["transformer_layer_config"] |= {"fc_norm": True, "norm_before_fc": True}
    config["norm_before_fc"] = False
    loaded = DrafterConfig.from_pretrained(write(tmp_path, config))
    assert loaded.fc_norm
    assert not loaded.norm_before_fc


@pytest.mark.parametrize("field", ["draft_vocab_size", "norm_before_residual"])
def test_an_outer_null_hides_nothing(field: str, tmp_path: Path) -> None:
    config, _ = in_format("nested", drafter_config(), {})
    value = {"draft_vocab_size": 20, "norm_before_residual": True}[field]
    config["transformer_layer_config"][field] = value
    config[field] = None
    assert getattr(DrafterConfig.from_pretrained(write(tmp_path, config)), field) == value


def test_yarn_scales_of_zero_are_unset(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32,
        "mscale": 0, "mscale_all_dim": 0,
    }  # fmt: skip
    config = DrafterConfig.from_pretrained(write(tmp_path, drafter_config(rope_scaling=scaling)))
    assert (config.rope.mscale, config.rope.mscale_all_dim) == (None, None)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("rope_theta", 1.0, "field `rope_theta` must be above 1, found 1.0"),
        ("rope_theta", 10**400, "field `rope_theta` must be a finite number above 0, found 1000"),
        ("max_position_embeddings", 10**9, "must be at most 16777216, found 1000000000"),
        ("intermediate_size", 10**30, "must be an integer of at most 2147483647, found 1000"),
    ],
)
def test_absurd_numbers(field: str, value: float, sentence: str, tmp_path: Path) -> None:
    assert sentence in failure(write(tmp_path, drafter_config(**{field: value})))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"hidden_size": ' + "1" * 5000 + "}"])
def test_json_without_bounds(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert "expected a configuration, found other JSON" in failure(tmp_path)


def test_sliding_window_that_is_switched_off(tmp_path: Path) -> None:
    """Qwen configurations carry one."""
    config = drafter_config(sliding_window=4096, use_sliding_window=False)
    assert DrafterConfig.from_pretrained(write(tmp_path, config)) == EXPECTED


def test_mask_token_in_the_order_of_vllm(tmp_path: Path) -> None:
    places: dict[str, Any] = {
        "dflash_config": {"mask_token_id": 10},
        "mask_token_id": 11,
        "dspark_noise_token_id": 12,
        "pard_token": 13,
        "ptd_token_id": 14,
    }
    found = []
    while places:
        config = drafter_config(**{"ptd_token_id": None, **places})
        found.append(DrafterConfig.from_pretrained(write(tmp_path, config)).mask_token_id)
        places.pop(next(iter(places)))
    assert found == [10, 11, 12, 13, 14]


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 32.0, "original_max_position_embeddings": 4096}
ROPES: list[tuple[dict[str, Any], RopeConfig]] = [
    ({"rope_scaling": {"type": "linear", "factor": 4}}, RopeConfig("linear", 1e4, 4.0)),
    (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        RopeConfig("llama3", 5e5, 8.0, original_max_position=8192),
    ),
    (
        {"rope_scaling": {"rope_type": "yarn", **YARN, "truncate": False, "beta_fast": 16}},
        RopeConfig("yarn", 1e4, 32.0, original_max_position=4096, truncate=False, beta_fast=16.0),
    ),
    (
        {"rope_scaling": {"rope_type": "yarn", **YARN, "mscale": 1, "mscale_all_dim": 0.5}},
        RopeConfig("yarn", 1e4, 32.0, original_max_position=4096, mscale=1.0, mscale_all_dim=0.5),
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", **YARN, "attention_factor": 1.5}},
        RopeConfig("yarn", 1e4, 32.0, original_max_position=4096, attention_factor=1.5),
    ),
    # Where both are given, transformers prefers the older field, and the theta within.
    (
        {
            "rope_scaling": {"type": "linear", "factor": 4, "rope_theta": 7.0},
            "rope_parameters": {"rope_type": "default"},
        },
        RopeConfig("linear", 7.0, 4.0),
    ),
    ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 9.0}}, RopeConfig(theta=9.0)),
]


@pytest.mark.parametrize(("fields", "rope"), ROPES)
def test_rope(fields: dict[str, Any], rope: RopeConfig, tmp_path: Path) -> None:
    config = drafter_config(**fields)
    assert DrafterConfig.from_pretrained(write(tmp_path, config)).rope == rope


POSITIVE = "expected an integer of at least 1"
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: None}, f"field `{name}` is missing, {POSITIVE}")
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
        )
    ),
    ({"rms_norm_eps": None}, "field `rms_norm_eps` is missing, expected a finite number above 0"),
    ({"rms_norm_eps": 0}, "field `rms_norm_eps` must be a finite number above 0, found 0"),
    (
        {"hidden_size": "64"},
        'field `hidden_size` must be an integer of at least 1, found "64"',
    ),
    ({"hidden_size": True}, "field `hidden_size` must be an integer of at least 1, found true"),
    (
        {"num_hidden_layers": 0},
        "field `num_hidden_layers` must be an integer of at least 1, found 0",
    ),
    (
        {"fc_norm": True, "norm_before_fc": True},
        "field `fc_norm` must be false, because norm_before_fc is true, found true",
    ),
    ({"fc_norm": "yes"}, 'field `fc_norm` must be true or false, found "yes"'),
    (
        {"num_key_value_heads": 3},
        "field `num_key_value_heads` must be a divisor of num_attention_heads 2, found 3",
    ),
    (
        {"head_dim": None, "num_attention_heads": 3},
        "field `num_attention_heads` must be a divisor of hidden_size 64, found 3",
    ),
    (
        {"head_dim": 63},
        "field `head_dim` must be even, because rotary embedding turns pairs, found 63",
    ),
    (
        {"draft_vocab_size": 51},
        "field `draft_vocab_size` must be at most vocab_size 50, found 51",
    ),
    ({"ptd_token_id": 50}, "field `ptd_token_id` must be below vocab_size 50, found 50"),
    (
        {"ptd_token_id": -1},
        "field `ptd_token_id` must be an integer of at least 0, found -1",
    ),
    (
        {"ptd_token_id": None},
        "no mask token, expected one of the fields `dflash_config.mask_token_id`, "
        "`mask_token_id`, `dspark_noise_token_id`, `pard_token`, `ptd_token_id`; "
        "without one this is not a P-EAGLE drafter",
    ),
    (
        {"num_aux_hidden_states": 4},
        "field `num_aux_hidden_states` must be 3, the number of tap layers [2, 4, 5], found 4",
    ),
    *(
        (
            {"eagle_aux_hidden_state_layer_ids": ids},
            "field `eagle_aux_hidden_state_layer_ids` must be a non-empty list of ascending "
            f"integers, each at least 0, found {found}",
        )
        for ids, found in (
            ([4, 2, 5], "[4, 2, 5]"),
            ([2, 2], "[2, 2]"),
            ([], "[]"),
            ([-1], "[-1]"),
            ("2", '"2"'),
        )
    ),
    (
        {"eagle_aux_hidden_state_layer_ids": None, "eagle_config": [1]},
        "field `eagle_config` must be an object, found [1]",
    ),
    (
        {
            "eagle_aux_hidden_state_layer_ids": None,
            "eagle_config": {"use_aux_hidden_state": False},
        },
        "field `eagle_config.use_aux_hidden_state` must be true, P-EAGLE drafts from several "
        "taps, found false",
    ),
    (
        {"hidden_act": "gelu"},
        'field `hidden_act` must be "silu", the only supported value, found "gelu"',
    ),
    ({"mlp_bias": True}, "field `mlp_bias` must be false, the only supported value, found true"),
    (
        {"kv_lora_rank": 512},
        "field `kv_lora_rank` must be null, the only supported value, found 512",
    ),
    (
        {"quantization_config": {"quant_method": "fp8"}},
        "field `quantization_config` must be null, the only supported value, found "
        '{"quant_method": "fp8"}',
    ),
    (
        {"logit_scale": 0.5},
        "field `logit_scale` must be 1.0, the only supported value, found 0.5",
    ),
    (
        {"sliding_window": 128},
        "field `sliding_window` must be null, only full attention is supported, found 128",
    ),
    (
        {"layer_types": ["full_attention", "sliding_attention"]},
        "field `layer_types` must be full_attention in every layer, found "
        '["full_attention", "sliding_attention"]',
    ),
    (
        {"architectures": "PEagleDraftModel"},
        'field `architectures` must be a list of names, found "PEagleDraftModel"',
    ),
    (
        {"architectures": None, "model_type": "gpt_oss"},
        'field `model_type` must be "llama" or "qwen3", found "gpt_oss"',
    ),
    (
        {"speculators_model_type": "peagle"},
        "field `transformer_layer_config` is missing, expected an object",
    ),
    (
        {"speculators_model_type": "eagle3", "transformer_layer_config": {"hidden_size": 64}},
        'field `speculators_model_type` must be "peagle", found "eagle3"',
    ),
    (
        {"transformer_layer_config": {"model_type": "llama"}},
        f"field `transformer_layer_config.hidden_size` is missing, {POSITIVE}",
    ),
    (
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        'field `rope_scaling.rope_type` must be default, linear, llama3 or yarn, found "longrope"',
    ),
    (
        {"rope_scaling": {"factor": 2.0}},
        "field `rope_scaling.rope_type` is missing, expected default, linear, llama3 or yarn",
    ),
    (
        {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        "field `rope_scaling.mrope_section` asks for multimodal rotary embedding, expected one "
        "position per token (default, linear, llama3 or yarn)",
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        "field `rope_parameters.original_max_position_embeddings` is missing, " + POSITIVE,
    ),
    (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
        "field `rope_scaling.high_freq_factor` must be above low_freq_factor 1.0, found 1.0",
    ),
    (
        {"partial_rotary_factor": 0.5},
        "field `partial_rotary_factor` must be 1.0, the only supported value, found 0.5",
    ),
]


@pytest.mark.parametrize(("fields", "sentence"), BAD_FIELDS)
def test_bad_field(fields: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    assert failure(write(tmp_path, drafter_config(**fields))) == sentence


def test_unknown_architecture(tmp_path: Path) -> None:
    message = failure(write(tmp_path, drafter_config(architectures=["DFlashDraftModel"])))
    assert message.startswith("field `architectures` must be one of PEagleDraftModel, ")
    assert message.endswith(', found ["DFlashDraftModel"]')


def test_unreadable_files(tmp_path: Path) -> None:
    assert failure(tmp_path) == "not found"
    write(tmp_path, '{"hidden_size": 64,\n]')
    assert failure(tmp_path).startswith("expected JSON, found an error in line 2 (")
    write(tmp_path, "[1, 2]")
    assert failure(tmp_path) == "expected a JSON object, found [1, 2]"
    (tmp_path / "config.json").write_bytes(b'{"a": "\xe9"}')
    assert failure(tmp_path) == "expected UTF-8 text, found byte 0xe9 at offset 7"


def test_taps_of_a_target() -> None:
    assert EXPECTED.taps(6) == (2, 4, 5)
    assert EXPECTED.taps(5) == (2, 4, 5)  # id 5 of 5 layers is the last layer's output
    unnamed = replace(EXPECTED, tap_layer_ids=None)
    assert unnamed.taps(24) == (2, 12, 21)
    assert unnamed.taps(36) == (2, 18, 33)


def test_taps_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="taps layer 5, expected at most 4, the number of layers"):
        EXPECTED.taps(4)
    for config, layers in (
        (replace(EXPECTED, tap_layer_ids=None), 6),
        (replace(EXPECTED, tap_layer_ids=None, num_taps=5), 24),
    ):
        with pytest.raises(ConfigError, match="names no tap layers: expected eagle_aux_hidden"):
            config.taps(layers)
