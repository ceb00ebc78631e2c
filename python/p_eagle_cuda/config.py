"""What a P-EAGLE drafter is, read from the `config.json` of every known checkpoint format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from p_eagle_cuda.errors import ConfigError
from p_eagle_cuda.fields import ConfigFields, shown

# Names under which vLLM 0.33 registers drafters (model_executor/models/registry.py) or completes to
# such (transformers_utils/configs/eagle.py), plus SGLang's and NeMo Automodel's own. The Qwen3 kind
# normalises queries and keys per head.
_AUTOMODEL_ARCHITECTURES = ("LlamaEagle3DraftModel", "LlamaPEagleDraftModel")
_LLAMA_ARCHITECTURES = (
    "PEagleDraftModel",
    "PeagleLlamaForCausalLM",
    "Eagle3LlamaForCausalLM",
    "LlamaForCausalLMEagle3",
    "LlamaForCausalLM",
    "LlamaForCausalLMPeagle",
    *_AUTOMODEL_ARCHITECTURES,
)
_QWEN3_ARCHITECTURES = (
    "PeagleQwen3ForCausalLM",
    "Eagle3Qwen3ForCausalLM",
    "Qwen3ForCausalLM",
)

# Settings that change the computation, and the one value that is implemented.
_ONLY_SUPPORTED: Mapping[str, object] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "logit_scale": 1.0,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "q_lora_rank": None,
    "kv_lora_rank": None,
    "quantization_config": None,
}

DEFAULT_ROPE_THETA = 10_000.0  # of Hugging Face's Llama and Qwen3 configurations
MAX_POSITIONS = 2**24  # a rope table of 4 GB at head_dim 64; no model comes near
DEFAULT_NUM_TAPS = 3  # vLLM's, when a configuration does not say


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


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; the parameters of the other types keep their defaults.

    Attributes:
        rope_type: `default`, `linear`, `llama3` or `yarn`.
        theta: base of the geometric series of wavelengths.
        factor: by how much `linear`, `llama3` and `yarn` stretch the context.
        original_max_position: context in tokens before stretching (`llama3`, `yarn`).
        low_freq_factor: `llama3`, wavelengths above original / low_freq_factor are stretched.
        high_freq_factor: `llama3`, wavelengths below original / high_freq_factor are kept.
        beta_fast: `yarn`, dimensions turning more often than this within the original are kept.
        beta_slow: `yarn`, dimensions turning less often than this are stretched.
        attention_factor: `yarn`, scale of cosine and sine; None for the one derived from `factor`.
        mscale: `yarn`, numerator of the derived scale, used only together with `mscale_all_dim`.
        mscale_all_dim: `yarn`, denominator of the derived scale.
        truncate: `yarn`, whether the bounds of the blend are rounded to whole dimensions.
    """

    rope_type: str = "default"
    theta: float = DEFAULT_ROPE_THETA
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def from_fields(cls, fields: ConfigFields) -> RopeConfig:
        """Read `rope_scaling` + `rope_theta`, or `rope_parameters` of transformers 5.

        As in transformers, a non-empty `rope_scaling` wins over `rope_parameters`, a `rope_theta`
        inside wins over one beside it, and 10000 is meant where there is none.
        """
        name = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
        rope = fields.section(name)
        theta = rope.number("rope_theta", fields.number("rope_theta", DEFAULT_ROPE_THETA))
        if theta <= 1:
            raise (rope if "rope_theta" in rope else fields).error("rope_theta", "above 1")
        if "factor" in rope and "rope_type" not in rope and "type" not in rope:
            raise rope.error("rope_type", "default, linear, llama3 or yarn")
        key = "rope_type" if "rope_type" in rope else "type"
        rope_type = rope.string(key, "default")
        if "mrope_section" in rope:
            raise ConfigError(
                f"{fields.file}: field `{rope.prefix}mrope_section` asks for multimodal rotary "
                "embedding, expected one position per token (default, linear, llama3 or yarn)"
            )
        _check_only_supported(rope)

        if rope_type == "default":
            return cls(theta=theta)
        if rope_type == "linear":
            return cls("linear", theta, rope.number("factor"))
        if rope_type == "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            if low >= high:
                raise rope.error("high_freq_factor", f"above low_freq_factor {low}")
            return cls(
                "llama3",
                theta,
                rope.number("factor"),
                original_max_position=rope.integer("original_max_position_embeddings"),
                low_freq_factor=low,
                high_freq_factor=high,
            )
        if rope_type == "yarn":
            return cls(
                "yarn",
                theta,
                rope.number("factor"),
                original_max_position=rope.integer("original_max_position_embeddings"),
                beta_fast=rope.number("beta_fast", 32.0),
                beta_slow=rope.number("beta_slow", 1.0),
                attention_factor=_number_or_none(rope, "attention_factor"),
                # Zero means unset, as in transformers.
                mscale=_number_or_none(rope, "mscale") if rope.values.get("mscale") else None,
                mscale_all_dim=(
                    _number_or_none(rope, "mscale_all_dim")
                    if rope.values.get("mscale_all_dim")
                    else None
                ),
                truncate=rope.boolean("truncate", True),
            )
        raise rope.error(key, "default, linear, llama3 or yarn")


@dataclass(frozen=True)
class DrafterConfig:
    """A P-EAGLE drafter: a Llama-type decoder fed by taps into its target's hidden states.

    Attributes:
        hidden_size: width H of the drafter.
        target_hidden_size: width Ht of the target's hidden states.
        num_taps: how many target hidden states are joined before `fc`.
        tap_layer_ids: ascending; id i is the hidden state entering target layer i, the number of
            layers is the output of the last one. None when the checkpoint leaves it to the host,
            see `taps`.
        intermediate_size: width I of the gated MLP.
        num_layers: decoder layers; the first also takes the token embedding.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width D of a head.
        vocab_size: rows V of the embedding, the target's vocabulary.
        draft_vocab_size: rows Vd of the output head, at most V.
        rms_norm_eps: added to the mean square in every norm.
        rope: rotary position embedding.
        max_position_embeddings: positions the checkpoint allows.
        mask_token_id: the token whose embedding enters at mask rows.
        attention_bias: whether the projections to queries, keys and values have biases.
        qk_norm: whether queries and keys are normalised per head (the Qwen3 kind).
        norm_before_residual: whether layer 0's residual is the normalised fc output.
        norm_before_fc: whether one norm spans all taps before `fc`.
        fc_norm: whether each tap has its own norm before `fc`; never together with the former.
        norm_output: whether the hidden state handed back by the model is the normalised one; it
            does not change the drafted tokens, because P-EAGLE does not feed it back.
        num_speculative_tokens: depths the checkpoint was trained for, where it says so.
        tie_word_embeddings: whether the output head is the embedding when there is none.
        source_format: `flat` (AWS, vLLM), `nested` (AWS training), `automodel` or `speculators`.
    """

    hidden_size: int
    target_hidden_size: int
    num_taps: int
    tap_layer_ids: tuple[int, ...] | None
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    mask_token_id: int
    attention_bias: bool = False
    qk_norm: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    num_speculative_tokens: int | None = None
    tie_word_embeddings: bool = False
    source_format: str = "flat"

    @classmethod
    def from_pretrained(cls, path: str | Path) -> DrafterConfig:
        """Read the configuration of a drafter checkpoint.

        Args:
            path: a checkpoint folder, or its `config.json`.

        Raises:
            ConfigError: the file is not there, is not JSON, lacks a field, contradicts itself, or
                describes something that is not supported.
        """
        return cls.from_fields(ConfigFields.read(path))

    @classmethod
    def from_fields(cls, outer: ConfigFields) -> DrafterConfig:
        """From the contents of a `config.json`; see `from_pretrained`."""
        # Nested formats keep the decoder's settings apart; the drafter's own stand outside, where
        # they win over one inside.
        layer = outer.section("transformer_layer_config") if _is_nested(outer) else outer
        own = {name: value for name, value in outer.values.items() if value is not None}
        drafter = ConfigFields({**layer.values, **own}, outer.file)
        source_format, qk_norm = _kind(outer, layer)

        check_decoder_supported(layer)
        _check_only_supported(outer)
        hidden_size = layer.integer("hidden_size")
        num_heads, num_kv_heads, head_dim = attention_heads(layer)
        vocab_size = layer.integer("vocab_size")
        draft_vocab_size = drafter.integer("draft_vocab_size", vocab_size)
        if draft_vocab_size > vocab_size:
            raise drafter.error("draft_vocab_size", f"at most vocab_size {vocab_size}")
        tap_layer_ids, num_taps = _taps(drafter)
        eagle = drafter.section("eagle_config")
        norm_before_fc = eagle.boolean("norm_before_fc", drafter.boolean("norm_before_fc", False))
        fc_norm = drafter.boolean("fc_norm", False)
        if norm_before_fc and fc_norm:
            raise drafter.error("fc_norm", "false, because norm_before_fc is true")
        return cls(
            hidden_size=hidden_size,
            target_hidden_size=drafter.integer("target_hidden_size", hidden_size),
            num_taps=num_taps,
            tap_layer_ids=tap_layer_ids,
            intermediate_size=layer.integer("intermediate_size"),
            num_layers=layer.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            draft_vocab_size=draft_vocab_size,
            rms_norm_eps=layer.number("rms_norm_eps"),
            rope=RopeConfig.from_fields(layer),
            max_position_embeddings=context_length(layer),
            mask_token_id=_mask_token_id(drafter, vocab_size),
            attention_bias=layer.boolean("attention_bias", False),
            qk_norm=qk_norm,
            norm_before_residual=drafter.boolean("norm_before_residual", False),
            norm_before_fc=norm_before_fc,
            fc_norm=fc_norm,
            norm_output=drafter.boolean("norm_output", False),
            num_speculative_tokens=_trained_depths(drafter),
            tie_word_embeddings=layer.boolean("tie_word_embeddings", False),
            source_format=source_format,
        )

    def taps(self, num_target_layers: int) -> tuple[int, ...]:
        """The taps into a target of that many layers.

        Where the checkpoint names none these are vLLM's (2, n // 2, n - 3), see `SupportsEagle3`
        in its model_executor/models/interfaces.py.
        """
        taps = self.tap_layer_ids
        if taps is None:
            taps = (2, num_target_layers // 2, num_target_layers - 3)
            if self.num_taps != len(taps) or not 2 < taps[1] < taps[2]:
                raise ConfigError(
                    f"the drafter names no tap layers: expected eagle_aux_hidden_state_layer_ids, "
                    f"because the usual three do not fit {self.num_taps} taps into a target of "
                    f"{num_target_layers} layers"
                )
        if taps[-1] > num_target_layers:
            raise ConfigError(
                f"the drafter taps layer {taps[-1]}, expected at most {num_target_layers}, the "
                "number of layers of the target"
            )
        return taps


def attention_heads(fields: ConfigFields) -> tuple[int, int, int]:
    """Query heads, key and value heads (default: as many), head_dim (default: hidden / heads)."""
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads {num_heads}")
    if "head_dim" not in fields and hidden_size % num_heads:
        raise fields.error("num_attention_heads", f"a divisor of hidden_size {hidden_size}")
    head_dim = fields.integer("head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise fields.error("head_dim", "even, because rotary embedding turns pairs")
    return num_heads, num_kv_heads, head_dim


def context_length(fields: ConfigFields) -> int:
    """`max_position_embeddings`, within what a rope table may be allocated for."""
    positions = fields.integer("max_position_embeddings")
    if positions > MAX_POSITIONS:
        raise fields.error("max_position_embeddings", f"at most {MAX_POSITIONS}")
    return positions


def check_decoder_supported(fields: ConfigFields) -> None:
    """Raise `ConfigError` where a decoder is not Llama-like in a way that changes its outputs."""
    _check_only_supported(fields)
    layer_types = fields.values.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise fields.error("layer_types", "full_attention in every layer")
    # Qwen configurations carry a window that `use_sliding_window` switches off.
    if "sliding_window" in fields and layer_types is None and "use_sliding_window" not in fields:
        raise fields.error("sliding_window", "null, only full attention is supported")


def _check_only_supported(fields: ConfigFields) -> None:
    for name, supported in _ONLY_SUPPORTED.items():
        if name in fields and fields.values[name] != supported:
            raise fields.error(name, f"{shown(supported)}, the only supported value")


def _is_nested(outer: ConfigFields) -> bool:
    return "transformer_layer_config" in outer or "speculators_model_type" in outer


def _kind(outer: ConfigFields, layer: ConfigFields) -> tuple[str, bool]:
    """The format of a checkpoint, and whether its drafter is of the Qwen3 kind."""
    if _is_nested(outer):
        if "transformer_layer_config" not in outer:
            raise outer.error("transformer_layer_config", "an object")
        if outer.string("speculators_model_type", "peagle") != "peagle":
            raise outer.error("speculators_model_type", '"peagle"')
        # Here `architectures` names a training class; vLLM goes by the model type as well.
        is_speculators = "speculators_model_type" in outer
        return ("speculators" if is_speculators else "nested"), _is_qwen3(layer)

    if "architectures" not in outer:
        return "flat", _is_qwen3(outer)
    architectures = outer.values["architectures"]
    if not isinstance(architectures, list):
        raise outer.error("architectures", "a list of names")
    # The model type says nothing here: Automodel keeps the target's in a plain Llama drafter.
    if any(name in _QWEN3_ARCHITECTURES for name in architectures):
        return "flat", True
    if not any(name in _LLAMA_ARCHITECTURES for name in architectures):
        raise outer.error(
            "architectures", f"one of {', '.join(_LLAMA_ARCHITECTURES + _QWEN3_ARCHITECTURES)}"
        )
    is_automodel = any(name in _AUTOMODEL_ARCHITECTURES for name in architectures)
    return ("automodel" if is_automodel else "flat"), False


def _is_qwen3(fields: ConfigFields) -> bool:
    model_type = fields.string("model_type", "llama")
    if model_type not in ("llama", "qwen3"):
        raise fields.error("model_type", '"llama" or "qwen3"')
    return model_type == "qwen3"


def _taps(drafter: ConfigFields) -> tuple[tuple[int, ...] | None, int]:
    """Tap layer ids, looked up where vLLM does (gpu_model_runner.py), and their number."""
    ids = drafter.ascending("eagle_aux_hidden_state_layer_ids")
    if not ids:
        eagle = drafter.section("eagle_config")
        if not eagle.boolean("use_aux_hidden_state", True):
            raise eagle.error("use_aux_hidden_state", "true, P-EAGLE drafts from several taps")
        ids = eagle.ascending("eagle_aux_hidden_state_layer_ids")
    if not ids:
        # DFlash names the layer whose output is tapped, one below the layer it enters.
        dflash = drafter.section("dflash_config").ascending("target_layer_ids")
        ids = tuple(layer + 1 for layer in dflash)
    name = "num_aux_layers" if "num_aux_layers" in drafter else "num_aux_hidden_states"
    num_taps = drafter.integer(name, len(ids) or DEFAULT_NUM_TAPS)
    if ids and num_taps != len(ids):
        raise drafter.error(name, f"{len(ids)}, the number of tap layers {list(ids)}")
    return ids or None, num_taps


def _mask_token_id(drafter: ConfigFields, vocab_size: int) -> int:
    """The mask token, in the order of vLLM 0.33 (v1/spec_decode/llm_base_proposer.py)."""
    candidates = [(drafter.section("dflash_config"), "mask_token_id")]
    candidates += [
        (drafter, name)
        for name in ("mask_token_id", "dspark_noise_token_id", "pard_token", "ptd_token_id")
    ]
    for fields, name in candidates:
        if name in fields:
            token = fields.integer(name, minimum=0)
            if token >= vocab_size:
                raise fields.error(name, f"below vocab_size {vocab_size}")
            return token
    names = ", ".join(f"`{fields.prefix}{name}`" for fields, name in candidates)
    raise ConfigError(
        f"{drafter.file}: no mask token, expected one of the fields {names}; "
        "without one this is not a P-EAGLE drafter"
    )


def _trained_depths(drafter: ConfigFields) -> int | None:
    """Depths trained for: Automodel, then the AWS training format, then speculators."""
    for name in ("num_depths", "para_depths"):
        if name in drafter:
            return drafter.integer(name)
    methods = drafter.section("speculators_config").values.get("proposal_methods")
    if isinstance(methods, list) and methods and isinstance(methods[0], dict):
        method = ConfigFields(methods[0], drafter.file, "speculators_config.proposal_methods[0].")
        if "speculative_tokens" in method:
            return method.integer("speculative_tokens")
    return None


def _number_or_none(fields: ConfigFields, name: str) -> float | None:
    return fields.number(name) if name in fields else None
