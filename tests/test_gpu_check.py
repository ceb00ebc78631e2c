"""`benchmarks/gpu_check.sh` and what it makes of its steps, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from test_benchmarks import BENCHMARKS, load

SCRIPT = BENCHMARKS / "gpu_check.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPT, *arguments], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


def result_in(folder: Path) -> dict:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def gpu_results() -> ModuleType:
    return load("gpu_results")


def test_dry_run(tmp_path: Path) -> None:
    """The steps that differ; the others would only start Python once more."""
    steps = "environment,build,smoke,pass,memcheck,counters"
    done = run("--out", str(tmp_path), "--dry-run", "--only", steps)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = result_in(tmp_path)
    assert [(x["step"], x["result"]) for x in found["steps"]] == [
        (step, "ok") for step in steps.split(",")
    ]
    assert found["environment"]["dry_run"] is True
    assert found["results"]["pass"]["results"]
    assert {x["detail"] for x in found["steps"]} >= {"1 cases", "dry run: no ncu"}
    table = (tmp_path / "table.txt").read_text()
    assert table in done.stdout
    assert sorted(x.name for x in tmp_path.iterdir() if x.is_file()) == [
        f"dry-run-{found['environment']['date']}.json", "log.txt", "table.txt",
    ]  # fmt: skip


def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path: Path) -> None:
    """And what has passed is not done again, what has not is."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *one_pass*) sleep 60 ;; *bench_linear*) exit 3 ;; '
        f'*gpu_results*) exec {sys.executable} "$@" ;; esac\necho "$@"\n'
    )
    python.chmod(0o755)
    environment = {"PYTHON": str(python)}
    out = str(tmp_path / "out")
    steps = "linear,kernels,memcheck,racecheck"
    first = run("--out", out, "--dry-run", "--only", steps, "--budget", "9", **environment)
    assert first.returncode == 1
    results = {x["step"]: x["result"] for x in result_in(tmp_path / "out")["steps"]}
    assert results["linear"] == "failed (3)"
    assert results["kernels"] == "ok"
    assert results["memcheck"].startswith("stopped after ")
    assert results["racecheck"] == "no time left"
    python.write_text(python.read_text().replace("exit 3", "true").replace("sleep 60", "true"))
    again = run("--out", out, "--dry-run", **environment)
    assert again.returncode == 0
    assert "== kernels: has passed before" in again.stdout
    assert "== linear (at" in again.stdout
    results = {x["step"]: x["result"] for x in result_in(tmp_path / "out")["steps"]}
    assert set(results.values()) == {"ok"}
    assert len(results) == 15


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def test_a_real_run_with_tools_that_only_say_what_they_are_told(tmp_path: Path) -> None:
    """Nothing of a GPU is there; but every step runs, and every script knows its arguments."""
    tools = tmp_path / "tools"
    tools.mkdir()
    executable(
        tools / "python",
        f"""case "$*" in
          *gpu_results*) exec {sys.executable} "$@" ;;
          *timing.py*) echo '{{"gpu": "NVIDIA H200", "date": "2026-11-30"}}' ;;
          *) echo "called: $*" ;;
        esac""",
    )
    for name in ("nvcc", "nvidia-smi"):
        executable(tools / name, f"echo {name}")
    executable(tools / "compute-sanitizer", 'shift 4; exec "$@"')
    (tools / "ncu.csv").write_text(NCU)
    executable(
        tools / "ncu",
        f"""[[ $* == *pipe_tensor* ]] && exit 1  # a metric it does not know
        while [[ $1 != --log-file ]]; do shift; done
        cp {tools}/ncu.csv "$2"
        while [[ $1 != */python ]]; do shift; done
        exec "$@"
        """,
    )
    path = f"{tools}:{os.environ['PATH']}"
    out = tmp_path / "out"
    done = run("--out", str(out), PYTHON=str(tools / "python"), PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = result_in(out)
    assert (out / "nvidia-h200-2026-11-30.json").exists()
    assert {x["result"] for x in found["steps"]} == {"ok"}
    assert [x["kernel"] for x in found["counters"]["kernels"]] == [
        "lm_head_topk_kernel", "linear_kernel",
    ]  # fmt: skip
    assert len(found["counters"]["launches"]) == 3
    scripts = [x for x in (out / "log.txt").read_text().splitlines() if x.startswith("called: ")]
    parsed = []
    for line in scripts:
        _, script, *arguments = line.split()
        if Path(script).parent.name == "benchmarks":
            options = load(Path(script).stem)._parser().parse_args(arguments)
            parsed.append(Path(script).stem)
            assert "dry_run" not in options or options.dry_run is False
            assert "device" not in options or options.device == "cuda"
    benches = [*["bench_pass"] * 4, *["bench_linear"] * 2, "bench_kernel", "bench_verify"]
    last = ["bench_linear", "bench_kernel", "bench_serving"]
    assert parsed == [*benches, *["one_pass"] * 4, *last]
    tests = [line.split("no:cacheprovider ")[1] for line in scripts if "-m pytest" in line]
    assert len(tests) == 3
    assert "[cuda-embed_norm_concat-" in tests[0]
    assert all("-m gpu" in x for x in tests[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out DIR is missing"),
        (["--out"], "--out needs a value"),
        (["--out", "x", "--only", "pass,fast"], "there is no step 'fast', expected: environment "),
        (
            ["--out", "x", "--budget", "ten"],
            "--budget must be a whole number of seconds, got 'ten'",
        ),
        (["--gpu"], "unknown argument '--gpu', expected --out, "),
        (["--out", "/dev/null/x"], "cannot make the folder '/dev/null/x'"),
    ],
    ids=str,
)
def test_errors_are_one_line(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"gpu_check: error: {message}")
    assert len(lines) == (2 if "/dev/null/x" in arguments else 1)  # mkdir says why


def test_a_wrong_cutlass_folder_is_told_before_time_is_spent(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), CUTLASS_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "CUTLASS_DIR has no include/cute/tensor.hpp" in done.stderr


STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
NCU = f"""==PROF== Connected to process 7
==PROF== Profiling "linear_kernel": 0%....50%....100% - 3 passes
"ID","Process ID","Kernel Name","Grid Size","gpu__time_duration.sum","dram__bytes_read.sum",\
"dram__bytes_write.sum","sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",\
"{STALL.format("wait")}","{STALL.format("long_scoreboard")}","launch__registers_per_thread"
"","","","","ns","byte","byte","%","inst","inst","register/thread"
"0","7","void p_eagle::linear_kernel<(int)3>(p_eagle::Params)","(132, 1, 1)","10,000",\
"49,800,000","200,000","20.5","1.5","6.25","116"
"1","7","void p_eagle::linear_kernel<(int)4>(p_eagle::Params)","(132, 1, 1)","30,000",\
"99,000,000","1,000,000","40.5","0.5","2.25","124"
"2","7","lm_head_topk_kernel(Params)","(132, 1, 1)","269000","n/a","0","n/a","1","n/a","128"
"""


def test_counters_of_ncu(gpu_results: ModuleType) -> None:
    launches = gpu_results.counters(NCU)
    assert launches[2] == {
        "kernel": "lm_head_topk_kernel",
        "gpu__time_duration.sum": 269000.0,
        "dram__bytes_read.sum": "n/a",
        "dram__bytes_write.sum": 0.0,
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "n/a",
        STALL.format("wait"): 1.0,
        STALL.format("long_scoreboard"): "n/a",
        "launch__registers_per_thread": 128.0,
    }
    assert [x["kernel"] for x in launches[:2]] == ["void p_eagle::linear_kernel"] * 2
    assert gpu_results.counters("==ERROR== no permission\n") == []


def test_counters_by_kernel(gpu_results: ModuleType) -> None:
    """Bytes and times are summed, shares are means over time, what was not counted is None."""
    head, linear = gpu_results.by_kernel(gpu_results.counters(NCU))
    assert (linear["kernel"], linear["launches"], linear["us"]) == ("linear_kernel", 2, 40.0)
    assert (linear["dram_read_bytes"], linear["dram_written_bytes"]) == (148.8e6, 1.2e6)
    assert linear["dram_gb_per_s"] == pytest.approx(3750)
    assert linear["tensor_percent"] == pytest.approx((20.5 * 1 + 40.5 * 3) / 4)
    assert linear["l2_hit_percent"] is None
    assert linear["registers"] == 124
    assert list(linear["stalls"].items()) == [("long_scoreboard", 3.25), ("wait", 0.75)]
    assert head["us"] == 269
    assert head["dram_read_bytes"] is head["dram_gb_per_s"] is head["tensor_percent"] is None
    assert head["stalls"] == {"wait": 1.0}
    assert gpu_results.by_kernel([]) == []


def test_a_step_that_cannot_run_is_skipped_and_says_why(tmp_path: Path) -> None:
    """Without vLLM, and where nobody may read counters; that is no failure."""
    tools = tmp_path / "tools"
    tools.mkdir()
    executable(
        tools / "python",
        f"""case "$*" in
          *gpu_results*) exec {sys.executable} "$@" ;;
          *"import vllm"*) echo "Traceback
No module named 'vllm'" >&2; exit 1 ;;
        esac""",
    )
    executable(
        tools / "ncu",
        """while [[ $1 != --log-file ]]; do shift; done
        echo "==ERROR== ERR_NVGPUCTRPERM - no permission" >"$2"
        exit 9""",
    )
    path = f"{tools}:{os.environ['PATH']}"
    out, python = str(tmp_path / "out"), str(tools / "python")
    done = run("--out", out, "--only", "counters,serving", PYTHON=python, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {x["step"]: (x["result"], x["detail"]) for x in result_in(tmp_path / "out")["steps"]}
    assert found == {
        "counters": ("skipped", "this machine lets nobody read counters: ERR_NVGPUCTRPERM"),
        "serving": ("skipped", "vLLM is not importable: No module named 'vllm'"),
    }


def test_results_have_one_file_when_the_gpu_is_known(
    gpu_results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the step that tells its name was stopped at first."""
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    (work / "steps.tsv").write_text("")
    arguments = ["gpu_results", str(work), "--out", str(out), "--command", "x"]
    monkeypatch.setattr(sys, "argv", arguments)
    gpu_results.main()
    assert result_in(out)["environment"].keys() == {"unreadable"}
    (work / "environment.json").write_text('{"gpu": "NVIDIA H200", "date": "2026-11-30"}')
    gpu_results.main()
    assert result_in(out)["environment"]["gpu"] == "NVIDIA H200"


def test_what_is_broken_is_told(gpu_results: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "steps.tsv").write_text("environment\tok\t1\nops\tfailed (1)\t30\n")
    (tmp_path / "environment.json").write_text('{"gpu": "NVIDIA H200", "date": "2026-11-30"}')
    (tmp_path / "pass.json").write_text("{")
    (tmp_path / "ops.log").write_text("FAILED x\n==== 1 failed, 7 passed in 9.9s ====\ntail\n")
    report = gpu_results.collect(tmp_path, "command")
    assert gpu_results.slug(report["environment"]) == "nvidia-h200-2026-11-30"
    assert report["steps"][1]["detail"] == "1 failed, 7 passed in 9.9s"
    assert "unreadable" in report["results"]["pass"]
    assert gpu_results.table(report["steps"]).splitlines()[2] == (
        "ops          failed (1)  30 s  1 failed, 7 passed in 9.9s"
    )
    assert "==== ops: failed (1)\nFAILED x" in gpu_results.log(tmp_path, report["steps"])
