"""A virtual environment with the real vLLM, made once per run, and a way to serve with it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from p_eagle_cuda.bundled import bundled_drafter, bundled_target

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Served:
    """What `run_engine.py` tells, and lines of the log that are ours."""

    outputs: list[list[list[int] | None]]
    aborted: list[list[int]]
    logprobs: list[list[list[float] | None]]
    of_ranks: list[dict[str, Any]]
    counters: dict[str, Any]
    num_preemptions: int
    log: list[str]

    @property
    def drafts(self) -> list[list[list[int]]]:
        """Of each step, on the first rank."""
        drafts: list[list[list[int]]] = self.of_ranks[0]["drafts"]
        return drafts

    @property
    def launches(self) -> list[list[str]]:
        """Kinds of steps, by what is launched beside the pass."""
        launches: list[list[str]] = self.of_ranks[0]["launches"]
        return launches

    @property
    def num_verifications(self) -> int:
        """Calls of our verification."""
        return int(self.of_ranks[0]["num_verifications"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Results in JUnit's format tell what was tested, for `support_matrix.py`."""
    for item in items:
        marker = item.get_closest_marker("feature")
        if marker is not None and isinstance(item, pytest.Function):
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            item.user_properties.append(("runner", parameters.get("runner", "V1")))
            item.user_properties += [("feature", feature) for feature in marker.args]


def _install(folder: Path) -> Path:
    """Once, also where tests run in several processes, whose folders lie in that of the run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    venv, done = folder / "vllm", folder / "vllm.installed"
    with (folder / "vllm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            subprocess.run([HERE / "install.sh", venv, sys.executable], check=True)
            done.touch()
    return venv


@pytest.fixture(scope="session")
def vllm_python(
    tmp_path_factory: pytest.TempPathFactory,
    record_testsuite_property: Callable[[str, object], None],
) -> str:
    """The Python of an environment with vLLM; P_EAGLE_VLLM_PYTHON names one that is there."""
    python = os.environ.get("P_EAGLE_VLLM_PYTHON")
    if not python:
        if os.environ.get("P_EAGLE_TEST_VLLM") != "1":
            pytest.skip("set P_EAGLE_TEST_VLLM=1 to install vLLM and test with it")
        python = str(_install(tmp_path_factory.getbasetemp()) / "bin" / "python")
    version = "from importlib.metadata import version; print(version('vllm'))"
    found = subprocess.run([python, "-c", version], capture_output=True, text=True, check=True)
    record_testsuite_property("vllm", found.stdout.strip())
    return python


def free_port() -> int:
    """One that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def environment(*, v2: bool, plugin: bool = True) -> dict[str, str]:
    """Variables of a process that runs vLLM."""
    variables = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "P_EAGLE_CUDA_DISABLE": "0" if plugin else "1",
        "TRITON_INTERPRET": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_USE_V2_MODEL_RUNNER": "1" if v2 else "0",
    }
    variables.pop("PYTHONPATH", None)
    return variables


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def serve(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Serve batches in a process of its own, or one for each rank with vLLM's external launcher."""

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
        variables = {
            **environment(v2=v2, plugin=plugin), "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        }  # fmt: skip
        is_launched = engine.get("distributed_executor_backend") == "external_launcher"
        ranks = range(engine["tensor_parallel_size"] if is_launched else 1)
        processes = [
            subprocess.Popen(
                [
                    vllm_python, HERE / "run_engine.py", folder / "case.json",
                    folder / f"{rank}.json",
                ],
                env={
                    **variables, "RANK": str(rank), "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(len(ranks)),
                },
                stdout=(folder / f"{rank}.log").open("wb"), stderr=subprocess.STDOUT,
            )
            for rank in ranks
        ]  # fmt: skip
        deadline = time.monotonic() + 600
        try:
            while None in [process.poll() for process in processes]:
                failed = any(process.returncode for process in processes)
                if failed or time.monotonic() > deadline:
                    break  # the others would wait for that one
                time.sleep(0.1)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        logs = [(folder / f"{rank}.log").read_text(errors="replace") for rank in ranks]
        assert not any(x.returncode for x in processes), "".join(log[-4000:] for log in logs)
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in ranks]
        of_ranks = [x for result in found for x in result.pop("of_ranks")]
        assert all(result == found[0] for result in found), "the ranks' engines differ"
        log = re.findall(r"((?:INFO|WARNING).*\bp_eagle_cuda\b.*)", "".join(logs))
        return Served(**found[0], of_ranks=of_ranks, log=log)

    return run


@dataclass(frozen=True)
class HttpServer:
    """A running `vllm serve`."""

    url: str
    log_file: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log[-4000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        raise AssertionError(self.log[-4000:])

    def stop(self) -> None:
        """With all of its processes."""
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def vllm_command(vllm_python: str) -> list[str]:
    """What a shell calls `vllm`, wherever its script is."""
    return [vllm_python, "-m", "vllm.entrypoints.cli.main"]


@pytest.fixture(scope="session")
def http_servers(
    vllm_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, HttpServer]]:
    """`vllm serve` with the bundled pair on both model runners, started side by side."""
    folder = tmp_path_factory.mktemp("http")
    # The bundled target has no chat template; what is said is the text to continue.
    template = folder / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    speculative = {
        "method": "eagle3", "model": str(bundled_drafter()), "num_speculative_tokens": 5,
        "parallel_drafting": True,
    }  # fmt: skip
    servers = {}
    try:
        for runner in ("V1", "V2"):
            port = free_port()
            log_file = folder / f"{runner}.log"
            with log_file.open("wb") as log:
                process = subprocess.Popen(
                    [
                        *vllm_command(vllm_python), "serve", bundled_target(), "--port", str(port),
                        "--host", "127.0.0.1", "--speculative-config", json.dumps(speculative),
                        "--async-scheduling", "--no-enable-prefix-caching", "--max-num-seqs", "8",
                        "--max-model-len", "256", "--max-num-batched-tokens", "192", "--dtype",
                        "float32", "--enforce-eager", "--chat-template", template,
                        "--served-model-name", "bundled",
                    ],
                    env=environment(v2=runner == "V2"), stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            servers[runner] = HttpServer(f"http://127.0.0.1:{port}", log_file, process)
        for server in servers.values():
            server.wait()
        yield servers
    finally:
        for server in servers.values():
            server.stop()
