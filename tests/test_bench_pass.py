"""The passes that are timed are passes: what they draft, what must move, what is reported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from p_eagle_cuda import Drafter
from test_benchmarks import load

CPU, F64 = torch.device("cpu"), torch.float64


@pytest.fixture(scope="module")
def bench_pass() -> ModuleType:
    return load("bench_pass")


@pytest.fixture(scope="module")
def drafters(bench_pass: ModuleType) -> ModuleType:
    return sys.modules["drafters"]


def drafter_for(drafters: ModuleType, case: Any, dtype: torch.dtype = F64) -> Drafter:
    shapes = sys.modules["shapes"]
    config = shapes.config_of(shapes.DRAFTERS["bundled"], 256)
    weights = drafters.random_weights(config, CPU, dtype)
    caches = drafters.random_caches(config, case.num_blocks(), dtype, CPU)
    return drafters.drafter_of(config, weights, caches, case.k, [case.batch])


@pytest.mark.parametrize("accepted", ["0", "mean", "K", "ragged"])
@pytest.mark.parametrize("k", [1, 4])
def test_the_replay_of_vllm_drafts_the_same(
    k: int, accepted: str, bench_pass: ModuleType, drafters: ModuleType
) -> None:
    case = drafters.Case(3, k, 40, accepted)
    drafter = drafter_for(drafters, case)
    given = drafters.fill_batch(drafter, case)
    drafts = drafter.propose(*given)
    replay = bench_pass.VllmReplay(drafter, given)
    assert torch.equal(replay.run(), drafts.token_ids)
    best = replay.top_logits.amax(dim=-1).view(3, k)
    torch.testing.assert_close(best, drafts.top_logits[..., 0])
    assert torch.equal(replay.run(), drafts.token_ids), "a second pass differs from the first"


def test_the_batch_is_what_the_case_says(drafters: ModuleType) -> None:
    case = drafters.Case(5, 4, 40, "ragged")
    assert case.num_accepted() == [0, 1, 2, 3, 4]
    assert case.contexts() == [10, 70, 30, 50, 10]
    drafter = drafter_for(drafters, case)
    given = drafters.fill_batch(drafter, case)
    assert given.num_rejected.tolist() == [4, 3, 2, 1, 0]
    assert given.target_positions.view(5, 5)[:, 0].tolist() == case.contexts()
    drafter.propose(*given)
    inputs = drafter._buffers.inputs(5, 45, 4)
    assert inputs.row_start.tolist() == [0, 4, 9, 15, 22, 30]
    assert inputs.seq_lens.tolist() == [14, 75, 36, 57, 18]
    own = given.block_table[given.block_table >= 0]
    assert sorted(own.tolist()) == list(range(case.num_blocks())), "a block is shared or unused"
    assert drafters.Case(1, 5, 9).num_accepted() == [2]
    assert drafters.Case(2, 7, 9, "K").num_accepted() == [7, 7]


def test_bytes_and_operations_of_a_pass(bench_pass: ModuleType, drafters: ModuleType) -> None:
    """Against a count over the weights that a drafter has, and arithmetic by hand."""
    case = drafters.Case(2, 3, 50, "K")
    shape = sys.modules["shapes"].DRAFTERS["bundled"]
    w = drafter_for(drafters, case, torch.bfloat16).weights
    matrices = [w.fc, w.lm_head]
    matrices += [m for x in w.layers for m in (x.qkv, x.o, x.gate_up, x.down)]
    config = bench_pass.config_of(shape)
    found = bench_pass.phases(config, case.as_batch(), bench_pass.Precision(cache=1))
    cached = 4 * 2 * 50 * 2 * 2 * 64
    rows = 2 * (8 * 3 * 256 + 9 * 256)
    assert bench_pass.total_bytes(found) == sum(m.nbytes for m in matrices) + cached + rows
    flops = {phase.kernel: phase.flops for phase in found}
    assert flops["project_taps"] == 2 * w.fc.numel() * 8
    assert flops["lm_head_topk"] == 2 * w.lm_head.numel() * 6
    assert [p.flops for p in found if p.kernel == "down"] == [
        2 * 256 * 384 * n for n in (12, 12, 12, 6)
    ]
    # Six rows of each request, which see 51 to 56 keys; three of them in the last layer.
    assert flops["paged_attention"] == 4 * 256 * 2 * 3 * (50 + 3)
    half = bench_pass.phases(config, case.as_batch(), bench_pass.Precision(1, 1, 1))
    assert bench_pass.total_bytes(half) == cached + rows + sum(m.numel() for m in matrices)
    assert bench_pass.floor_us(found, 1e9, 1e30) == pytest.approx(
        bench_pass.total_bytes(found) / 1e3
    )
    assert bench_pass.floor_us(found, 1e30, 1e9) == pytest.approx(
        sum(phase.flops for phase in found) / 1e3
    )


def test_which_backends_are_timed(
    bench_pass: ModuleType, drafters: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = drafter_for(drafters, drafters.Case(1, 1, 9), torch.bfloat16).weights
    found = {rows: set(bench_pass.backends(rows, wide)) for rows in (128, 129, 256, 257)}
    of_all = {"auto", "torch"}
    assert found == {
        128: of_all | {"fused"}, 129: of_all | {"fused", "cutlass"},
        256: of_all | {"fused", "cutlass"}, 257: of_all | {"cutlass"},
    }  # fmt: skip
    monkeypatch.setattr(bench_pass, "architecture_of", lambda _: "sm_80")
    assert set(bench_pass.backends(257, wide)) == of_all


def test_cutlass_is_timed_with_the_others(bench_pass: ModuleType) -> None:
    arguments = "--dry-run --drafter bundled --batch 33 --k 2 --context 9 --accepted mean --kv bf16"
    options = bench_pass._parser().parse_args(arguments.split())
    report = bench_pass.start_report("bundled", CPU)
    (row,) = bench_pass.measure(options, report, CPU)
    assert {"auto", "fused", "torch", "cutlass", "vllm_replay"} == row["passes"].keys()
    assert row["agreement"]["cutlass"] > 0.9
    report["results"].append(row)
    heading, _, line = bench_pass.table(report).splitlines()
    column = [x.strip() for x in heading.split("|")].index("cutlass us")
    assert float(line.split("|")[column]) > 0


@pytest.mark.parametrize("precision", ["fp8_head", "fp8", "w8a8"])
def test_fp8_weights(precision: str, bench_pass: ModuleType, drafters: ModuleType) -> None:
    """They are a drafter's with all that the floor counts, and torch's have the same values."""
    case = drafters.Case(2, 3, 50)
    weights = drafter_for(drafters, case, torch.bfloat16).weights
    found = drafters.quantized(weights, precision)
    wide = drafters.widened(found)
    e4m3 = torch.float8_e4m3fn
    assert found.lm_head.dtype == e4m3
    assert {x.down.dtype for x in found.layers} == {torch.bfloat16 if "h" in precision else e4m3}
    assert {x.dtype for x in (wide.fc, wide.lm_head, *(y.qkv for y in wide.layers))} == {
        torch.bfloat16
    }
    assert wide.lm_head_scale is wide.fc_scale is wide.layers[0].o_scale is None
    torch.testing.assert_close(wide.lm_head, weights.lm_head, rtol=0.07, atol=1e-4)
    assert not torch.equal(wide.lm_head, weights.lm_head)
    arguments = "--dry-run --drafter bundled --batch 2 --k 3 --context 50 --accepted mean --kv bf16"
    options = bench_pass._parser().parse_args([*arguments.split(), "--weights", precision])
    report = bench_pass.start_report("bundled", CPU)
    (row,) = bench_pass.measure(options, report, CPU)
    assert report["errors"] == []
    matrices = {"head": found.lm_head.nbytes}
    shape = sys.modules["shapes"].DRAFTERS["bundled"]
    found_16 = bench_pass.phases(bench_pass.config_of(shape), case.as_batch())
    bytes_of_16 = bench_pass.total_bytes(found_16)
    saved = wide.lm_head.nbytes - matrices["head"]
    assert found.fp8_activations == (precision == "w8a8")
    if precision != "fp8_head":
        saved += wide.fc.nbytes - found.fc.nbytes
        for x, y in zip(wide.layers, found.layers, strict=True):
            saved += sum(getattr(x, m).nbytes - getattr(y, m).nbytes
                         for m in ("qkv", "o", "gate_up", "down"))  # fmt: skip
    assert row["bytes"] == bytes_of_16 - saved


def test_passes_that_differ_are_not_timed(bench_pass: ModuleType) -> None:
    ids = torch.arange(8).view(2, 4)
    other = ids.clone()
    other[0] += 1
    found = bench_pass.agreement_with_torch({"torch": ids, "auto": other})
    assert found == {"torch": 1.0, "auto": 0.5}
    other[1, 0] += 1
    with pytest.raises(bench_pass.BenchmarkError, match="auto drafts what torch does in 38%"):
        bench_pass.agreement_with_torch({"torch": ids, "auto": other})


class FakeEvent:
    """Reads a clock that only `call` moves."""

    clock = 0.0

    def record(self) -> None:
        self.at = FakeEvent.clock

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at  # milliseconds


def test_a_pass_is_timed_without_what_evicts_l2(
    bench_pass: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing, order = sys.modules["timing"], []

    def advance(name: str, milliseconds: float) -> None:
        order.append(name)
        FakeEvent.clock += milliseconds

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: FakeEvent())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: advance("idle", 100), raising=False)
    monkeypatch.setattr(torch, "amax", lambda *_, **__: advance("evict", 10))
    make = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, dtype, device: make(4096, dtype=dtype))
    passes = {"one": lambda: advance("one", 1), "two": lambda: advance("two", 2)}
    timings = timing.time_passes(passes, rounds=3)
    assert {name: x.median_us for name, x in timings.items()} == {"one": 1000, "two": 2000}
    assert order[10:] == ["idle", "evict", "one", "idle", "evict", "two"] * 3
    assert timings["one"].rounds == 3
    assert timings["one"].host_us > 0


def test_a_dry_run_says_that_it_is_one(
    bench_pass: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its results are written as they come."""
    written = []
    monkeypatch.setattr(
        bench_pass, "write_json", lambda _, report: written.append(len(report["results"]))
    )
    arguments = "--dry-run --drafter bundled --batch 1 2 --k 2 --context 20 --accepted K --kv fp8"
    options = bench_pass._parser().parse_args(arguments.split())
    monkeypatch.setattr(sys, "argv", ["bench_pass", *arguments.split()])
    assert bench_pass.main() == 0
    assert written == [1, 2, 2]
    report = bench_pass.start_report("bundled", CPU)
    assert report["dry_run"] is True
    assert "gpu" not in report
    (row, _) = bench_pass.measure(options, report, CPU)
    assert set(row["passes"]) == {"auto", "fused", "torch", "vllm_replay"}
    assert row["bytes"] > 0
    file = tmp_path / "new" / "result.json"
    sys.modules["timing"].write_json(file, report)
    assert json.loads(file.read_text())["drafter"] == "bundled"
    assert list(file.parent.iterdir()) == [file]


def test_cases_that_do_not_fit_are_named(
    bench_pass: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_pass, "_fits", lambda _, case, *__: case.batch == 1)
    arguments = "--dry-run --drafter bundled --batch 1 2 --k 2 --context 20 --accepted 0 --kv bf16"
    options = bench_pass._parser().parse_args(arguments.split())
    report = bench_pass.start_report("bundled", CPU)
    monkeypatch.setattr(bench_pass, "time_case", lambda *_: {})
    rows = list(bench_pass.measure(options, report, CPU))
    assert [row["batch"] for row in rows] == [1]
    assert [(x["batch"], x["reason"]) for x in report["left_out"]] == [
        (2, "the cache does not fit the memory")
    ]


def test_a_case_that_goes_wrong_ends_no_other(
    bench_pass: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def time_case(
        config: Any, weights: Any, wide: Any, caches: Any, case: Any, *_: Any
    ) -> dict[str, Any]:
        if case.batch == 1:
            raise RuntimeError("CUDA error: out of luck\nmore")
        return {"passes": {x: {"median_us": 1.0} for x in ("auto", "torch", "vllm_replay")},
                "over_floor": 1.0, "vllm_replay_over_auto": 1.0}  # fmt: skip

    monkeypatch.setattr(bench_pass, "time_case", time_case)
    arguments = "--dry-run --drafter bundled --batch 1 2 --k 2 --context 20 --accepted 0 --kv bf16"
    monkeypatch.setattr(sys, "argv", ["bench_pass", *arguments.split()])
    assert bench_pass.main() == 1
    out, err = capsys.readouterr()
    assert "| 2 | 2 | 20 | 0 | bf16 " in out
    (told,) = [line for line in err.splitlines() if line.startswith("bench_pass: error: ")]
    assert "'batch': 1" in told
    assert "'error': 'CUDA error: out of luck'" in told
