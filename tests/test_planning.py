"""The model of a pass: floors by hand, predictions that follow what was counted, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import FORMATS, drafter_config, drafter_tensors, in_format, write_drafter
from command_errors import assert_one_line
from p_eagle_cuda import ops
from p_eagle_cuda.cli import main
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.drafter_pass import PRUNE_ABOVE
from p_eagle_cuda.linear import LinearLayers
from p_eagle_cuda.linear_table import BACKENDS, LINEAR_OPS, LinearTable, linear_paths
from p_eagle_cuda.planning.gpus import GPUS
from p_eagle_cuda.planning.phases import Batch, Precision, phases, total_bytes
from p_eagle_cuda.planning.prediction import ASSUMED, LINEAR_OPS_OF_PHASES, PassModel
from p_eagle_cuda.planning.tiles import collective_rows, num_parts
from p_eagle_cuda.planning.traffic import BUNDLED_TRAFFIC, KernelTraffic, PassKind, PassTraffic
from p_eagle_cuda.weights import load_drafter_weights
from test_benchmarks import load

# What kernels can run: columns in multiples of 64.
EVEN_SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 192, "target_hidden_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
H200 = GPUS["h200"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def config() -> DrafterConfig:
    shapes = load("shapes")
    return shapes.config_of(shapes.DRAFTERS["gpt-oss-20b"])


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    write_drafter(tmp_path / "drafter", **EVEN_SIZES)
    return tmp_path / "drafter"


@pytest.fixture
def run(drafter: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `p-eagle-cuda plan`: exit code, output, errors."""

    def run(*arguments: str, path: Path | None = None) -> tuple[int, str, str]:
        try:
            code = main(["plan", "--config", str(path or drafter), *arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_rows_are_floors_and_predictions(run: Run, drafter: Path) -> None:
    code, out, err = run("--batch", "1,8,32", "--k", "3", "--accepted", "1.5", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["batch"] for row in rows] == [1, 8, 32]
    found = DrafterConfig.from_pretrained(drafter)
    for row in rows:
        assert row["predicted"] is True
        assert row["predicted_us"] > row["floor_us"] > 0
        assert row["moved_bytes"] > row["bytes"] > 0
        batch = Batch.of_equal(row["batch"], 3, 1.5, 4096)
        assert row["bytes"] == total_bytes(phases(found, batch))
        assert row["launches"] == sum(x["launches"] for x in row["kernels"])
        assert row["moved_bytes"] == sum(x["moved_bytes"] for x in row["kernels"])
        assert row["predicted_us"] == pytest.approx(
            sum(x["predicted_us"] for x in row["kernels"]), abs=0.1
        )
    # Up to 32 rows all is fused: three kernels, five for each layer, the head.
    assert rows[0]["launches"] == 4 + 5 * found.num_layers
    assert rows[1]["launches"] > rows[0]["launches"]
    assert rows[2]["floor_us"] > rows[1]["floor_us"] > rows[0]["floor_us"]


def test_the_floor_is_bytes_over_bandwidth_where_products_are_free(run: Run) -> None:
    _, out, _ = run("--bandwidth", "2", "--tflops", "1e9", "--json")
    for row in json.loads(out):
        assert row["tb_per_s"] == 2
        assert row["floor_us"] == pytest.approx(row["bytes"] / 2e6, abs=0.01)
    _, out, _ = run("--bandwidth", "1e9", "--tflops", "3", "--batch", "4", "--json")
    (row,) = json.loads(out)
    assert row["floor_us"] > 100 * row["bytes"] / 1e15 * 1e6


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_a_checkpoint(name: str, run: Run, tmp_path: Path) -> None:
    flat = drafter_config(**EVEN_SIZES)
    written, _ = in_format(name, flat, drafter_tensors(flat))
    (tmp_path / "other.json").write_text(json.dumps(written))
    code, out, err = run("--json", path=tmp_path / "other.json")
    assert (code, err) == (0, "")
    _, expected, _ = run("--json")
    assert json.loads(out) == json.loads(expected)


def test_the_table_says_that_it_is_predicted(run: Run) -> None:
    code, out, _ = run("--gpu", "H100", "--batch", "2", "--kernels", "--weights", "fp8_head")
    assert code == 0
    assert out.startswith("Predicted, not measured: h100 at 3.02 TB/s and 791 TFLOP/s (assumed),")
    assert "weights fp8_head" in out
    header, row = out.splitlines()[3:5]
    assert "predicted us" in header
    assert row.split()[0] == "2"
    assert "\nbatch 2, predicted\n" in out
    kernels = PassTraffic.read().passes["16-bit", False]
    assert [line.split()[0] for line in out.splitlines()[8:]] == list(kernels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h300"], "--gpu must be one of a100, h100, "),
        (["--batch", "1,,2"], "argument --batch: expected an integer of at least 1, got ''"),
        (["--batch", "0"], "argument --batch: expected an integer of at least 1, got '0'"),
        (["--k", "x"], "argument --k: expected an integer of at least 1, got 'x'"),
        (["--accepted", "6"], "--accepted must be from 0 to --k 5, got 6"),
        (["--accepted", "nan"], "--accepted must be from 0 to --k 5, got nan"),
        (["--bandwidth", "-1"], "argument --bandwidth: expected a number above 0, got '-1'"),
        (["--tflops", "inf"], "argument --tflops: expected a number above 0, got 'inf'"),
        (["--weights", "int4"], "argument --weights: invalid choice: 'int4'"),
        (["--weights", "fp8", "--linear", "torch"], "project_taps: fp8 weights need the fused"),
        (["--gpu", "a100", "--linear", "cutlass"], "project_taps: CUTLASS's kernels need sm_90"),
    ],
    ids=str,
)
def test_errors_are_one_line(arguments: list[str], message: str, run: Run) -> None:
    assert_one_line(run(*arguments), message)


def test_what_is_no_drafter_is_one_line(run: Run, tmp_path: Path) -> None:
    assert_one_line(run(path=tmp_path / "none"), "none: not found")
    (tmp_path / "bad.json").write_text("{")
    assert_one_line(run(path=tmp_path / "bad.json"), "bad.json: expected JSON")
    write_drafter(tmp_path / "odd", **{**EVEN_SIZES, "hidden_size": 96, "head_dim": 24})
    assert_one_line(run(path=tmp_path / "odd"), "the kernels cannot run this drafter: the head")


def test_predictions_follow_what_was_counted(config: DrafterConfig) -> None:
    batch, kind = Batch.of_equal(1, 7, 3, 4096), PassKind("16-bit", has_many_rows=False)
    passes = PassTraffic.read().passes
    known = passes[kind]["down"]

    def predict(**changes: int) -> Any:
        changed = {**passes[kind], "down": replace(known, **changes)}
        return PassModel(config, H200, traffic=PassTraffic({**passes, kind: changed})).predict(
            batch
        )

    as_it_is = predict()
    down = [x for x in as_it_is.kernels if x.kernel == "down"]
    assert len(down) == config.num_layers
    twice = predict(moved_bytes=2 * known.moved_bytes)
    must = sum(phase.all_bytes for phase in phases(config, batch) if phase.kernel == "down")
    assert twice.moved_bytes - as_it_is.moved_bytes == pytest.approx(must, rel=0.01)
    rate = ASSUMED["mma.sync"].bandwidth * H200.bytes_per_s
    assert twice.predicted_us - as_it_is.predicted_us == pytest.approx(1e6 * must / rate, rel=0.01)
    partial = predict(partial_bytes=3 * known.partial_bytes)
    assert partial.predicted_us > as_it_is.predicted_us
    assert partial.floor_us == as_it_is.floor_us
    many_rows = Batch.of_equal(8, 7, 3, 4096)
    unchanged = PassModel(config, H200, traffic=PassTraffic({kind: passes[kind]}))
    assert unchanged.predict(batch) == as_it_is
    assert unchanged.predict(many_rows).moved_bytes < (
        PassModel(config, H200).predict(many_rows).moved_bytes
    )


@pytest.mark.parametrize("linear", ["fused", "torch"])
def test_passes_of_many_rows_prune_the_last_layer(config: DrafterConfig, linear: str) -> None:
    """Two launches more, no other bytes or floor, fewer operations of the last layer."""
    model = PassModel(config, H200, linear=linear)
    few, many = (
        model.predict(Batch.of_equal(size, 7, 3, 4096))
        for size in (PRUNE_ABOVE // 14, PRUNE_ABOVE // 14 + 1)
    )
    assert [x.kernel for x in few.kernels].count("prune_rows") == 0
    assert [x.kernel for x in many.kernels].count("prune_rows") == 1
    assert len(many.kernels) == len(few.kernels) + 2 == 26
    batch = Batch.of_equal(64, 7, 3, 4096)
    pruned, whole = (phases(config, batch, prunes=prunes) for prunes in (True, False))
    assert total_bytes(pruned) == total_bytes(whole)
    last_of_each = {phase.kernel: phase for phase in pruned}
    for kernel in ("paged_attention", "o", "norm_swiglu", "down", "qkv_rope_cache"):
        assert last_of_each[kernel].num_rows(batch) == (7 * 64, 7 * 64), kernel
    assert pruned[0].num_rows(batch) == (10 * 64, 14 * 64)
    # In the last layer all rows have keys and values, those alone that are sampled have queries.
    q_width, kv_width = config.num_heads * config.head_dim, 1024
    projections = [phase for phase in pruned if phase.kernel == "qkv_rope_cache"]
    sizes = [(phase.matrix[0], phase.flops) for phase in projections[-2:]]
    H = config.hidden_size
    assert sizes == [
        (kv_width, 2 * kv_width * H * 640), (q_width, 2 * q_width * H * 448),
    ]  # fmt: skip


def test_precisions_halve_what_they_say(config: DrafterConfig) -> None:
    batch = Batch.of_equal(2, 5, 2, 1000)
    plain = total_bytes(phases(config, batch))
    head = config.draft_vocab_size * config.hidden_size
    cached = config.num_layers * 2 * 1000 * 2 * config.num_kv_heads * config.head_dim
    weights = sum(phase.elements for phase in phases(config, batch))
    for names, saved in {
        ("auto", "auto"): 0, ("bf16", "bf16"): 0, ("fp8_head", "auto"): head,
        ("fp8", "auto"): weights, ("fp8", "fp8"): weights + cached,
    }.items():  # fmt: skip
        assert total_bytes(phases(config, batch, Precision.of(*names))) == plain - saved


def test_fp8_activations(config: DrafterConfig) -> None:
    """Half the operations; as many rows as two tiles of 16 bits have, and the weights read once."""
    fp8, w8a8 = (Precision.of(name, "auto") for name in ("fp8", "w8a8"))
    assert (w8a8.weight, w8a8.head, w8a8.kind, fp8.kind) == (1, 1, "w8a8", "fp8")
    batch = Batch.of_equal(8, 7, 3, 4096)
    for wide, narrow in zip(*(phases(config, batch, x) for x in (fp8, w8a8)), strict=True):
        is_linear = wide.kernel in LINEAR_OPS_OF_PHASES
        assert narrow.flops == pytest.approx(wide.flops / (2 if is_linear else 1), abs=1)
        assert narrow.bytes == wide.bytes
    for size, runs_on in ((2, "mma.sync"), (8, "wgmma fp8")):
        model = PassModel(config, H200, w8a8, linear="fused")
        kernels = model.predict(Batch.of_equal(size, 7, 3, 4096)).kernels
        assert {x.runs_on for x in kernels if x.kernel in LINEAR_OPS_OF_PHASES} == {runs_on}
    times = [PassModel(config, H200, x, "fused").predict(batch).predicted_us for x in (fp8, w8a8)]
    assert times[1] < 0.8 * times[0], "FP8 weights alone are read again for every 32 rows"


def test_rows_of_a_batch() -> None:
    batch = Batch(4, [0, 4, 1.5], [10, 20, 30])
    assert (batch.size, batch.real_rows, batch.rows) == (3, 8.5, 17.5)
    assert (batch.padded_rows, batch.sampled_rows) == (24, 12)


@pytest.mark.parametrize("weights", ["auto", "fp8"])
@pytest.mark.parametrize("linear", BACKENDS)
def test_layers_run_where_a_drafter_would_run_them(
    linear: str, weights: str, drafter: Path
) -> None:
    if weights == "fp8" and linear in ("torch", "cutlass"):
        pytest.skip("refused, see test_errors_are_one_line")
    config = DrafterConfig.from_pretrained(drafter)
    loaded = load_drafter_weights(
        drafter, config, dtype=torch.bfloat16, max_position=64, precision=weights
    )
    workspace = ops.linear_workspace(torch.device("cpu"))
    layers = LinearLayers(loaded, config.num_taps, 512, workspace, linear, architecture="sm_90")
    model = PassModel(config, H200, Precision.of(weights, "auto"), linear=linear)
    for rows in (1, 32, 33, 512):
        passing = layers.for_rows(rows)
        for kernel, op in LINEAR_OPS_OF_PHASES.items():
            assert op in LINEAR_OPS
            runs_on = model.runs_on(kernel, rows)
            for backend, name in ((layers._torch, "cuBLAS"), (layers._cutlass, "CUTLASS")):
                is_its = getattr(passing, op) == getattr(backend, op, None)
                assert (runs_on == name) == is_its, (kernel, rows, runs_on)


def test_cutlass_multiplies_tiles_of_rows_that_exist(config: DrafterConfig) -> None:
    """Of cuBLAS all rows of the buffers are multiplied, and gate and up rows come and go again."""
    times, moved = {}, {}
    for linear, name in (("torch", "cuBLAS"), ("cutlass", "CUTLASS")):
        found = PassModel(config, H200, linear=linear).predict(Batch.of_equal(128, 7, 0, 4096))
        gated = [x for x in found.kernels if x.kernel == "norm_swiglu"]
        assert {x.runs_on for x in gated} == {name}
        times[name], moved[name] = gated[0].us, gated[0].moved_bytes
        assert {x.launches for x in gated} == {3 if name == "cuBLAS" else 2}
    rows, padded = 128 * 7, 128 * 14
    assert moved["cuBLAS"] - moved["CUTLASS"] == 3 * config.intermediate_size * padded * 2
    assert times["CUTLASS"] / times["cuBLAS"] == pytest.approx(rows / padded, rel=0.1)
    assert (collective_rows(65, 100), collective_rows(129, 512), collective_rows(129, 513)) == (
        128, 256, 256,
    )  # fmt: skip
    assert collective_rows(100, 600) == 256


def test_every_path_of_the_linear_layers_has_assumptions() -> None:
    names = {x for path in linear_paths(LinearTable.read()) for x in (path.by_table, path.fused)}
    assert names <= ASSUMED.keys()


def test_parts_of_tiles() -> None:
    assert num_parts(4, 4, 8) == 8  # each tile is cut in two
    assert num_parts(8, 4, 8) == 0  # a whole tile each
    assert num_parts(2, 3, 100) == 6  # no more than there are blocks
    assert num_parts(3, 4, 2) == 2  # one and a half tiles each
    assert num_parts(5, 1, 3) == 0
    assert num_parts(1, 10, 3) == 3


def test_counts_that_are_damaged_are_refused() -> None:
    report = json.loads(BUNDLED_TRAFFIC.read_text())
    known = PassTraffic.of(report)
    assert known == PassTraffic.read()
    rows = report["passes"][1]["kernels"]
    down = known.find(PassKind("16-bit", has_many_rows=True), "down")
    assert down == KernelTraffic(**{x: rows[7][x] for x in vars(down)})
    del rows[7]["moved_bytes"]
    with pytest.raises(ValueError, match=r"`passes\[1\].kernels\[7\].moved_bytes` is missing"):
        PassTraffic.of(report)
    del report["passes"]
    with pytest.raises(ValueError, match=r"`passes` is missing, expected a list of objects"):
        PassTraffic.of(report)
