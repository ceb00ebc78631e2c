"""Drafters that kernels cannot run: refused when they are made, for the reasons that ops have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_cases import attention_case
from checkpoints import write_drafter
from drafter_passes import SIZES
from op_cases import CASES, Arguments
from p_eagle_cuda import Drafter
from p_eagle_cuda import drafter as drafter_module
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.cuda_limits import cuda_refusals
from p_eagle_cuda.errors import BackendError
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.ops.head import MAX_SAMPLES
from p_eagle_cuda.reference import LayerCache
from sim import torch_ops
from sim.emulator import FOUR

BF16 = torch.bfloat16
GOOD: dict[str, Any] = {
    "dtype": BF16, "num_samples": 64 * 7, "top_k": 16, "architecture": "sm_90",
    "built_for": ("80", "90a"), "block_size": 16, "cache_dtype": BF16,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> DrafterConfig:
    write_drafter(tmp_path, hidden_size=128)
    return DrafterConfig.from_pretrained(tmp_path)


def refusals(
    config: DrafterConfig,
    change: Callable[[LayerCache], LayerCache] = lambda cache: cache,
    **changes: Any,
) -> list[str]:
    """Of a drafter that is good but for the changes, of its configuration or of other things."""
    others = {name: changes.pop(name, value) for name, value in GOOD.items()}
    config = replace(config, **changes)
    caches = allocate_cache(
        2, 3, config.num_kv_heads, others.pop("block_size"), config.head_dim,
        others.pop("cache_dtype"),
    )  # fmt: skip
    return cuda_refusals(config, caches=[caches[0], change(caches[1])], **others)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_size": 2880},
        {"hidden_size": 8192, "head_dim": 128},
        {"block_size": 128, "cache_dtype": torch.float8_e4m3fn},
        {"dtype": torch.float16, "cache_dtype": torch.float8_e5m2},
        {"architecture": "sm_89"},
        {"num_samples": MAX_SAMPLES},
        {"architecture": "cpu", "head_dim": 96, "dtype": torch.float64, "hidden_size": 100},
    ],
    ids=str,
)
def test_runs(changes: dict[str, Any], config: DrafterConfig) -> None:
    assert refusals(config, **changes) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 96}, "the head size must be 64 or 128, got 96"),
        ({"block_size": 8}, "the block size must be 16, 32, 64 or 128, got 8"),
        ({"hidden_size": 96}, "the hidden size must be a multiple of 64, at most 8192, got 96"),
        ({"hidden_size": 8256}, "the hidden size must be a multiple of 64, at most 8192, got 8256"),
        ({"num_taps": 9}, "tapped layers must be at most 8, got 9"),
        (
            {"num_samples": MAX_SAMPLES + 1},
            "sampled rows, that is max_requests * num_speculative_tokens, must be at most 65536, "
            "got 65537",
        ),
        ({"top_k": 17}, "top_k must be at most 16, got 17"),
        ({"draft_vocab_size": 10}, "top_k must be at most 10, got 16"),
        (
            {"architecture": "sm_120"},
            "this build has kernels for sm_80 or sm_90a, the device is sm_120; build with "
            "P_EAGLE_ARCHS set to the device's",
        ),
        (
            {"cache_dtype": torch.float16},
            "`k` of cache 0 must be bfloat16, float8_e4m3fn or float8_e5m2, got float16",
        ),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_refuses(changes: dict[str, Any], message: str, config: DrafterConfig) -> None:
    assert refusals(config, **changes)[0] == message


def test_refuses_dtypes_of_the_cpu(config: DrafterConfig) -> None:
    found = refusals(config, dtype=torch.float32, cache_dtype=torch.float8_e4m3fn)
    assert found == ["the dtype must be bfloat16 or float16, got float32"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda k: torch.zeros(k.numel() + 8).to(k.dtype)[4:][: k.numel()].view(k.shape),
        lambda k: torch.zeros(*k.shape, 2).to(k.dtype)[..., 0],
        lambda k: torch.zeros(*k.shape[:-1], k.shape[-1] + 4).to(k.dtype)[..., :-4],
    ],
    ids=["address", "columns", "rows"],
)
def test_refuses_caches_without_aligned_rows(
    spoil: Callable[[torch.Tensor], torch.Tensor], config: DrafterConfig
) -> None:
    (found,) = refusals(config, lambda cache: cache._replace(k=spoil(cache.k)))
    assert found.startswith("`k` of cache 1 must have contiguous rows at multiples of 16 bytes")


@pytest.mark.parametrize(
    ("built", "runs_on"),
    [
        ("80", {"sm_80", "sm_86", "sm_89"}), ("89", {"sm_89"}), ("90a", {"sm_90"}),
        ("100a", {"sm_100"}), ("120a", {"sm_120"}),
    ],
)  # fmt: skip
def test_which_code_runs_where(built: str, runs_on: set[str], config: DrafterConfig) -> None:
    devices = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121")
    found = {x for x in devices if not refusals(config, architecture=x, built_for=(built,))}
    assert found == runs_on


def test_a_drafter_is_refused_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that is wrong with it, in one line."""
    write_drafter(tmp_path, hidden_size=96, head_dim=32)
    options = {**SIZES, "block_size": 8, "dtype": BF16}
    Drafter.from_pretrained(tmp_path, **options)  # the CPU takes it
    monkeypatch.setattr(drafter_module, "architecture_of", lambda _: "sm_90")
    with pytest.raises(BackendError, match="Drafter: on CUDA the head size must be") as error:
        Drafter.from_pretrained(tmp_path, **options)
    for reason in ("got 32", "block size must be 16, 32, 64 or 128, got 8", "got 96"):
        assert reason in str(error.value)
    assert "\n" not in str(error.value)


# ---- The same limits in the host layer -----------------------------------------------------------


def hidden_of(size: int) -> Arguments:
    """A call of embed_norm_concat of another width."""
    a = CASES["embed_norm_concat"]("cpu", BF16)
    R, V = len(a["token_ids"]), len(a["embedding"])
    shapes = {"embedding": (V, size), "hidden": (R, size), "out": (R, 2 * size)}
    shapes |= {"residual": (R, size)}
    vectors = ("mask_hidden", "embed_weight", "hidden_weight")
    shapes |= dict.fromkeys(vectors, (size,))
    return a | {name: torch.zeros(shape).to(BF16) for name, shape in shapes.items()}


def head_of(hidden: int = 128, num_samples: int = 4, top_k: int = 3) -> Arguments:
    """A call of lm_head_topk of other sizes."""
    a = CASES["lm_head_topk"]("cpu", BF16)
    R, V = len(a["x"]), len(a["weight"])
    shapes = {"x": (R, hidden), "weight": (V, hidden), "norm_weight": (hidden,)}
    floats = {name: torch.zeros(shape).to(BF16) for name, shape in shapes.items()}
    outputs = {
        "ids": torch.zeros(num_samples, top_k, dtype=torch.int64),
        "logits": torch.zeros(num_samples, top_k),
        "lse": torch.zeros(num_samples),
        "sample_rows": torch.zeros(num_samples, dtype=torch.int32),
    }
    noise = dict.fromkeys(("noise_keys", "noise_positions", "temperature"))
    return a | floats | outputs | noise | {"sum_squares": None}


OP_LIMITS: dict[str, tuple[str, Callable[[], Arguments], str]] = {
    "head size": ("paged_attention", lambda: attention_case([9], [2], head_dim=96), "got 96"),
    "block size": ("paged_attention", lambda: attention_case([9], [2], block_size=8), "got 8"),
    "wide rows": ("embed_norm_concat", lambda: hidden_of(8256), "got 8256"),
    "ragged rows": ("lm_head_topk", lambda: head_of(hidden=96), "multiple of 64, got 96"),
    "samples": ("lm_head_topk", lambda: head_of(num_samples=MAX_SAMPLES + 1), "at most 65536"),
    "top_k": ("lm_head_topk", lambda: head_of(top_k=17), "top_k must be 1 to 16, got 17"),
    "dtype": ("embed_norm_concat", lambda: CASES["embed_norm_concat"]("cpu", torch.float32),
              "dtype must be bfloat16 or float16"),
}  # fmt: skip


@pytest.mark.parametrize("limit", OP_LIMITS)
def test_ops_have_these_limits(limit: str) -> None:
    name, make, message = OP_LIMITS[limit]
    with pytest.raises(RuntimeError, match=f"{name}: .*{message}"):
        torch_ops.call(name, make(), FOUR["random"])
