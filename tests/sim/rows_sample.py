"""The row kernels as a sample: a chain of launches, and some at sizes of their own.

Everything is bfloat16 but for some caches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from p_eagle_cuda import reference
from sim.params import params_type
from sim.sample import BF16_ERROR, Run, Sample, randn, source

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
EPS = 1e-2
ROWS, MAX_ROWS = 5, 7  # that exist, and of the buffers: what is past the former is in no buffer
SOURCE_ROW = torch.tensor([2, -1, 0, 4, -1], dtype=torch.int32)

Pointer = ctypes.c_void_p


def rows(run: Run) -> None:
    """Taps, norm, gate, heads, each reading what one before has written.

    Between the first and the second are launches of every kernel without rows: the order of those
    two hangs on what their blocks do.
    """
    count = run.given("num_rows", torch.tensor([ROWS], dtype=torch.int32))
    none = run.given("num_rows of empty launches", torch.tensor([0], dtype=torch.int32))
    heads, width = (9, 2, 80), 1040  # 13 heads

    taps = [_taps(6, width, i) for i in range(2)]
    weight = _norm_weight(2 * width)
    gathered = reference.gather_taps(_double(taps), SOURCE_ROW, weight.double(), None, EPS)
    first = run.output("gathered", BF16, gathered, BF16_ERROR)
    _gather(run, "", taps, count, first, norm_weight=run.given("input_norm", weight))

    _norm(run, first, 2 * width, none, first, run.given("an unused norm", weight))
    _gate(run, first, width, none, first)
    _rope(run, " of the empty launch", first, heads, none, first)

    weight = _norm_weight(2 * width)
    normed = reference.rms_norm(gathered, weight.double(), EPS)
    second = run.output("normed", BF16, normed, 2 * BF16_ERROR)
    sums = torch.full((-(-2 * width // 64), MAX_ROWS), torch.nan)
    sums[:, :ROWS] = reference.sum_squares(gathered)
    _norm(
        run, first, 2 * width, count, second, run.given("norm_weight", weight),
        sum_squares=run.given("sum_squares", sums),
    )  # fmt: skip
    gated = reference.gate_rows(normed)
    third = run.output("gated", BF16, gated, 8 * BF16_ERROR)
    _gate(run, second, width, count, third)
    _rope(run, "", third, heads, count, None, gated, error=16 * BF16_ERROR)

    _ragged(run, count)


def _ragged(run: Run, count: Pointer) -> None:
    """What takes other ways through the kernels.

    Taps of odd width with norms of their own, a row too wide to keep, caches and heads that are
    read element by element.
    """
    taps, norms = [_taps(6, 101, i) for i in range(2)], _norm_weight(2 * 101).view(2, 101)
    exact = reference.gather_taps(_double(taps), SOURCE_ROW, None, norms.double(), EPS)
    out = run.output("gathered of odd width", BF16, exact, BF16_ERROR)
    weight = run.given("fc_norms", norms)
    _gather(run, " of odd width", taps, count, out, norm_weight=weight, norms_each_tap=True)

    taps, weight = [_taps(6, 4096, i) for i in range(5)], _norm_weight(5 * 4096)
    exact = reference.gather_taps(_double(taps), SOURCE_ROW, weight.double(), None, EPS)
    out = run.output("gathered of many columns", BF16, exact, BF16_ERROR)
    weights = run.given("input_norm of many columns", weight)
    _gather(run, " of many columns", taps, count, out, norm_weight=weights)

    taps = [_taps(6, 64, i) for i in range(2)]
    exact = reference.gather_taps(_double(taps), SOURCE_ROW, None, None, EPS)
    out = run.output("gathered of a shifted tap", BF16, exact, 0.0)
    _gather(run, " of a shifted tap", taps, count, out, shift=1)

    for label, heads, dtype, gap in (
        (" of odd heads", (3, 2, 74), E4M3, 0),
        (" of a ragged cache", (3, 2, 64), BF16, 4),
    ):
        Nq, Nkv, D = heads
        x = randn(ROWS, (Nq + 2 * Nkv) * D, dtype=BF16)
        given = run.given(f"heads{label}", x)
        _rope(run, label, given, heads, count, None, x.double(), cache_dtype=dtype, gap=gap)


def _gather(
    run: Run, label: str, taps: Sequence[Tensor], count: Pointer, out: Pointer, shift: int = 0,
    **norm: Any,
) -> None:  # fmt: skip
    """The last tap starts `shift` elements past an aligned address."""
    pointers = (ctypes.c_void_p * 8)()
    for i, tap in enumerate(taps):
        pad = shift if i == len(taps) - 1 else 0
        flat = torch.cat([tap.new_zeros(pad), tap.flatten(), tap.new_zeros(-pad % 8)])
        address = run.given(f"tap {i}{label}", flat).value
        assert address is not None
        pointers[i] = address + pad * tap.element_size()
    rows = params_type("LinearInput")(
        taps=pointers, source_row=run.given(f"source_row{label}", SOURCE_ROW), num_rows=count,
        num_taps=len(taps), tap_width=taps[0].shape[1], max_rows=MAX_ROWS, eps=EPS, **norm,
    )  # fmt: skip
    _launch(run, "norm_rows", params_type("NormRowsParams")(input=rows, out=out))


def _norm(
    run: Run, x: Pointer, width: int, count: Pointer, out: Pointer, weight: Pointer, **sums: Any
) -> None:
    rows = params_type("LinearInput")(
        taps=(ctypes.c_void_p * 8)(x), num_rows=count, num_taps=1, tap_width=width,
        max_rows=MAX_ROWS, eps=EPS, norm_weight=weight, **sums,
    )  # fmt: skip
    _launch(run, "norm_rows", params_type("NormRowsParams")(input=rows, out=out))


def _gate(run: Run, gate_up: Pointer, width: int, count: Pointer, out: Pointer) -> None:
    params = params_type("GateRowsParams")(
        gate_up=gate_up, num_rows=count, out=out, max_rows=MAX_ROWS, width=width
    )
    _launch(run, "gate_rows", params)


def _rope(
    run: Run, label: str, product: Pointer, heads: tuple[int, int, int], count: Pointer,
    q: Pointer | None, exact: Tensor | None = None, *, cache_dtype: torch.dtype = BF16,
    gap: int = 0, error: float = BF16_ERROR,
) -> None:  # fmt: skip
    """`exact` are the heads, None for a launch without rows; `gap` is between slots of a cache."""
    Nq, Nkv, D = heads
    blocks, block_size = 3, 4
    slots = torch.tensor([5, -1, 0, 11, 6])
    positions = torch.tensor([3, 4, 30, 0, 7])  # the third is past the table
    angles = torch.arange(9)[:, None] * 0.8 ** torch.arange(D // 2)
    rope = torch.cat([angles.cos(), angles.sin()], -1).float()
    norms, scales = [_norm_weight(D + 1)[1:].clone(), _norm_weight(D)], (0.5, 0.125)

    wide = torch.full((blocks, Nkv, block_size, D + gap), 7.0)
    stored = [wide.clone().double(), wide.clone().double()]
    if exact is not None:
        rotated = reference.rope_heads(
            exact, norms[0].double(), norms[1].double(), rope, positions, Nkv, EPS
        )
        q = run.output(f"q{label}", BF16, rotated[0], 2 * error)
        for part, cache, scale in zip(rotated[1:], stored, scales, strict=True):
            one = torch.tensor([scale if cache_dtype == E4M3 else 1.0])
            reference.write_cache(part / one, slots, cache[..., :D], one)
    if cache_dtype == E4M3:
        error = 2.0**-4
    caches = []
    strides = {
        "block_stride": Nkv * block_size * (D + gap), "head_stride": block_size * (D + gap),
        "slot_stride": D + gap,
    }  # fmt: skip
    for name, expected, scale in zip(("k", "v"), stored, scales, strict=True):
        data = run.updated(f"{name}_cache{label}", wide.to(cache_dtype), expected, 2 * error)
        scale_pointer = run.given(f"{name}_scale{label}", torch.tensor([scale]))
        caches.append(params_type("PagedCache")(data=data, scale=scale_pointer, **strides))
    params = params_type("RopeCacheParams")(
        heads=product, q_norm=run.given(f"q_norm{label}", norms[0]),
        k_norm=run.given(f"k_norm{label}", norms[1]), rope=run.given(f"rope{label}", rope),
        positions=run.given(f"positions{label}", positions),
        slots=run.given(f"slots{label}", slots), num_rows=count, q=q, k_cache=caches[0],
        v_cache=caches[1], cache_type=int(cache_dtype == E4M3), max_rows=MAX_ROWS, num_heads=Nq,
        num_kv_heads=Nkv, head_dim=D, block_size=block_size, num_positions=len(rope), eps=EPS,
    )  # fmt: skip
    _launch(run, "rope_cache", params)


def _launch(run: Run, name: str, params: ctypes.Structure) -> None:
    run.launch(f"launch_{name}_from_c", ctypes.byref(params))


def _taps(num_rows: int, width: int, seed: int) -> Tensor:
    """Hidden states of one layer; those of rows that no row refers to are NaN."""
    tap = randn(num_rows, width + seed, dtype=BF16)[:, seed:].clone()
    tap[[1, 3, 5]] = torch.nan
    return tap


def _norm_weight(width: int) -> Tensor:
    return 1 + randn(width, dtype=BF16) / 4


def _double(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.double() for x in tensors]


SAMPLES = {"rows": Sample(rows, source("launch_rows"))}
