"""Registers an op: its schema, its contract, and its CPU implementation.

The CUDA implementation comes from the compiled library. Callers never ask which one runs: the
device of the tensors decides, and what is not there raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from p_eagle_cuda.reference import STATISTIC_COLUMNS

_LIBRARY = torch.library.Library("p_eagle", "DEF")
_DEFINED: list[str] = []

CUDA_DTYPES = (torch.bfloat16, torch.float16)
CPU_DTYPES = (*CUDA_DTYPES, torch.float32, torch.float64)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


CpuBody = Callable[[], None]


def define(schema: str, contract: Callable[..., CpuBody]) -> None:
    """Define ``p_eagle::<schema>``, an op that writes to its ``(a!)`` arguments.

    Args:
        schema: In the dispatcher's syntax, returning ``()``.
        contract: Raises ValueError on a bad argument, and returns what computes the op for CPU
            tensors. Reads no data itself: without the latter it is the fake implementation.
    """
    name = schema.split("(", 1)[0]

    def cpu(*args: object) -> None:
        contract(*args)()

    def fake(*args: object) -> None:
        contract(*args)

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, cpu, "CPU")
    torch.library.register_fake(f"p_eagle::{name}", fake, lib=_LIBRARY)
    _DEFINED.append(name)


def load_library() -> None:
    """Load the compiled library, which registers the CUDA implementations.

    Raises:
        ImportError: The package has not been built.
    """
    compiled()
    for name in set(_DEFINED) - set(compiled().cuda_ops()):
        _LIBRARY.impl(name, _without_kernel(name), "CUDA")


def implementations() -> dict[str, dict[str, bool]]:
    """Which implementations each op has: ``{name: {"cpu": bool, "cuda": bool}}``."""
    in_library = set(compiled().cuda_ops())
    return {name: {"cpu": True, "cuda": name in in_library} for name in sorted(_DEFINED)}


def compiled() -> Any:  # noqa: ANN401 - a compiled module has no type
    """The compiled module.

    Raises:
        ImportError: The package has not been built.
    """
    try:
        from p_eagle_cuda import _C
    except ImportError as error:
        raise ImportError(
            "p_eagle_cuda is not built: its compiled module does not load "
            f"({error}); run `pip install .` in a clone of the project"
        ) from error
    return _C


def _without_kernel(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise RuntimeError(
            f"p_eagle::{name} has no CUDA kernel in this build; `p-eagle-cuda info` lists those "
            "that are there, and CPU tensors run the reference"
        )

    return refuse


def check(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def check_tensor(op: str, name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> None:
    """Raise unless `tensor` is contiguous with this dtype and shape.

    Mirrors csrc/bindings/checks.h.
    """
    check(tensor.dtype == dtype, f"{op}: `{name}` must have dtype {dtype}, got {tensor.dtype}")
    got = list(tensor.shape)
    check(got == list(shape), f"{op}: `{name}` must have shape {list(shape)}, got {got}")
    check(
        tensor.is_contiguous(),
        f"{op}: `{name}` must be contiguous, got strides {list(tensor.stride())}",
    )


def check_matrix(op: str, name: str, tensor: Tensor) -> None:
    """Raise unless `tensor` has two dimensions."""
    check(tensor.ndim == 2, f"{op}: `{name}` must be 2-D, got shape {list(tensor.shape)}")


def count_rows(op: str, num_rows: Tensor, limit: int) -> int:
    """The number of rows that exist, for CPU implementations, which may read it."""
    n = int(num_rows)
    check(0 <= n <= limit, f"{op}: the number of rows must be 0 to {limit}, got {n}")
    return n


def check_num_rows(op: str, tensor: Tensor) -> None:
    """Raise unless `tensor` is a row count: ``[1]`` int32."""
    check_tensor(op, "num_rows", tensor, torch.int32, 1)


def check_weight(
    op: str,
    name: str,
    weight: Tensor,
    scale: Tensor | None,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    *,
    fp8_activations: bool = False,
) -> None:
    """Raise unless `weight` is ``[rows, columns]``: of `dtype`, or float8_e4m3fn with a scale.

    The scale is ``[rows]`` float32. Kernels take columns in blocks of 64. With FP8 activations it
    must be float8_e4m3fn.
    """
    check(
        scale is not None or not fp8_activations,
        f"{op}: `fp8_activations` needs an FP8 `{name}` with its scale",
    )
    check_tensor(op, name, weight, dtype if scale is None else FP8_DTYPES[0], rows, columns)
    if scale is not None:
        check_tensor(op, f"{name}_scale", scale, torch.float32, rows)
    check(
        not weight.is_cuda or columns % STATISTIC_COLUMNS == 0,
        f"{op}: the columns of `{name}` must be a multiple of {STATISTIC_COLUMNS} on CUDA, "
        f"got {columns}",
    )


def check_sum_squares(
    op: str, sums: Tensor | None, dtype: torch.dtype, rows: int, columns: int
) -> None:
    """Raise unless these may be the sums of squares of rows ``[rows, columns]`` of `dtype`."""
    if sums is not None:
        groups = -(-columns // STATISTIC_COLUMNS)
        check_tensor(op, "sum_squares", sums, wide_dtype(dtype), groups, rows)


def check_workspace(op: str, workspace: Tensor) -> None:
    """Raise unless this is a flat tensor of bytes; kernels check its size."""
    check_tensor(op, "workspace", workspace, torch.uint8, workspace.numel())


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums and logits of this working dtype are kept in: float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def linear_workspace(device: torch.device) -> Tensor:
    """Zeroed scratch memory for the linear layers of one stream of `device`; none on the CPU."""
    if device.type != "cuda":
        return torch.zeros(0, dtype=torch.uint8, device=device)
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    size = compiled().linear_workspace_bytes(num_sms)
    return torch.zeros(size, dtype=torch.uint8, device=device)


def lm_head_workspace(device: torch.device, num_samples: int, top_k: int) -> Tensor:
    """Zeroed scratch memory for `lm_head_topk` of at most so many rows and so large a k.

    For one stream of `device`; none on the CPU.
    """
    if device.type != "cuda":
        return torch.zeros(0, dtype=torch.uint8, device=device)
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    size = compiled().lm_head_workspace_bytes(num_sms, num_samples, top_k)
    return torch.zeros(size, dtype=torch.uint8, device=device)


def verify_workspace(device: torch.device, num_rows: int, vocab_size: int) -> Tensor:
    """Scratch memory for `verify` of so many rows of logits, or fewer.

    For one stream of `device`; none on the CPU.
    """
    if device.type != "cuda":
        return torch.zeros(0, dtype=torch.uint8, device=device)
    size = compiled().verify_workspace_bytes(num_rows, vocab_size)
    return torch.zeros(size, dtype=torch.uint8, device=device)


def check_working_dtype(op: str, name: str, tensor: Tensor) -> torch.dtype:
    """The dtype of `tensor`, which must be one that its device computes in."""
    dtypes = CPU_DTYPES if tensor.device.type == "cpu" else CUDA_DTYPES
    allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    check(
        tensor.dtype in dtypes,
        f"{op}: `{name}` must have one of the dtypes {allowed} on {tensor.device.type}, "
        f"got {tensor.dtype}",
    )
    return tensor.dtype


def check_cache_layout(op: str, k_cache: Tensor, v_cache: Tensor) -> None:
    """Raise unless these are a layer's paged cache, of any dtype."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check(
            cache.ndim == 4,
            f"{op}: `{name}` must be [blocks, Nkv, block_size, D], got shape {list(cache.shape)}",
        )
        check(
            cache.stride(3) == 1,
            f"{op}: `{name}` must be contiguous in its last dimension, got strides "
            f"{list(cache.stride())}",
        )
    check(
        k_cache.shape == v_cache.shape and k_cache.dtype == v_cache.dtype,
        f"{op}: `v_cache` must be like `k_cache`, {list(k_cache.shape)} {k_cache.dtype}, "
        f"got {list(v_cache.shape)} {v_cache.dtype}",
    )


def check_cache(
    op: str, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor, v_scale: Tensor, dtype: torch.dtype
) -> None:
    """Raise unless these are a layer's paged cache for rows of `dtype`, with its scales."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        check(
            cache.dtype == dtype or cache.dtype in FP8_DTYPES,
            f"{op}: `{name}` must have dtype {dtype} or an FP8 one, got {cache.dtype}",
        )
    check_cache_layout(op, k_cache, v_cache)
    check_tensor(op, "k_scale", k_scale, torch.float32, 1)
    check_tensor(op, "v_scale", v_scale, torch.float32, 1)
