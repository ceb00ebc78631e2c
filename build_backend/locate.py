"""Finds nvcc, the CUTLASS headers and the torch headers, on the machine or in Python packages.

Standard library only: the build backend imports it before anything is installed, and CMake runs it
(``python locate.py nvcc|cutlass|torch``), which prints one path, or nothing where there is none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

MIN_CUDA = (12, 8)  # the first that knows sm_100a and sm_120a
MIN_TORCH = (2, 11)  # the stable ABI that CMakeLists.txt targets


def nvcc() -> Path | None:
    """The CUDA compiler: ``bin/nvcc`` of a toolkit of at least `MIN_CUDA`.

    Looks at CUDACXX, CUDA_HOME and CUDA_PATH, then at PATH and /usr/local/cuda unless
    P_EAGLE_NO_SYSTEM_CUDA=1, then at the toolkit's Python packages.
    """
    candidates = [Path(os.environ["CUDACXX"])] if os.environ.get("CUDACXX") else []
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates += [Path(home, "bin", "nvcc") for home in homes]
    if os.environ.get("P_EAGLE_NO_SYSTEM_CUDA") != "1":
        on_path = shutil.which("nvcc")
        candidates += [Path(on_path)] if on_path else []
        candidates += [Path("/usr/local/cuda/bin/nvcc")]
    candidates += [folder / "nvidia/cu13/bin/nvcc" for folder in _site_folders()]
    return next((found for found in map(_usable_nvcc, candidates) if found), None)


def cutlass() -> Path | None:
    """The CUTLASS source folder, the one that has ``include``: CUTLASS_DIR, or the package's."""
    candidates = [Path(os.environ["CUTLASS_DIR"])] if os.environ.get("CUTLASS_DIR") else []
    candidates += [folder / "cutlass_library/source" for folder in _site_folders()]
    return next((path for path in candidates if (path / "include/cute/tensor.hpp").is_file()), None)


def torch() -> Path | None:
    """The include folder of an installed torch of at least `MIN_TORCH`."""
    candidates = [folder / "torch/include" for folder in _site_folders()]
    return next((path for path in candidates if _torch_version(path) >= MIN_TORCH), None)


FINDERS = {"nvcc": nvcc, "cutlass": cutlass, "torch": torch}


def _site_folders() -> list[Path]:
    folders = [Path(entry) for entry in sys.path if entry]
    # Under pip's build isolation this interpreter is still the target environment's; only its
    # site-packages is off sys.path, and sysconfig says where that is.
    folders += [Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")]
    if os.environ.get("VIRTUAL_ENV"):
        folders += Path(os.environ["VIRTUAL_ENV"]).glob("lib/python3.*/site-packages")
    return list(dict.fromkeys(folders))


def _usable_nvcc(nvcc: Path) -> Path | None:
    """The toolkit's own compiler behind `nvcc`, which may be a link or a wrapper script."""
    if not nvcc.is_file():
        return None
    release = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
    if release is None or (int(release[1]), int(release[2])) < MIN_CUDA:
        return None
    dry_run = _output(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull)
    top = re.search(r"^#\$ TOP=(.*)$", dry_run, re.MULTILINE)
    own = Path(top[1].strip(), "bin", "nvcc") if top else nvcc
    return (own if own.is_file() else nvcc).resolve()


def _torch_version(include: Path) -> tuple[int, int]:
    header = include / "torch/headeronly/version.h"
    text = header.read_text() if header.is_file() else ""
    found = dict(re.findall(r"^#define TORCH_VERSION_(MAJOR|MINOR) (\d+)$", text, re.MULTILINE))
    return int(found.get("MAJOR", 0)), int(found.get("MINOR", 0))


def _output(command: Path, *arguments: str) -> str:
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


if __name__ == "__main__":
    print(FINDERS[sys.argv[1]]() or "", end="")
