"""The linear layers on three backends: all draft what the reference does; which one runs when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints import write_drafter
from drafter_passes import PROMPTS, SIZES, TOP_K, K, passes, propose, reference_pass
from drafter_variants import VARIANTS
from numerics import assert_as_accurate_as_torch
from p_eagle_cuda import Drafter
from p_eagle_cuda.errors import BackendError
from p_eagle_cuda.linear import (
    FP8_NEEDS_FUSED,
    CutlassLinear,
    LinearLayers,
    TorchLinear,
    architecture_of,
    fused_refusals,
)
from p_eagle_cuda.linear_table import (
    LINEAR_OPS,
    FusedRows,
    LinearTable,
)
from p_eagle_cuda.weights import DrafterWeights, LayerWeights

E4M3 = torch.float8_e4m3fn


def table_of(**fused_rows: int) -> LinearTable:
    """A table for the CPU with these limits, and no rows fused for the other ops."""
    entries = {
        ("cpu", op, str(dtype).removeprefix("torch.")): FusedRows(limit, "a test")
        for op, limit in fused_rows.items()
        for dtype in (torch.float64, torch.bfloat16)
    }
    return LinearTable(FusedRows(0, "a test"), entries)


def assert_drafts_right(path: Path, drafter: Drafter, dtype: torch.dtype) -> None:
    steps = passes(drafter.config, dtype)
    for step in steps:
        drafts = propose(drafter, step)
    ids, logits, _ = reference_pass(path, steps, torch.float64, torch.float64)
    if dtype == torch.float64:
        assert torch.equal(drafts.top_ids.flatten(0, 1), ids)
        torch.testing.assert_close(drafts.top_logits.flatten(0, 1), logits)
        return
    _, unfused, _ = reference_pass(path, steps, dtype, dtype)
    shape = (len(PROMPTS), K, TOP_K)
    assert_as_accurate_as_torch(
        "logits", drafts.top_logits, logits.view(shape), unfused.view(shape)
    )


# ---- Drafts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("linear", ["auto", "fused", "torch", "cutlass"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_drafts(dtype: torch.dtype, linear: str, variant: str, tmp_path: Path) -> None:
    write_drafter(tmp_path, **VARIANTS[variant])
    drafter = Drafter.from_pretrained(tmp_path, dtype=dtype, linear=linear, **SIZES)
    assert_drafts_right(tmp_path, drafter, dtype)


@pytest.mark.parametrize("op", LINEAR_OPS)
@pytest.mark.parametrize("is_fused", [False, True], ids=["torch", "fused"])
def test_one_op_on_the_other_backend(op: str, is_fused: bool, tmp_path: Path) -> None:
    """Above all the sums of squares, which only one backend leaves for the next layer."""
    write_drafter(tmp_path)
    limits = {name: 10**6 if (name == op) == is_fused else 0 for name in LINEAR_OPS}
    drafter = Drafter.from_pretrained(
        tmp_path, dtype=torch.float64, linear=table_of(**limits), **SIZES
    )
    fused = [choice.op for choice in drafter.linear_backends() if choice.fused_rows]
    assert fused == [name for name in LINEAR_OPS if (name == op) == is_fused]
    assert_drafts_right(tmp_path, drafter, torch.float64)


def test_statistics_are_of_the_last_residual(tmp_path: Path) -> None:
    """Large passes leave none, small ones theirs: the same buffer, once poisoned, once written."""
    write_drafter(tmp_path)
    limits = {"norm_swiglu": 10**6, "qkv_rope_cache": 10**6, "linear_residual": 30}
    drafter = Drafter.from_pretrained(
        tmp_path, dtype=torch.float64, linear=table_of(**limits), **SIZES
    )
    drafter._buffers.sum_squares.fill_(torch.nan)
    assert_drafts_right(tmp_path, drafter, torch.float64)


def test_what_rows_that_do_not_exist_hold_does_not_matter(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = Drafter.from_pretrained(tmp_path, dtype=torch.float64, linear="torch", **SIZES)
    on_torch = drafter._pass.linear._torch
    assert on_torch is not None
    names = ("hidden", "residual", "concat", "attended", "activated")
    buffers = [getattr(drafter._buffers, name) for name in names]
    for buffer in (on_torch._normed, on_torch._product, *buffers):
        buffer.fill_(torch.nan)
    assert_drafts_right(tmp_path, drafter, torch.float64)


class CalledOps(TorchDispatchMode):
    """Names of all operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_torch_layers_allocate_nothing(tmp_path: Path) -> None:
    """They call operators that write where they are told, and make views."""
    write_drafter(tmp_path, **VARIANTS["bias"])
    drafter = Drafter.from_pretrained(tmp_path, dtype=torch.float32, **SIZES)
    w, layer, R = drafter.weights, drafter.weights.layers[1], 40
    on_torch, cache = TorchLinear(w, 64), drafter.caches[1]
    count = torch.tensor([R], dtype=torch.int32)
    rows = torch.arange(R)
    residual, out = torch.randn(R, w.fc.shape[0]), torch.empty(R, layer.down.shape[1])
    q = torch.empty(R, drafter.config.num_heads, drafter.config.head_dim)
    n = drafter.config.num_taps
    taps, hidden = (
        [torch.randn(R, w.fc.shape[1] // n) for _ in range(n)],
        torch.empty_like(residual),
    )
    sums = torch.empty(0)
    called = CalledOps()
    with called:
        on_torch.project_taps(taps, rows.int(), count, w.fc, None, None, 1e-5, hidden)
        on_torch.qkv_rope_cache(
            residual, layer.input_norm, layer.qkv, layer.qkv_bias, None, None, w.rope, rows, rows,
            count, cache.k_scale, cache.v_scale, 1e-5, cache.k, cache.v, q,
        )  # fmt: skip
        attended = q.view(R, -1)
        assert on_torch.linear_residual(
            attended, layer.o, layer.o_bias, count, residual, sums
        ) is None  # fmt: skip
        on_torch.norm_swiglu(residual, layer.post_norm, layer.gate_up, count, 1e-5, out)
    products = {"aten.mm.out", "aten.addmm.out", "aten.add_.Tensor", "aten.addmm_.default"}
    ours = {f"p_eagle.{x}.default" for x in ("gather_taps", "norm_rows", "gate_rows", "rope_cache")}
    assert products | ours <= called.names
    assert called.names - products - ours <= {
        "aten.t.default", "aten.slice.Tensor", "aten.view.default", "aten.permute.default",
        "aten.numpy_T.default", "aten.transpose.int", "aten._to_copy.default",
    }  # fmt: skip


# ---- The choice ----------------------------------------------------------------------------------


def layers(weights: DrafterWeights, max_rows: int = 64, **options: Any) -> LinearLayers:
    return LinearLayers(weights, 3, max_rows, torch.empty(0, dtype=torch.uint8), **options)


def weights_of(
    hidden: int = 128, tap_width: int = 64, head_dim: int = 64, intermediate: int = 192,
    dtype: torch.dtype = torch.bfloat16,
) -> DrafterWeights:  # fmt: skip
    """Weights of these sizes that hold nothing."""

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def layer(columns: int) -> LayerWeights:
        norm = new(hidden, dtype=torch.bfloat16)
        return LayerWeights(
            input_norm=norm, hidden_norm=norm, qkv=new(8 * head_dim, columns), qkv_bias=None,
            q_norm=None, k_norm=None, o=new(hidden, 4 * head_dim), o_bias=None, post_norm=norm,
            gate_up=new(2 * intermediate, hidden), down=new(hidden, intermediate),
        )  # fmt: skip

    norm = new(hidden, dtype=torch.bfloat16)
    return DrafterWeights(
        embedding=new(8, hidden), fc=new(hidden, 3 * tap_width), input_norm=None, fc_norms=None,
        mask_hidden=norm, layers=(layer(2 * hidden), layer(hidden)), norm=norm,
        lm_head=new(8, hidden), draft_to_target=None, rope=new(16, head_dim, dtype=torch.float32),
        mask_heads=new(8 * head_dim, dtype=torch.float32),
    )  # fmt: skip


def test_the_bundled_table_fuses_up_to_32_rows() -> None:
    chosen = layers(weights_of())
    assert architecture_of(torch.device("cpu")) == "cpu"
    for rows, backend in ((1, chosen._fused), (32, chosen._fused), (33, chosen._torch)):
        linear = chosen.for_rows(rows)
        for op in LINEAR_OPS:
            assert getattr(linear, op) == getattr(backend, op), (rows, op)
    assert str(chosen.choices[0]) == (
        "project_taps: fused up to 32 rows, torch above (not measured)"
    )


def test_no_buffers_where_no_pass_needs_them() -> None:
    assert layers(weights_of(), max_rows=32)._torch is None
    assert layers(weights_of(), max_rows=100, backend="fused")._torch is None
    assert layers(weights_of(), max_rows=33)._torch is not None


def test_a_table_of_ones_own() -> None:
    table = LinearTable(
        FusedRows(8, "default"), {("sm_90", "norm_swiglu", "bfloat16"): FusedRows(24, "measured")}
    )
    found = {
        c.op: c.fused_rows
        for c in layers(weights_of(), backend=table, architecture="sm_90").choices
    }
    assert found == {
        "project_taps": 8, "qkv_rope_cache": 8, "linear_residual": 8, "norm_swiglu": 24
    }  # fmt: skip
    found = {c.op: c.fused_rows for c in layers(weights_of(), backend=table).choices}
    assert set(found.values()) == {8}


def test_a_table_that_names_cutlass() -> None:
    """Above the rows of the fused kernels, on the architecture that has CUTLASS's."""
    table = LinearTable(
        FusedRows(8, "x", "cutlass"), {("sm_90", "project_taps", "bfloat16"): FusedRows(8, "y")}
    )
    chosen = layers(weights_of(), backend=table, architecture="sm_90")
    assert str(chosen.choices[0]) == "project_taps: fused up to 8 rows, torch above (y)"
    assert str(chosen.choices[3]) == "norm_swiglu: fused up to 8 rows, cutlass above (x)"
    linear = chosen.for_rows(9)
    assert linear.norm_swiglu == chosen._cutlass.norm_swiglu
    assert linear.project_taps == chosen._torch.project_taps
    assert chosen.for_rows(8).norm_swiglu == chosen._fused.norm_swiglu
    assert set(chosen.plan) == {
        f"{backend}_{x}" for backend in ("torch", "cutlass") for x in ("normed", "product")
    }
    on_blackwell = layers(weights_of(), backend=table, architecture="sm_100")
    assert str(on_blackwell.choices[0]) == "project_taps: fused up to 8 rows, cutlass above (x)"
    elsewhere = layers(weights_of(), backend=table, architecture="sm_120")
    assert elsewhere._cutlass is None
    assert str(elsewhere.choices[3]) == (
        "norm_swiglu: fused up to 8 rows, torch above "
        "(CUTLASS's kernels need sm_90 or sm_100, got sm_120)"
    )


def test_cutlass_stores_no_product_of_gate_and_up() -> None:
    w, rows = weights_of(), 64
    widths = {name: x.shape[0] // rows for name, x in CutlassLinear.plan_buffers(w, rows).items()}
    assert widths == {"cutlass_normed": 3 * 64, "cutlass_product": 8 * 64}


@pytest.mark.parametrize(
    ("sizes", "architecture", "reason"),
    [
        ({}, "sm_103", "project_taps: CUTLASS's kernels need sm_90 or sm_100, got sm_103"),
        ({"hidden": 136}, "sm_90", "project_taps: .* rows that are a multiple of 16, got 136"),
        ({"tap_width": 41}, "sm_90", "project_taps: .* columns that are a multiple of 8, got 123"),
        ({"intermediate": 196}, "sm_90", "linear_residual: .* a multiple of 8, got 196"),
        ({"dtype": E4M3}, "sm_90", FP8_NEEDS_FUSED),
    ],
)
def test_what_cutlass_refuses(sizes: dict[str, Any], architecture: str, reason: str) -> None:
    with pytest.raises(BackendError, match=reason):
        layers(weights_of(**sizes), backend="cutlass", architecture=architecture)
    if "dtype" not in sizes:
        layers(weights_of(**sizes), backend="cutlass")  # the CPU takes any size


REFUSALS: dict[str, tuple[dict[str, int], str, str]] = {
    "taps": ({"tap_width": 72}, "project_taps", "columns that are a multiple of 64, got 72"),
    "head size": ({"head_dim": 96}, "qkv_rope_cache", "a head size of 64 or 128, got 96"),
    "hidden": ({"hidden": 136}, "norm_swiglu", "columns that are a multiple of 64, got 136"),
    "residual": ({"hidden": 132}, "project_taps", "rows that are a multiple of 8, got 132"),
    "intermediate": ({"intermediate": 200}, "linear_residual", "a multiple of 64, got 200"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_sizes_that_the_fused_kernels_refuse(name: str) -> None:
    sizes, op, reason = REFUSALS[name]
    weights = weights_of(**sizes)
    choices = {c.op: c for c in layers(weights, architecture="sm_90").choices}
    assert choices[op].fused_rows == 0
    assert reason in choices[op].reason
    assert str(choices[op]) == f"{op}: torch ({choices[op].reason})"
    with pytest.raises(BackendError, match=reason):
        layers(weights, backend="fused", architecture="sm_90")
    layers(weights, backend="torch", architecture="sm_90")
    layers(weights, backend="fused")  # the CPU takes any size


@pytest.mark.parametrize(("hidden", "head_dim"), [(2880, 64), (4096, 128), (2048, 128)])
def test_sizes_of_real_models_are_not_refused(hidden: int, head_dim: int) -> None:
    assert fused_refusals(weights_of(hidden, hidden, head_dim, 8640), 3) == {}


def test_odd_sizes_draft_on_torch(tmp_path: Path) -> None:
    """As on a GPU whose kernels refuse them."""
    write_drafter(tmp_path, intermediate_size=100)
    drafter = Drafter.from_pretrained(tmp_path, dtype=torch.float64, **SIZES)
    chosen = LinearLayers(
        drafter.weights, drafter.config.num_taps, drafter.limits.most_rows,
        drafter._buffers.linear_workspace, architecture="sm_90",
    )  # fmt: skip
    assert "linear_residual: torch" in str(chosen.choices[2])
    drafter._pass.linear = chosen
    assert_drafts_right(tmp_path, drafter, torch.float64)


def test_fp8_weights_need_the_fused_kernels() -> None:
    weights = weights_of(dtype=E4M3)
    chosen = layers(weights, max_rows=100)
    assert chosen._torch is None
    assert {c.fused_rows for c in chosen.choices} == {None}
    assert str(chosen.choices[0]) == f"project_taps: fused ({FP8_NEEDS_FUSED})"
    with pytest.raises(BackendError, match=FP8_NEEDS_FUSED):
        layers(weights, backend="torch")
    with pytest.raises(BackendError, match=f"got 200; {FP8_NEEDS_FUSED}"):
        layers(weights_of(intermediate=200, dtype=E4M3), architecture="sm_90")
    bf16 = weights_of()
    layer = bf16.layers[1]
    with pytest.raises(BackendError, match=f"norm_swiglu: {FP8_NEEDS_FUSED}"):
        TorchLinear(bf16, 1).norm_swiglu(
            torch.zeros(1, 128), layer.post_norm, layer.gate_up, torch.ones(1).int(), 1e-5,
            torch.zeros(1, 192), gate_up_scale=torch.ones(384),
        )  # fmt: skip


def test_only_some_weights_are_fp8() -> None:
    """The head's precision, or one op's, says nothing of the others."""
    bf16, fp8 = weights_of(), weights_of(dtype=E4M3)
    mixed = replace(
        bf16,
        layers=tuple(
            replace(x, gate_up=y.gate_up) for x, y in zip(bf16.layers, fp8.layers, strict=True)
        ),
    )
    found = {c.op: c.fused_rows for c in layers(mixed).choices}
    assert found == {
        "project_taps": 32, "qkv_rope_cache": 32, "linear_residual": 32, "norm_swiglu": None
    }  # fmt: skip


def test_there_is_no_such_backend(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    with pytest.raises(BackendError, match='must be "auto", "fused", "torch", "cutlass" or a Lin'):
        Drafter.from_pretrained(tmp_path, linear="cublas", **SIZES)


def test_a_wrong_weight_is_named(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = Drafter.from_pretrained(tmp_path, linear="torch", **SIZES)
    layer, count = drafter.weights.layers[0], torch.ones(1, dtype=torch.int32)
    H = layer.down.shape[0]
    on_torch = TorchLinear(drafter.weights, 8)
    with pytest.raises(ValueError, match="linear_residual: `weight` must have shape"):
        on_torch.linear_residual(
            torch.zeros(1, 5), layer.down, None, count, torch.zeros(1, H), torch.zeros(1)
        )
    with pytest.raises(ValueError, match="norm_swiglu: `gate_up` must have shape"):
        on_torch.norm_swiglu(
            torch.zeros(1, H), layer.post_norm, layer.gate_up, count, 1e-5, torch.zeros(1, 7)
        )
