"""In what the weights and the cache of a drafter are kept, and what FP8 makes of numbers.

Weights are e4m3 values with a float32 scale for each output row: what the linear ops multiply by.
With "w8a8" the rows that the linear layers multiply, the activations, are e4m3 too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from p_eagle_cuda.errors import ConfigError

WEIGHT_PRECISIONS = ("auto", "bf16", "fp8_head", "fp8", "w8a8")
QUANTIZED = ("fp8_head", "fp8", "w8a8")
FP8_LAYERS = ("fp8", "w8a8")  # not the head alone
FP8_ACTIVATIONS = ("w8a8",)
KV_DTYPES = ("auto", "bf16", "fp8")

SCALE_COLUMNS = 128  # of a row of activations, that one scale covers

_E4M3 = torch.float8_e4m3fn
_FP8_DTYPES = (_E4M3, torch.float8_e5m2)
_ROWS_AT_A_TIME = 4096  # bounds the float32 copies of a head


def check_weight_precision(precision: str, dtype: torch.dtype) -> None:
    """Raise ConfigError unless a drafter of this working dtype can have such weights."""
    if precision not in WEIGHT_PRECISIONS:
        raise ConfigError(f"weights must be {_one_of(WEIGHT_PRECISIONS)}, got {precision!r}")
    if precision == "bf16":
        _check_bf16("weights", dtype)


def kv_cache_dtype(kv_dtype: str | torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """What a cache holds.

    Args:
        kv_dtype: "auto" for the working dtype; "bf16" for the same, if that is bfloat16; "fp8" for
            float8_e4m3fn; or a torch dtype, which must be one of these or float8_e5m2.
        dtype: The working dtype.

    Raises:
        ConfigError: There is no such cache for this working dtype.
    """
    if kv_dtype == "bf16":
        _check_bf16("kv_dtype", dtype)
    named = {"auto": dtype, "bf16": dtype, "fp8": _E4M3}
    found = named.get(kv_dtype) if isinstance(kv_dtype, str) else kv_dtype
    if found not in (dtype, *_FP8_DTYPES):
        raise ConfigError(
            f"kv_dtype must be {_one_of(KV_DTYPES)}, or one of the dtypes {_name(dtype)} (the "
            f"working dtype), {' and '.join(map(_name, _FP8_DTYPES))}, got {kv_dtype!r}"
        )
    return found


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise ``[N, C]`` to e4m3 values ``[N, C]`` and a float32 scale ``[N]`` for each row.

    Numerics:
        A scale is the least power of two, at least 2**-126, with which the row's largest value
        does not saturate. Powers of two cost no accuracy worth having, since e4m3 values are
        floating, and make ``value * scale`` exact in bfloat16 and float32. Each value is rounded
        once, to nearest even: a relative error of at most 2**-4, or an absolute one of 2**-10 times
        the scale, which is at most 2**-17 of the row's largest value. A row of zeros has scale 1.
    """
    values = torch.empty_like(weight, dtype=_E4M3, memory_format=torch.contiguous_format)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    parts = (x.split(_ROWS_AT_A_TIME) for x in (weight, values, scale))
    for rows, rows_values, rows_scale in zip(*parts, strict=True):
        exact = rows.float()
        rows_scale.copy_(_scale(exact.abs().amax(dim=1), least=-126))
        rows_values.copy_(exact / rows_scale[:, None])
    return values, scale


def quantize_activations(x: Tensor) -> Tensor:
    """What rows ``[..., C]`` are in a product with FP8 activations, in the dtype of x.

    Numerics:
        Each 128 columns of a row have a scale, as the rows of `quantize_rows` have, but of at least
        2**-64: a block's largest value costs no other block its accuracy, and who computes a
        block need not see the row's other ones first. Each value is rounded once, to nearest even;
        multiplying by the scale again is exact.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    blocks = pad(wide, (0, -x.shape[-1] % SCALE_COLUMNS)).unflatten(-1, (-1, SCALE_COLUMNS))
    scale = _scale(blocks.abs().amax(dim=-1, keepdim=True), least=-64)
    values = (blocks / scale).to(_E4M3).to(wide.dtype) * scale
    rows: Tensor = values.flatten(-2)[..., : x.shape[-1]]
    return rows.to(x.dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, fp8_activations: bool) -> Tensor:
    """``x @ weight.T + bias``, of the rows of x or of what `quantize_activations` makes of them."""
    return linear(quantize_activations(x) if fp8_activations else x, weight, bias)


def _scale(largest: Tensor, least: int) -> Tensor:
    """The least power of two, from 2**least on, by which the largest value may be divided."""
    mantissa, exponent = torch.frexp(largest / torch.finfo(_E4M3).max)
    exponent -= (mantissa == 0.5).int()  # a power of two already
    return torch.ldexp(torch.ones_like(largest), exponent.clamp(min=least))


def _check_bf16(name: str, dtype: torch.dtype) -> None:
    if dtype != torch.bfloat16:
        raise ConfigError(
            f'{name}="bf16" needs the working dtype bfloat16, got {_name(dtype)}; "auto" keeps '
            "what is not FP8 in the working dtype"
        )


def _one_of(names: tuple[str, ...]) -> str:
    *others, last = (f'"{name}"' for name in names)
    return f"{', '.join(others)} or {last}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
