"""What can be tested of the benchmarks without what they measure."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from p_eagle_cuda import ops, reference
from p_eagle_cuda.config import DrafterConfig
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


@pytest.mark.parametrize("weight", ["bf16", "e4m3", "w8a8"])
@pytest.mark.parametrize(
    "name", ["fc", "qkv of the first layer", "qkv", "o", "gate_up", "down"]
)  # fmt: skip
def test_layers_can_be_called(bench_linear: ModuleType, name: str, weight: str) -> None:
    """On a CPU the ops are the reference; the calls are the same."""
    shape = bench_linear.DRAFTERS["bundled"]
    layer = bench_linear.Layer(name, shape, 5, weight, torch.device("cpu"), copies=2)
    layer.check()
    calls = layer.fused()
    assert len(calls) == 2
    layer.result.fill_(torch.nan)
    for call in [*calls, *layer.cublas()]:
        call()
    if name not in ("o", "down"):  # those add to what was there
        assert layer.result.isfinite().all()
    assert torch.equal(layer.product, layer.x @ layer.weights[-1].T)
    assert set(layer.candidates()) == {"fused", "cublas"} | (
        {"cutlass"} if weight == "bf16" else set()
    )
    (*_, call) = layer.cutlass()
    call()
    product = layer.x @ layer.weights[-1].T
    expected = reference.gate_rows(product) if name == "gate_up" else product
    assert torch.equal(layer.result, expected)
    rows, columns = shape.linear_layers()[name]
    assert layer.weight_bytes == rows * columns * (2 if weight == "bf16" else 1)


@pytest.mark.parametrize(
    "name", ["fc", "qkv of the first layer", "qkv", "o", "gate_up", "down"]
)  # fmt: skip
def test_the_baseline_of_a_layer_computes_the_same(bench_linear: ModuleType, name: str) -> None:
    """Not compiled, which takes long; what else it would compute is not timed."""
    shape, cpu = bench_linear.DRAFTERS["bundled"], torch.device("cpu")
    layer = bench_linear.Layer(name, shape, 5, "bf16", cpu, copies=2)
    layer.fused()[-1]()
    baseline, tolerance = layer.baseline(), bench_linear.TOLERANCE
    with pytest.raises(bench_linear.PEagleError, match=r"torch.compile: is .* off"):
        baseline.checked(baseline.function, layer.result + 1, tolerance)
    layer = bench_linear.Layer(name, shape, 5, "bf16", cpu, copies=2)
    layer.fused()[0]()
    baseline = layer.baseline()
    assert len(baseline.checked(baseline.function, layer.result, tolerance)) == 2
    with pytest.raises(bench_linear.PEagleError, match="a dry run compiles nothing"):
        layer.compiled()

    def broken(*_: Any) -> Any:
        raise RuntimeError("no Triton\nmore")

    with pytest.raises(bench_linear.PEagleError, match=r"^torch.compile: no Triton$"):
        baseline.checked(broken, layer.result, tolerance)


def test_what_is_not_compiled_says_why(bench_linear: ModuleType) -> None:
    cpu = torch.device("cpu")
    report = bench_linear.measure(["bundled"], [2], ["bf16", "e4m3"], cpu, compile=True)
    assert report["errors"] == []
    assert {row["weight"]: row["left_out"]["compiled"] for row in report["results"]} == {
        "bf16": "torch.compile: a dry run compiles nothing",
        "e4m3": "torch.compile: is timed with bf16 weights alone",
    }
    assert bench_linear.table(report).splitlines()[-1].endswith("| - |")


def test_a_wrong_kernel_is_not_timed(
    bench_linear: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = bench_linear.DRAFTERS["bundled"]
    layer = bench_linear.Layer("o", shape, 2, "bf16", torch.device("cpu"), copies=1)
    monkeypatch.setattr(ops, "linear_residual", lambda *_, **__: None)
    with pytest.raises(bench_linear.BenchmarkError, match=r"o: the fused op is .* off"):
        layer.check()
    monkeypatch.undo()
    monkeypatch.setattr(ops, "gemm_residual", lambda *_, **__: None)
    with pytest.raises(bench_linear.BenchmarkError, match=r"o: the cutlass op is .* off"):
        layer.check()


def test_shapes_are_those_of_the_bundled_pair(bench_linear: ModuleType) -> None:
    from p_eagle_cuda.bundled import bundled_drafter

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


def test_instances_of_a_kernel_are_summed(bench_linear: ModuleType) -> None:
    timing = sys.modules["timing"]
    prefix = "void p_eagle::(anonymous namespace)::"
    found = timing.sum_by_kernel(
        [
            ("void p_eagle::linear_kernel<p_eagle::A<64>>(int)", 20, 90.0),
            ("void p_eagle::linear_kernel<p_eagle::B>(int)", 10, 30.0),
            (f"{prefix}gate(float*)", 10, 200.0),
            ("cudaGraphLaunch", 10, 0.0),
        ],
        10,
    )
    assert list(found.items()) == [
        ("p_eagle::gate", {"launches": 1.0, "us": 20.0}),
        ("p_eagle::linear_kernel", {"launches": 3.0, "us": 12.0}),
    ]
    if not torch.cuda.is_available():
        assert timing.kernel_times(lambda: None) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
@pytest.mark.parametrize(
    "name", ["bench_linear", "bench_kernel", "bench_pass", "bench_serving", "bench_verify"]
)
def test_without_a_gpu_nothing_is_claimed(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    assert load(name).main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{name}: error: needs a CUDA device; there is none, so nothing is measured\n"


def test_fp8_loses_at_most_one_percent_of_the_acceptance_length() -> None:
    """Of weights, activations and cache together, from the same 770 held-out positions."""
    precisions = [("auto", "auto"), ("fp8", "fp8"), ("w8a8", "fp8")]
    plain, *others = load("bench_precision").measure(5, 16, 60, precisions)["rows"]
    assert plain["acceptance_length"] > 2.3
    figures = [plain["per_position"]]
    for fp8 in others:
        assert plain["positions"] == fp8["positions"] > 700
        assert fp8["per_position"] not in figures, "nothing more was quantised"
        assert fp8["acceptance_length"] >= 0.99 * plain["acceptance_length"], fp8["weights"]
        figures.append(fp8["per_position"])


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


@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_attention_and_its_baseline_compute_the_same(kv: str) -> None:
    bench_kernel = load("bench_kernel")
    shape, case = bench_kernel.DRAFTERS["bundled"], bench_kernel.Case(1, 2, 37)
    kernel = bench_kernel.prompt_attention(
        bench_kernel.Setting(shape, case, kv, torch.device("cpu"))
    )
    for ours, sdpa in zip(*kernel.candidates.values(), strict=True):
        expected = sdpa()[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(ours(), expected, rtol=0.02, atol=0.01)


def test_serving_is_asked_for_what_it_says(tmp_path: Path) -> None:
    """The drafter is one that this package loads, for the target beside it."""
    bench_serving = load("bench_serving")
    shape = bench_serving.DRAFTERS["Qwen3-8B"]
    found = bench_serving.configs(shape, 12, 300)
    (tmp_path / "config.json").write_text(json.dumps(found["drafter"]))
    config = DrafterConfig.from_pretrained(tmp_path)
    assert (config.num_layers, config.num_taps, config.tap_layer_ids) == (4, 3, (1, 6, 11))
    assert config.target_hidden_size == found["target"]["hidden_size"] == 4096
    assert config.mask_token_id == found["target"]["vocab_size"] - 1
    arguments = "--drafter Qwen3-8B --concurrency 2 7 --weights fp8 --kv fp8 --k 3"
    options = bench_serving._parser().parse_args(arguments.split())
    plain, ours = (
        bench_serving.engine_arguments(options, tmp_path, variant) for variant in ("plain", "v2")
    )
    assert plain["max_num_seqs"] == 7
    assert plain["kv_cache_dtype"] == "fp8"
    assert ours.pop("additional_config") == {"p_eagle_cuda": {"weights": "fp8"}}
    speculative = ours.pop("speculative_config")
    assert ours == plain
    assert speculative["num_speculative_tokens"] == 3
    assert speculative["synthetic_acceptance_length"] == 3.0


def test_serving_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_serving = load("bench_serving")

    def run_variant(options: Any, folder: Path, variant: str) -> dict[str, Any]:
        assert (folder / "target" / "config.json").exists()
        if variant == "v2":
            return {"error": "exit 1", "log": ["no such runner"]}
        rate = {"plain": 10.0, "vllm": 20.0, "v1": 30.0}[variant]
        return {"rows": [{"concurrency": 4, "tokens_per_s": rate}]}

    monkeypatch.setattr(bench_serving, "run_variant", run_variant)
    file = tmp_path / "result.json"
    arguments = ["--dry-run", "--drafter", "bundled", "--concurrency", "4", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["bench_serving", *arguments])
    assert bench_serving.main() == 1
    out, err = capsys.readouterr()
    assert "| 4 | 10 | 20 | 30 | 1.50 |" in out
    assert err.splitlines()[-2:] == ["no such runner", "bench_serving: error: v2: exit 1"]
    assert json.loads(file.read_text())["variants"]["v2"]["error"] == "exit 1"


def test_verification_and_its_baselines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rules run, drafts are accepted and refused, and a baseline that errs is not timed."""
    bench_verify = load("bench_verify")
    cpu = torch.device("cpu")
    for rule in bench_verify.RULES:
        batches = bench_verify.make_batches(rule, 8, 6, 40, cpu)
        found = bench_verify.ours(batches)
        found.calls[-1]()
        counts = (found.tokens() >= 0).sum(dim=1)
        assert counts.min() < counts.max(), rule
    sizes = "--batch 8 --nodes 6 --vocab-size 40"
    arguments = ["bench_verify", "--dry-run", *sizes.split(), "--rule"]
    monkeypatch.setattr(sys, "argv", [*arguments, *bench_verify.RULES])
    assert bench_verify.main() == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 + len(bench_verify.RULES)
    assert "without vllm: needs a GPU" in err

    def wrong(batches: list[Any]) -> Any:
        right = bench_verify.in_torch(batches)
        return right._replace(tokens=lambda: right.tokens() + 1)

    monkeypatch.setitem(bench_verify.CANDIDATES, "torch", ("chain", wrong))
    monkeypatch.setattr(sys, "argv", [*arguments, "greedy chain"])
    assert bench_verify.main() == 1
    assert "torch emits other tokens than ours" in capsys.readouterr().err


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
        if kernel.baseline is not None:
            baseline, result = kernel.baseline, kernel.result
            kernel.candidates["ours"][0]()
            assert baseline.checked(baseline.function, result, bench_kernel.TOLERANCE)
        with pytest.raises(bench_kernel.PEagleError, match=r"torch\.compile: "):
            bench_kernel.compiled(kernel)
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
