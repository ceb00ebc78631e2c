"""Calls of the linear layers at sizes of one's own, and what must come out, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from numerics import assert_as_accurate_as_torch, assert_rounded_once, double
from op_cases import EMULATED_SMS
from p_eagle_cuda import _C, reference

Arguments = dict[str, Any]

BF16 = torch.bfloat16
E4M3 = torch.float8_e4m3fn


def randn(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape).to(dtype)


def norm_weight(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return (1 + torch.randn(shape) / 4).to(dtype)


def rows_of(num_rows: int, max_rows: int, columns: int, dtype: torch.dtype = BF16) -> Tensor:
    """Rows that exist, and NaN in the others."""
    x = randn(max_rows, columns, dtype=dtype)
    x[num_rows:] = torch.nan
    return x


def spread(x: Tensor, num_rows: int) -> Tensor:
    """Rows whose blocks of 64 columns differ by powers of two, so that no scale fits another."""
    rows, columns = x.shape
    factors = 2.0 ** torch.randint(-3, 4, (rows, -(-columns // 64)))
    x[:num_rows] *= factors.repeat_interleave(64, dim=1)[:num_rows, :columns].to(x.dtype)
    return x


def weight_of(
    rows: int, columns: int, dtype: torch.dtype = BF16, *, is_e4m3: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A weight, and the scales of its rows if it is an FP8 one."""
    if not is_e4m3:
        return (torch.randn(rows, columns) / columns**0.5).to(dtype), None
    codes = torch.randn(rows, columns).mul(100).clamp(-448, 448).to(E4M3)
    return codes, (0.5 + torch.rand(rows)) / (100 * columns**0.5)


def workspace(num_sms: int = EMULATED_SMS) -> Tensor:
    return torch.zeros(_C.linear_workspace_bytes(num_sms), dtype=torch.uint8)


def count(num_rows: int) -> Tensor:
    return torch.tensor([num_rows], dtype=torch.int32)


def project_taps(
    num_rows: int, max_rows: int, H: int, Ht: int, num_taps: int = 3, norm: str = "",
    dtype: torch.dtype = BF16, is_e4m3: bool = False, fp8_activations: bool = False,
) -> Arguments:  # fmt: skip
    """Every third row is a mask row; `norm` is "", "input" or "taps"."""
    T = max_rows + 3
    source_row = torch.randperm(T)[:max_rows].int()
    source_row[1::3] = -1
    weight, scale = weight_of(H, num_taps * Ht, dtype, is_e4m3=is_e4m3 or fp8_activations)
    taps = [randn(T, Ht, dtype=dtype) for _ in range(num_taps)]
    if fp8_activations:
        taps = [spread(tap, T) for tap in taps]
    for row in set(range(T)) - set(source_row[:num_rows].tolist()):
        for tap in taps:
            tap[row] = torch.nan
    return {
        "taps": taps, "source_row": source_row, "num_rows": count(num_rows), "weight": weight,
        "weight_scale": scale, "fp8_activations": fp8_activations,
        "input_norm": norm_weight(num_taps * Ht, dtype=dtype) if norm == "input" else None,
        "fc_norms": norm_weight(num_taps, Ht, dtype=dtype) if norm == "taps" else None,
        "eps": 1e-5, "out": rows_of(0, max_rows, H, dtype), "workspace": workspace(),
    }  # fmt: skip


def linear_residual(
    num_rows: int, max_rows: int, H: int, Hin: int, *, has_bias: bool = True,
    dtype: torch.dtype = BF16, is_e4m3: bool = False, fp8_activations: bool = False,
) -> Arguments:  # fmt: skip
    weight, scale = weight_of(H, Hin, dtype, is_e4m3=is_e4m3 or fp8_activations)
    x = rows_of(num_rows, max_rows, Hin, dtype)
    return {
        "x": spread(x, num_rows) if fp8_activations else x, "weight": weight,
        "weight_scale": scale, "fp8_activations": fp8_activations,
        "bias": randn(H, dtype=dtype) if has_bias else None, "num_rows": count(num_rows),
        "residual": rows_of(num_rows, max_rows, H, dtype),
        "sum_squares": torch.full((-(-H // 64), max_rows), torch.nan), "workspace": workspace(),
    }  # fmt: skip


def norm_swiglu(
    num_rows: int, max_rows: int, I: int, H: int, *, has_sums: bool = True,  # noqa: E741
    dtype: torch.dtype = BF16, is_e4m3: bool = False, fp8_activations: bool = False,
) -> Arguments:  # fmt: skip
    weight, scale = weight_of(2 * I, H, dtype, is_e4m3=is_e4m3 or fp8_activations)
    x = rows_of(num_rows, max_rows, H, dtype)
    x = spread(x, num_rows) if fp8_activations else x
    return {
        "x": x, "norm_weight": norm_weight(H, dtype=dtype),
        "sum_squares": reference.sum_squares(x) if has_sums else None, "gate_up": weight,
        "gate_up_scale": scale, "fp8_activations": fp8_activations,
        "num_rows": count(num_rows), "eps": 1e-5,
        "out": rows_of(0, max_rows, I, dtype), "workspace": workspace(),
    }  # fmt: skip


def qkv_rope_cache(
    num_rows: int, max_rows: int, heads: tuple[int, int, int], Hin: int, *, has_norm: bool = True,
    has_bias: bool = False, norms_heads: bool = False, dtype: torch.dtype = BF16,
    cache_dtype: torch.dtype | None = None, block_size: int = 16, is_e4m3: bool = False,
    fp8_activations: bool = False,
) -> Arguments:  # fmt: skip
    """`heads` are Nq, Nkv and D. The first of every four rows has no slot."""
    Nq, Nkv, D = heads
    rows, blocks = (Nq + 2 * Nkv) * D, max_rows // block_size + 2
    x = rows_of(num_rows, max_rows, Hin, dtype)
    x = spread(x, num_rows) if fp8_activations else x
    weight, scale = weight_of(rows, Hin, dtype, is_e4m3=is_e4m3 or fp8_activations)
    slots = torch.randperm(blocks * block_size)[:max_rows]
    slots[::4] = -1
    angles = torch.rand(40, D // 2) * 6
    caches = torch.full((blocks, Nkv, block_size, 2 * D), 7.0).to(cache_dtype or dtype)
    k_cache, v_cache = caches.split(D, dim=-1)
    return {
        "x": x, "norm_weight": norm_weight(Hin, dtype=dtype) if has_norm else None,
        "sum_squares": reference.sum_squares(x) if has_norm else None, "weight": weight,
        "weight_scale": scale, "fp8_activations": fp8_activations,
        "bias": randn(rows, dtype=dtype) if has_bias else None,
        "mask_heads": None, "source_row": None,
        "q_norm": norm_weight(D, dtype=dtype) if norms_heads else None,
        "k_norm": norm_weight(D, dtype=dtype) if norms_heads else None,
        "rope": torch.cat([angles.cos(), angles.sin()], -1),
        "positions": torch.randint(60, (max_rows,)), "slots": slots, "num_rows": count(num_rows),
        "k_scale": torch.tensor([0.125]), "v_scale": torch.tensor([0.75]), "eps": 1e-5,
        "q": rows_of(0, max_rows, Nq * D, dtype).view(max_rows, Nq, D), "k_cache": k_cache,
        "v_cache": v_cache, "workspace": workspace(),
    }  # fmt: skip


# ---- What must come out --------------------------------------------------------------------------


def expected(name: str, a: Arguments) -> dict[str, Tensor]:
    """The outputs for the rows that exist, in the dtype of the arguments."""
    n, fp8 = int(a["num_rows"]), a["fp8_activations"]
    dtype = (a["taps"][0] if name == "project_taps" else a["x"]).dtype
    if name == "norm_swiglu":
        weight = reference.dequantize(a["gate_up"], a["gate_up_scale"], dtype)
        x, norm, eps = a["x"][:n], a["norm_weight"], a["eps"]
        return {"out": reference.norm_swiglu(x, norm, weight, eps, None, fp8)}
    weight = reference.dequantize(a["weight"], a["weight_scale"], dtype)
    if name == "project_taps":
        out = reference.project_taps(
            a["taps"], a["source_row"][:n], weight, a["input_norm"], a["fc_norms"], a["eps"], fp8
        )
        return {"out": out}
    if name == "linear_residual":
        bias, residual = a["bias"], a["residual"][:n]
        return {"residual": reference.linear_residual(a["x"][:n], weight, bias, residual, fp8)}
    q, k, v = reference.qkv_rope(
        a["x"][:n], a["norm_weight"], weight, a["bias"], a["q_norm"], a["k_norm"], a["rope"],
        a["positions"][:n], a["k_cache"].shape[1], a["eps"], None, a["mask_heads"],
        None if a["source_row"] is None else a["source_row"][:n], fp8,
    )  # fmt: skip
    return {"q": q, "k": k, "v": v}


def copy(arguments: Arguments) -> Arguments:
    """With the same strides and alignment; tensors that share memory still do."""
    storages: dict[int, torch.UntypedStorage] = {}

    def of(x: Any) -> Any:
        if isinstance(x, list):
            return [of(t) for t in x]
        if not isinstance(x, Tensor):
            return x
        storage = x.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()
        copied = storages[storage.data_ptr()]
        return x.new_empty(0).set_(copied, x.storage_offset(), x.shape, x.stride())

    return {name: of(x) for name, x in arguments.items()}


def assert_right(name: str, before: Arguments, after: Arguments) -> None:
    """`after` holds what the op makes of `before`, and nothing else has changed."""
    n = int(before["num_rows"])
    exact = expected(name, {k: double(x) for k, x in before.items()})
    unfused = expected(name, before)
    if name == "qkv_rope_cache":
        assert_as_accurate_as_torch("q", after["q"][:n], exact["q"], unfused["q"])
        for part in "kv":
            assert_cache_right(part, before, after, exact[part], unfused[part])
    elif name == "project_taps":
        real = before["source_row"][:n] >= 0
        assert_as_accurate_as_torch(
            "out", after["out"][:n][real], exact["out"][real], unfused["out"][real]
        )
        assert after["out"][:n][~real].isnan().all(), "wrote mask rows"
    else:
        output = {"linear_residual": "residual", "norm_swiglu": "out"}[name]
        assert_as_accurate_as_torch(output, after[output][:n], exact[output], unfused[output])
    if name == "linear_residual":
        sums = reference.sum_squares(after["residual"][:n].double())
        assert_rounded_once("sum_squares", after["sum_squares"][:, :n], sums)
        assert after["sum_squares"][:, n:].isnan().all(), "wrote sums of rows that do not exist"
    for output in ("out", "residual", "q"):
        if output in after:
            assert after[output][n:].isnan().all(), f"{output}: wrote rows that do not exist"
    assert not after["workspace"][:4096].any(), "left counters behind"


def assert_cache_right(
    part: str, before: Arguments, after: Arguments, exact: Tensor, unfused: Tensor
) -> None:
    n, cache, scale = int(before["num_rows"]), after[f"{part}_cache"], before[f"{part}_scale"]
    slots = before["slots"][:n]
    kept = slots >= 0
    blocks, offsets = slots[kept] // cache.shape[2], slots[kept] % cache.shape[2]
    stored = cache.double()[blocks, :, offsets]
    if cache.dtype.itemsize == 1:
        limit = torch.finfo(cache.dtype).max
        info = torch.finfo(cache.dtype)
        wanted = (exact[kept] / scale.double()).clamp(-limit, limit)
        rounding = info.eps / 2 * wanted.abs().clamp(min=info.smallest_normal)
        # Before it is stored the value is as accurate as torch's.
        error = 2 * (unfused.double() - exact).abs().max() / scale.double()
        assert ((stored - wanted).abs() <= 1.01 * rounding + error).all(), part
    else:
        assert_as_accurate_as_torch(part, stored, exact[kept], unfused[kept])
    others = torch.ones(cache.shape[0], cache.shape[2], dtype=torch.bool)
    others[blocks, offsets] = False
    assert (cache.double().transpose(1, 2)[others] == 7).all(), f"{part}: wrote slots of nobody"
