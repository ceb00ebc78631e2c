"""A virtual environment with the real vLLM, made once per run, and a way to serve with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Served:
    """What `run_engine.py` tells, and lines of the log that are ours."""

    outputs: list[list[list[int] | None]]
    drafts: list[list[list[int]]]
    counters: dict[str, Any]
    log: list[str]


@pytest.fixture(scope="session")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with vLLM; P_EAGLE_VLLM_PYTHON names one that is there."""
    named = os.environ.get("P_EAGLE_VLLM_PYTHON")
    if named:
        return named
    if os.environ.get("P_EAGLE_TEST_VLLM") != "1":
        pytest.skip("set P_EAGLE_TEST_VLLM=1 to install vLLM and test with it")
    venv = tmp_path_factory.mktemp("vllm") / "venv"
    subprocess.run([HERE / "install.sh", venv, sys.executable], check=True)
    return str(venv / "bin" / "python")


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def serve(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Serve batches in a process of its own."""

    def run(
        batches: list[list[dict[str, Any]]],
        *,
        speculative: dict[str, Any] | None,
        v2: bool = False,
        plugin: bool = True,
        **engine: Any,
    ) -> Served:
        folder = tmp_path_factory.mktemp("serve")
        if speculative is not None:
            engine["speculative_config"] = speculative
        (folder / "case.json").write_text(json.dumps({"engine": engine, "batches": batches}))
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "P_EAGLE_CUDA_DISABLE": "0" if plugin else "1",
            "TRITON_INTERPRET": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_DO_NOT_TRACK": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_USE_V2_MODEL_RUNNER": "1" if v2 else "0",
        }
        environment.pop("PYTHONPATH", None)
        arguments = [folder / "case.json", folder / "result.json", *(["--v2"] if v2 else [])]
        done = subprocess.run(
            [vllm_python, HERE / "run_engine.py", *arguments],
            env=environment, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        log = re.findall(r"((?:INFO|WARNING).*\bp_eagle_cuda\b.*)", done.stdout + done.stderr)
        return Served(**json.loads((folder / "result.json").read_text()), log=log)

    return run
