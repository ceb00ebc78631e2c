"""The parts of the vLLM plugin that need no vLLM; `tests/vllm` has the real engine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from checkpoints import write_drafter
from drafter_variants import VARIANTS
from p_eagle_cuda import vllm_plugin
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.errors import CheckpointError, ConfigError
from p_eagle_cuda.vllm_plugin.caches import adopt_caches
from p_eagle_cuda.vllm_plugin.options import PluginOptions
from p_eagle_cuda.vllm_plugin.replication import check_same_on_ranks, made_whole
from p_eagle_cuda.vllm_plugin.support import is_p_eagle, refusal
from p_eagle_cuda.vllm_plugin.versions import V1_VERSIONS, V2_VERSIONS, unsupported_version
from p_eagle_cuda.vllm_plugin.weights import adopt_weights, release_replaced
from p_eagle_cuda.weights import DrafterWeights, load_drafter_weights

VERSION = "0.33.0"

# ---- Versions and options ------------------------------------------------------------------------


def test_versions() -> None:
    for version in ("0.28.1", "0.33.0", "0.33.0rc1+cpu"):
        assert unsupported_version(version, *V1_VERSIONS) is None
    for version in ("0.27.1", "0.34.0", "1.0", "dev"):
        reason = unsupported_version(version, *V1_VERSIONS)
        assert reason == f"expected vLLM 0.28 to 0.33, found {version}"
    assert unsupported_version("0.31.0", *V2_VERSIONS) == "expected vLLM 0.32 to 0.33, found 0.31.0"
    assert unsupported_version("0.32.0", *V2_VERSIONS) is None


def test_options() -> None:
    assert PluginOptions.read({}) == PluginOptions.read(None) == PluginOptions()
    found = PluginOptions.read({"p_eagle_cuda": {"cuda_graphs": False, "max_target_rows": 7}})
    assert found == PluginOptions(cuda_graphs=False, max_target_rows=7)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([1], r"expected an object of options, got \[1\]"),
        ({"graphs": True}, "expected one of the options .*'cuda_graphs'.* got 'graphs'"),
        ({"cuda_graphs": 1}, "cuda_graphs must be of type bool, got 1"),
        ({"max_target_rows": True}, "max_target_rows must be of type int, got True"),
        ({"max_target_rows": 0}, "max_target_rows must be at least 1, got 0"),
        ({"linear": "cublas"}, "linear must be one of auto, fused, torch, cutlass, got 'cublas'"),
        ({"draft_length": "3"}, "draft_length must be one of fixed, auto, got '3'"),
        ({"draft_length": 3}, "draft_length must be of type str, got 3"),
        ({"row_cost": -0.5}, "row_cost must be at least 0, got -0.5"),
        ({"row_cost": float("nan")}, "row_cost must be at least 0, got nan"),
        ({"verification": "ours"}, "verification must be one of vllm, p_eagle_cuda, got 'ours'"),
        ({"weights": "int4"}, "weights must be one of auto, bf16, fp8_head, fp8, w8a8, got 'int4'"),
    ],
)
def test_wrong_options(given: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        PluginOptions.read({"p_eagle_cuda": given})


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of vLLM is imported, which is not there."""
    monkeypatch.setenv("P_EAGLE_CUDA_DISABLE", "1")
    monkeypatch.setitem(vllm_plugin._state, "registered", False)
    vllm_plugin.register()
    assert vllm_plugin._state["registered"]
    monkeypatch.delenv("P_EAGLE_CUDA_DISABLE")
    vllm_plugin.register()  # once is enough


# ---- What is refused -----------------------------------------------------------------------------


def config_of(**changes: Any) -> Any:
    """VLLM's configuration as far as it is looked at; paths are joined by two underscores."""
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(
            method="eagle3", parallel_drafting=True, draft_sample_method="greedy",
            disable_padded_drafter_batch=False,
            draft_model_config=SimpleNamespace(
                uses_mrope=False, quantization=None, hf_config=SimpleNamespace(),
                head_size=64, get_head_size=lambda: config.head_size,
            ),
        ),
        model_config=SimpleNamespace(supports_multimodal_inputs=False, dtype=torch.bfloat16),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        lora_config=None, head_size=64,
    )  # fmt: skip
    for path, value in changes.items():
        *parents, name = path.split("__")
        owner = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    return config


def test_what_is_ours() -> None:
    assert is_p_eagle(config_of())
    assert not is_p_eagle(config_of(speculative_config__parallel_drafting=False))
    assert not is_p_eagle(config_of(speculative_config__method="eagle"))


def test_nothing_is_refused_that_works() -> None:
    assert refusal(config_of(), "cpu", "V1", VERSION) is None
    assert refusal(config_of(), "cuda", "V1", VERSION) is None
    assert refusal(config_of(model_config__dtype=torch.float32), "cpu", "V1", VERSION) is None
    drawn = config_of(speculative_config__draft_sample_method="probabilistic")
    assert refusal(drawn, "cuda", "V1", VERSION) is refusal(drawn, "cuda", "V2", VERSION) is None
    unpadded = config_of(speculative_config__disable_padded_drafter_batch=True)
    assert refusal(unpadded, "cuda", "V2", VERSION) is None  # it has no other drafts


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("speculative_config__draft_model_config__uses_mrope", True, "M-RoPE"),
        ("model_config__supports_multimodal_inputs", True, "multimodal"),
        ("parallel_config__pipeline_parallel_size", 2, "pipeline stages"),
        ("parallel_config__decode_context_parallel_size", 2, "contexts are split"),
        ("parallel_config__prefill_context_parallel_size", 2, "contexts are split"),
        ("speculative_config__draft_model_config__quantization", "fp8", "is quantised"),
        ("speculative_config__use_heterogeneous_vocab", True, "different vocabularies"),
        ("speculative_config__draft_model_config__hf_config__logit_scale", 0.5, "scales its"),
        ("lora_config", object(), "LoRA"),
        ("watermark_config", object(), "watermarked"),
        ("speculative_config__enable_adaptive_verification", True, "adaptive"),
        ("speculative_config__disable_padded_drafter_batch", True, "not padded"),
        ("head_size", 96, "have size 96, the kernels take 64 or 128"),
        ("model_config__dtype", torch.float32, "take bfloat16 and float16"),
    ],
)
def test_what_is_refused(path: str, value: Any, reason: str) -> None:
    found = refusal(config_of(**{path: value}), "cuda", "V1", VERSION)
    assert found is not None
    assert reason in found
    assert "\n" not in found


def test_targets_on_several_ranks() -> None:
    """With the version that it was tried with, and caches that stay where they are."""
    config = config_of(parallel_config__tensor_parallel_size=8)
    assert refusal(config, "cuda", "V1", VERSION) is refusal(config, "cuda", "V2", VERSION) is None
    found = refusal(config, "cuda", "V1", "0.32.0")
    assert found == (
        "the target is split over several GPUs: expected vLLM 0.33 to 0.33, found 0.32.0"
    )
    config.kv_transfer_config = object()
    assert "caches go to another engine" in (refusal(config, "cuda", "V1", VERSION) or "")
    config.parallel_config.tensor_parallel_size = 1
    assert refusal(config, "cuda", "V1", "0.32.0") is None


def test_multimodal_targets_before_vllm_0_31(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry tells there."""
    config = config_of()
    del config.model_config.supports_multimodal_inputs
    asked = []
    registry = SimpleNamespace(supports_multimodal_inputs=lambda x: bool(asked.append(x)) or is_so)
    module = SimpleNamespace(MULTIMODAL_REGISTRY=registry)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(multimodal=module))
    monkeypatch.setitem(sys.modules, "vllm.multimodal", module)
    for is_so in (False, True):
        assert ("multimodal" in (refusal(config, "cuda", "V1", VERSION) or "")) == is_so
    assert asked == [config.model_config] * 2


def test_a_configuration_that_is_not_known_is_refused() -> None:
    """As of a version that has renamed something: vLLM must start all the same."""
    config = config_of()
    del config.parallel_config.pipeline_parallel_size
    found = refusal(config, "cpu", "V1", VERSION)
    assert found is not None
    assert "is not one that is known" in found
    assert "pipeline_parallel_size" in found


def test_other_devices_are_refused() -> None:
    assert refusal(config_of(), "xpu", "V1", VERSION) == "there are no kernels for xpu"


# ---- Weights and caches --------------------------------------------------------------------------


def module_of(weights: DrafterWeights, mask_taps: torch.Tensor) -> Any:
    """VLLM's module with these weights, as far as it is looked at; vocabularies are padded."""

    def linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
        return SimpleNamespace(weight=weight, bias=bias)

    def padded(weight: torch.Tensor) -> Any:
        rows = -(-len(weight) // 64) * 64 - len(weight)
        return linear(torch.cat([weight, weight.new_full((rows, weight.shape[1]), torch.nan)]))

    layers = [
        SimpleNamespace(
            input_layernorm=linear(x.input_norm),
            hidden_norm=linear(x.input_norm if x.hidden_norm is None else x.hidden_norm),
            self_attn=SimpleNamespace(
                qkv_proj=linear(x.qkv, x.qkv_bias), q_norm=linear(x.q_norm),
                k_norm=linear(x.k_norm), o_proj=linear(x.o, x.o_bias), attn=SimpleNamespace(),
            ),
            post_attention_layernorm=linear(x.post_norm),
            mlp=SimpleNamespace(gate_up_proj=linear(x.gate_up), down_proj=linear(x.down)),
        )
        for x in weights.layers
    ]  # fmt: skip
    core = SimpleNamespace(
        embed_tokens=padded(weights.embedding), fc=linear(weights.fc), layers=layers,
        norm=linear(weights.norm),
        input_norm=None if weights.input_norm is None else linear(weights.input_norm),
        fc_norm=None if weights.fc_norms is None else [linear(x) for x in weights.fc_norms],
    )  # fmt: skip
    offsets = None
    if weights.draft_to_target is not None:
        offsets = weights.draft_to_target - torch.arange(len(weights.draft_to_target))
    return SimpleNamespace(
        model=core, lm_head=padded(weights.lm_head), mask_hidden=mask_taps.view(1, -1),
        draft_id_to_target_id=offsets,
    )  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_shared(variant: str, tmp_path: Path) -> None:
    tensors = write_drafter(tmp_path, **VARIANTS[variant])
    config = DrafterConfig.from_pretrained(tmp_path)
    expected = load_drafter_weights(tmp_path, config, dtype=torch.float32)
    module = module_of(expected, tensors["mask_hidden"].float())
    adopted = adopt_weights(module, config, len(expected.rope))
    found = adopted.weights
    assert adopted.replaced == ()
    for name, value in vars(expected).items():
        if name == "layers":
            for x, y in zip(found.layers, value, strict=True):
                for part in vars(y):
                    one, other = getattr(x, part), getattr(y, part)
                    assert (one is None) == (other is None), part
                    if one is not None:
                        assert one.data_ptr() == other.data_ptr(), part
        elif not isinstance(value, torch.Tensor):
            assert getattr(found, name) == value, name
        else:
            assert torch.equal(getattr(found, name), value), name
    assert found.fc.data_ptr() == expected.fc.data_ptr()
    assert found.lm_head.data_ptr() == module.lm_head.weight.data_ptr()


@pytest.mark.parametrize("precision", ["fp8_head", "fp8", "w8a8"])
def test_fp8_weights_take_the_place_of_vllms(precision: str, tmp_path: Path) -> None:
    tensors = write_drafter(tmp_path)
    config = DrafterConfig.from_pretrained(tmp_path)
    own, expected = (
        load_drafter_weights(tmp_path, config, dtype=torch.float32, precision=x)
        for x in ("auto", precision)
    )
    module = module_of(own, tensors["mask_hidden"].float())
    adopted = adopt_weights(module, config, len(own.rope), precision)
    layers = zip(adopted.weights.layers, expected.layers, strict=True)
    for found, wanted in [(adopted.weights, expected), *layers]:
        for name, value in vars(wanted).items():
            if isinstance(value, torch.Tensor):
                assert getattr(found, name).dtype == value.dtype, name
                assert torch.equal(getattr(found, name).float(), value.float()), name
    assert adopted.weights.fp8_activations == (precision == "w8a8")
    is_head_alone = precision == "fp8_head"
    assert len(adopted.replaced) == (1 if is_head_alone else 2 + 4 * config.num_layers)

    # The head is the target's, too, and stays; the rest is freed.
    release_replaced(adopted, SimpleNamespace(parameters=lambda: [module.lm_head.weight]))
    assert module.lm_head.weight.numel() > 0
    assert (module.model.fc.weight.numel() == 0) != is_head_alone
    release_replaced(adopted, SimpleNamespace(parameters=list))
    assert module.lm_head.weight.numel() == 0


def test_a_vocabulary_in_shards_is_gathered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a target on two ranks, which is embedding and head."""
    tensors = write_drafter(tmp_path)
    config = DrafterConfig.from_pretrained(tmp_path)
    own = load_drafter_weights(tmp_path, config, dtype=torch.float32)
    module = module_of(own, tensors["mask_hidden"].float())
    whole = module.model.embed_tokens.weight
    first, second = whole.chunk(2)
    shards = SimpleNamespace(weight=first, bias=None, tp_size=2)
    module.model.embed_tokens = module.lm_head = shards
    gathered = []

    def all_gather(x: torch.Tensor, dim: int) -> torch.Tensor:
        gathered.append(x)
        return torch.cat([x, second], dim)

    distributed = SimpleNamespace(get_tp_group=lambda: SimpleNamespace(all_gather=all_gather))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(distributed=distributed))
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    adopted = adopt_weights(module, config, 16)
    found = adopted.weights
    assert torch.equal(found.embedding, own.embedding)
    assert torch.equal(found.lm_head, own.embedding[: config.draft_vocab_size])
    assert len(gathered) == 1
    assert adopted.gathered == {found.embedding.data_ptr()} == {found.lm_head.data_ptr()}
    quantized = adopt_weights(module, config, 16, "fp8_head")
    assert quantized.weights.lm_head.data_ptr() not in quantized.gathered
    # The shard is the target's, and stays.
    release_replaced(quantized, SimpleNamespace(parameters=lambda: [first]))
    assert first.numel() > 0


def test_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of one rank stands in, and the target's comes back, whatever happens."""
    state = SimpleNamespace(_TP="eight", get_pp_group=lambda: SimpleNamespace(world_size=1))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(distributed=state))
    monkeypatch.setitem(sys.modules, "vllm.distributed", SimpleNamespace(parallel_state=state))
    config = config_of()
    with made_whole(config):
        assert state._TP == "eight", "one rank has nothing to split"
    config.parallel_config.tensor_parallel_size = 8

    def fail() -> None:
        with made_whole(config):
            assert state._TP.world_size == 1
            raise CheckpointError("no such file")

    with pytest.raises(CheckpointError):
        fail()
    assert state._TP == "eight"


def test_drafts_that_differ_between_ranks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = torch.arange(6).view(2, 3)
    of_ranks = [drafts, drafts.clone(), drafts.clone()]
    group = SimpleNamespace(world_size=3, all_gather=lambda _, dim: torch.cat(of_ranks, dim))
    distributed = SimpleNamespace(get_tp_group=lambda: group)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(distributed=distributed))
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    check_same_on_ranks(drafts)
    of_ranks[2][1, 0] += 1
    with pytest.raises(RuntimeError, match=r"on each of 3 ranks, those of ranks \[2\] are not"):
        check_same_on_ranks(drafts)


def test_no_precision_that_the_dtype_does_not_have(tmp_path: Path) -> None:
    tensors = write_drafter(tmp_path)
    config = DrafterConfig.from_pretrained(tmp_path)
    weights = load_drafter_weights(tmp_path, config, dtype=torch.float32)
    module = module_of(weights, tensors["mask_hidden"].float())
    with pytest.raises(ConfigError, match="needs the working dtype bfloat16"):
        adopt_weights(module, config, 16, "bf16")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    tensors = write_drafter(tmp_path)
    config = DrafterConfig.from_pretrained(tmp_path)
    weights = load_drafter_weights(tmp_path, config, dtype=torch.float32)
    module = module_of(weights, tensors["mask_hidden"].float())
    layer = module.model.layers[1]
    good = layer.mlp.down_proj
    layer.mlp.down_proj = SimpleNamespace(weight=torch.empty(0), bias=None)
    with pytest.raises(CheckpointError, match=r"layers\.1\.down_proj\.weight of vLLM's drafter"):
        adopt_weights(module, config, 16)
    layer.mlp.down_proj = SimpleNamespace(bias=None)
    with pytest.raises(CheckpointError, match=r"has no layers\.1\.down_proj\.weight"):
        adopt_weights(module, config, 16)
    layer.mlp.down_proj = good
    adopt_weights(module, config, 16)


def module_with_caches(stored: torch.Tensor, dtype: str, num_layers: int) -> Any:
    layers = [
        SimpleNamespace(
            self_attn=SimpleNamespace(
                attn=SimpleNamespace(
                    kv_cache=stored, kv_cache_dtype=dtype, _k_scale=torch.tensor(0.5 + i),
                    _v_scale=torch.tensor(2.0 + i),
                )
            )
        )
        for i in range(num_layers)
    ]  # fmt: skip
    return SimpleNamespace(model=SimpleNamespace(layers=layers))


def test_caches_are_views(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    config = DrafterConfig.from_pretrained(tmp_path)
    D, heads = config.head_dim, config.num_kv_heads
    # Rows of a block before heads, as vLLM's default layout has it.
    stored = torch.arange(6 * 16 * heads * 2 * D).view(6, 16, heads, 2 * D).float().transpose(1, 2)
    caches = adopt_caches(module_with_caches(stored, "auto", 3), config, torch.float32)
    assert len(caches) == config.num_layers
    for i, cache in enumerate(caches):
        assert torch.equal(torch.cat([cache.k, cache.v], dim=-1), stored)
        assert cache.k.data_ptr() == stored.data_ptr()
        assert (cache.k_scale.tolist(), cache.v_scale.tolist()) == ([0.5 + i], [2.0 + i])
    fp8 = adopt_caches(
        module_with_caches(torch.zeros(6, heads, 16, 2 * D, dtype=torch.uint8), "fp8", 3), config,
        torch.bfloat16,
    )  # fmt: skip
    assert fp8[0].k.dtype == torch.float8_e4m3fn
    with pytest.raises(ConfigError, match=r"cache of layer 0 must be \[blocks, 1, block, 128\]"):
        adopt_caches(module_with_caches(stored[..., 2:], "auto", 3), config, torch.float32)
    with pytest.raises(ConfigError, match=r"must have dtype torch.bfloat16 or an FP8 one"):
        adopt_caches(module_with_caches(stored, "auto", 3), config, torch.bfloat16)
