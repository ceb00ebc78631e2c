"""How the build finds its parts, and how CI finds its commands; no compiler is run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
VARIABLES = ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CUTLASS_DIR", "VIRTUAL_ENV")


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def locate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The locate script on a machine without a CUDA toolkit and without packages of one."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("P_EAGLE_NO_SYSTEM_CUDA", "1")
    module = _load("build_backend/locate.py")
    monkeypatch.setattr(module, "_site_folders", list)
    return module


def _fake_nvcc(folder: Path, release: str, top: Path | None = None) -> Path:
    """A program that answers as nvcc does; `top` is where it says that its toolkit lies."""
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    lines = [f"echo 'Cuda compilation tools, release {release}, V{release}.1'"]
    lines += [f"echo '#$ TOP={top}' >&2"] if top else []
    nvcc.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    nvcc.chmod(0o755)
    return nvcc


def test_finds_no_part_where_there_is_none(locate: ModuleType) -> None:
    assert {name: find() for name, find in locate.FINDERS.items()} == {
        "nvcc": None,
        "cutlass": None,
        "torch": None,
    }


def test_finds_nvcc_by_environment_and_path(
    locate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = _fake_nvcc(tmp_path / "bin", "13.0")
    monkeypatch.setenv("PATH", str(nvcc.parent), prepend=os.pathsep)
    assert locate.nvcc() is None, "P_EAGLE_NO_SYSTEM_CUDA=1 must hide it"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert locate.nvcc() == nvcc
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("P_EAGLE_NO_SYSTEM_CUDA")
    assert locate.nvcc() == nvcc


def test_takes_the_compiler_behind_a_wrapper(
    locate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _fake_nvcc(tmp_path / "toolkit" / "bin", "13.0")
    wrapper = _fake_nvcc(tmp_path / "bin", "13.0", top=tmp_path / "toolkit" / "bin" / "..")
    monkeypatch.setenv("CUDACXX", str(wrapper))
    assert locate.nvcc() == real


def test_refuses_an_old_compiler(
    locate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (_fake_nvcc(tmp_path / release / "bin", release) for release in ("12.6", "12.8"))
    monkeypatch.setenv("CUDACXX", str(old))
    assert locate.nvcc() is None
    monkeypatch.setenv("CUDA_HOME", str(new.parents[1]))
    assert locate.nvcc() == new


def test_refuses_an_old_torch(
    locate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "_site_folders", lambda: [tmp_path])
    header = tmp_path / "torch/include/torch/headeronly/version.h"
    header.parent.mkdir(parents=True)
    for minor, found in ((10, None), (11, tmp_path / "torch/include")):
        header.write_text(f"#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR {minor}\n")
        assert locate.torch() == found


def test_finds_torch_though_its_folder_is_hidden() -> None:
    """As under pip's build isolation, which takes site-packages off the path."""
    code = (
        "import runpy, sys; sys.path = [x for x in sys.path if 'site-packages' not in x];"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, ROOT / "build_backend/locate.py", "torch"]
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert Path(done.stdout) == Path(torch.__file__).parent / "include"


def test_reads_the_commands_of_the_readme() -> None:
    command = _load(".ci/readme_command.py").command
    readme = "<!-- command: a -->\n```sh\none \\\n  two\n```\n<!-- command: b -->\n```\nb\n```\n"
    assert command(readme, "a") == "one \\\n  two"
    assert command(readme, "b") == "b"
    for name, text in (("c", readme), ("a", readme + readme)):
        with pytest.raises(ValueError, match=f"expected one command '{name}', found"):
            command(text, name)


@pytest.mark.parametrize("name", ["demo", "test"])
def test_the_readme_states_its_commands(name: str) -> None:
    script = _load(".ci/readme_command.py")
    command = script.command(script.README.read_text(encoding="utf-8"), name)
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install torch==")


def test_the_version_stands_in_one_place() -> None:
    stated = [
        path
        for path in (*ROOT.glob("python/**/*.py"), *ROOT.glob("csrc/**/*"), ROOT / "CMakeLists.txt")
        if path.is_file() and re.search(r"version\w*\s*=\s*\"\d+\.\d+\.\d+\"", path.read_text())
    ]
    assert not stated
