"""What can be tested of the benchmarks without what they measure."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from p_eagle_cuda import ops
from p_eagle_cuda.statistics import Step

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of the benchmarks, which import each other by their bare names."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def bench_linear() -> ModuleType:
    return load("bench_linear")


@pytest.mark.parametrize("is_e4m3", [False, True], ids=["bf16", "e4m3"])
@pytest.mark.parametrize(
    "name", ["fc", "qkv of the first layer", "qkv", "o", "gate_up", "down"]
)  # fmt: skip
def test_layers_can_be_called(bench_linear: ModuleType, name: str, is_e4m3: bool) -> None:
    """On a CPU the ops are the reference; the calls are the same."""
    shape = bench_linear.DRAFTERS["bundled"]
    layer = bench_linear.Layer(name, shape, 5, is_e4m3, torch.device("cpu"), copies=2)
    layer.check()
    calls = layer.fused()
    assert len(calls) == 2
    layer.result.fill_(torch.nan)
    for call in [*calls, *layer.cublas()]:
        call()
    if name not in ("o", "down"):  # those add to what was there
        assert layer.result.isfinite().all()
    assert torch.equal(layer.product, layer.x @ layer.weights[-1].T)
    rows, columns = shape.linear_layers()[name]
    assert layer.weight_bytes == rows * columns * (1 if is_e4m3 else 2)


def test_a_wrong_kernel_is_not_timed(
    bench_linear: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = bench_linear.DRAFTERS["bundled"]
    layer = bench_linear.Layer("o", shape, 2, False, torch.device("cpu"), copies=1)
    monkeypatch.setattr(ops, "linear_residual", lambda *_, **__: None)
    with pytest.raises(bench_linear.BenchmarkError, match=r"o: the fused op is .* off"):
        layer.check()


def test_shapes_are_those_of_the_bundled_pair(bench_linear: ModuleType) -> None:
    from p_eagle_cuda.bundled import bundled_drafter
    from p_eagle_cuda.config import DrafterConfig

    config = DrafterConfig.from_pretrained(bundled_drafter())
    shape = bench_linear.DRAFTERS["bundled"]
    assert (shape.hidden_size, shape.intermediate_size) == (
        config.hidden_size, config.intermediate_size,
    )  # fmt: skip
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.num_taps) == (
        config.num_heads, config.num_kv_heads, config.head_dim, config.num_taps,
    )  # fmt: skip


def test_summary_of_samples(bench_linear: ModuleType) -> None:
    timing = sys.modules["timing"]
    summary = timing._summary([float(x) for x in range(101)])
    assert (summary.median_us, summary.rounds) == (50.0, 101)
    assert summary.p10_us == pytest.approx(9.2)
    assert summary.p90_us == pytest.approx(90.8)
    assert summary.as_json()["median_us"] == 50.0
    assert timing.environment()["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
@pytest.mark.parametrize("name", ["bench_linear", "bench_kernel", "bench_pass"])
def test_without_a_gpu_nothing_is_claimed(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    assert load(name).main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{name}: error: needs a CUDA device; there is none, so nothing is measured\n"


def test_fp8_loses_at_most_one_percent_of_the_acceptance_length() -> None:
    """Of weights and cache together, from the same 770 positions of held-out functions."""
    precisions = [("auto", "auto"), ("fp8", "fp8")]
    plain, fp8 = load("bench_precision").measure(5, 16, 60, precisions)["rows"]
    assert plain["positions"] == fp8["positions"] > 700
    assert plain["per_position"] != fp8["per_position"], "nothing was quantised"
    assert plain["acceptance_length"] > 2.3
    assert fp8["acceptance_length"] >= 0.99 * plain["acceptance_length"]


def test_the_benchmarks_readme_shows_the_committed_precisions() -> None:
    report = json.loads((BENCHMARKS / "results/acceptance-precision.json").read_text())
    table = load("bench_precision").table(report)
    assert table in (BENCHMARKS / "README.md").read_text()
    first = report["rows"][0]["acceptance_length"]
    assert all(row["acceptance_length"] >= 0.99 * first for row in report["rows"])


def test_steps_that_decoding_visits() -> None:
    steps = [Step(i, 3, accepted) for i, accepted in enumerate([2, 0, 3, 0, 1, 3, 0])]
    visited = load("bench_precision")._visited(steps)
    assert [step.offset for step in visited] == [0, 3, 4, 6]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_measures_on_a_gpu(bench_linear: ModuleType) -> None:
    report = bench_linear.measure(["bundled"], [4], ["bf16"], torch.device("cuda"))
    assert all(row["fused"]["median_us"] > 0 for row in report["results"])
    assert "bundled qkv" in bench_linear.table(report)


def test_every_kernel_can_be_called() -> None:
    """On a CPU the ops are the reference; each returns what a pass would go on with."""
    bench_kernel = load("bench_kernel")
    case = bench_kernel.Case(3, 2, 20, "ragged")
    for name, make in bench_kernel.KERNELS.items():
        setting = bench_kernel.Setting(
            bench_kernel.DRAFTERS["bundled"], case, "bf16", torch.device("cpu")
        )
        kernel = make(setting)
        assert kernel.bytes > 0
        for call in kernel.candidates["ours"]:
            found = call()
            tensors = found if isinstance(found, tuple) else [found]
            assert all(x.isfinite().all() for x in tensors if x.is_floating_point()), name
        for call in kernel.candidates.get("cublas", []):
            call()
    assert setting.num_rows == (0 + 2) + (1 + 2) + (2 + 2)


def test_the_readme_shows_the_committed_measurement_of_trees() -> None:
    """Made by `benchmarks/bench_tree.py` over more prompts and tokens than the suite's."""
    bench = load("bench_tree")
    measured = json.loads((BENCHMARKS / "results/tree-bundled.json").read_text())
    assert bench.table(measured) in (BENCHMARKS / "README.md").read_text()
    rows = measured["rows"]
    assert all(row["lossless"] for row in rows)
    assert {row["tree"] for row in rows} == {"chain", "static", "dynamic"}
    for row in rows[1:]:
        ratio = row["acceptance_length"] / rows[0]["acceptance_length"]
        assert row["break_even"] == pytest.approx(ratio)
