"""What a drafter must be like for the kernels, which take fewer sizes than the CPU does.

Every limit is one that an op has on CUDA. Here they are asked for before there is a pass, all at
once. The linear layers have limits of their own, `linear.fused_refusals`, because torch can stand
in for their kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from p_eagle_cuda._registry import CUDA_DTYPES, FP8_DTYPES
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.ops.attention import CUDA_ALIGNMENT, CUDA_BLOCK_SIZES
from p_eagle_cuda.ops.head import MAX_SAMPLES, MAX_TOP_K
from p_eagle_cuda.ops.inputs import MAX_HIDDEN, MAX_TAPS
from p_eagle_cuda.ops.layers import CUDA_HEAD_DIMS
from p_eagle_cuda.reference import STATISTIC_COLUMNS, LayerCache


def cuda_refusals(
    config: DrafterConfig,
    dtype: torch.dtype,
    caches: Sequence[LayerCache],
    num_samples: int,
    top_k: int,
    architecture: str,
    built_for: Sequence[str],
) -> list[str]:
    """Why kernels cannot run a drafter: what is supported, and what was found; empty if they can.

    Args:
        config: The drafter's.
        dtype: Of its activations.
        caches: One for each layer, of equal shapes.
        num_samples: Most rows that are sampled in a pass.
        top_k: Candidates of each.
        architecture: Of the device, such as "sm_90"; what is no GPU, as "cpu", refuses nothing.
        built_for: What the library holds code for, such as "80" or "90a".
    """
    if not architecture.startswith("sm_"):
        return []
    found = [
        ("dtype", dtype, CUDA_DTYPES),
        ("head size", config.head_dim, CUDA_HEAD_DIMS),
        ("block size", caches[0].k.shape[2], CUDA_BLOCK_SIZES),
    ]
    refusals = [
        f"the {name} must be {_one_of(supported)}, got {_name(value)}"
        for name, value, supported in found
        if value not in supported
    ]
    hidden = config.hidden_size
    if hidden % STATISTIC_COLUMNS or hidden > MAX_HIDDEN:
        refusals.append(
            f"the hidden size must be a multiple of {STATISTIC_COLUMNS}, at most {MAX_HIDDEN}, "
            f"got {hidden}"
        )
    limits = [
        ("tapped layers", config.num_taps, MAX_TAPS),
        ("sampled rows, that is max_requests * num_speculative_tokens,", num_samples, MAX_SAMPLES),
        ("top_k", top_k, min(MAX_TOP_K, config.draft_vocab_size)),
    ]
    refusals += [
        f"{name} must be at most {limit}, got {value}"
        for name, value, limit in limits
        if value > limit
    ]
    refusals += _cache_refusals(dtype, caches)
    if not any(_runs_on(built, architecture) for built in built_for):
        refusals.append(
            f"this build has kernels for {_one_of([f'sm_{x}' for x in built_for])}, the device is "
            f"{architecture}; build with P_EAGLE_ARCHS set to the device's"
        )
    return refusals


def _cache_refusals(dtype: torch.dtype, caches: Sequence[LayerCache]) -> Iterator[str]:
    for i, cache in enumerate(caches):
        for name, x in (("k", cache.k), ("v", cache.v)):
            if x.dtype != dtype and x.dtype not in FP8_DTYPES:
                supported = _one_of((dtype, *FP8_DTYPES))
                yield f"`{name}` of cache {i} must be {supported}, got {_name(x.dtype)}"
            elif not _has_aligned_rows(x):
                yield (
                    f"`{name}` of cache {i} must have contiguous rows at multiples of "
                    f"{CUDA_ALIGNMENT} bytes, got strides {list(x.stride())} at an address "
                    f"{x.data_ptr() % CUDA_ALIGNMENT} bytes past one"
                )


def _has_aligned_rows(x: Tensor) -> bool:
    *strides, last = x.stride()
    places = [x.data_ptr(), *(stride * x.element_size() for stride in strides)]
    return last == 1 and not any(place % CUDA_ALIGNMENT for place in places)


def _runs_on(built: str, architecture: str) -> bool:
    """Whether code for "80" or "90a" runs on "sm_89" or "sm_90".

    It runs on later devices of the same generation, or with an "a" on this one alone.
    """
    device, code = int(architecture.removeprefix("sm_")), int(built.rstrip("a"))
    if built.endswith("a"):
        return code == device
    return code // 10 == device // 10 and code <= device


def _one_of(values: Sequence[object]) -> str:
    *most, last = map(_name, values)
    return f"{', '.join(most)} or {last}" if most else last


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")
