"""PEP 517 build backend: scikit-build-core, plus the build requirements this machine lacks."""

from __future__ import annotations

from scikit_build_core import build as _scikit_build
from scikit_build_core.build import *  # noqa: F403  (the hooks that stay as they are)

import locate

# Per part that `locate` may fail to find, the requirement that brings it. One pin for the CUDA
# compiler: its extras are exact, whereas pinning nvidia-cuda-nvcc alone lets pip combine it with
# newer headers, which it refuses to compile.
REQUIREMENTS = {
    "nvcc": "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.2",
    "cutlass": "nvidia-cutlass==4.2.0.0",
    "torch": "torch==2.13.0",
}

Settings = dict[str, "list[str] | str"]


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    """PEP 517 hook."""
    return _scikit_build.get_requires_for_build_wheel(config_settings) + _missing()


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    """PEP 660 hook."""
    return _scikit_build.get_requires_for_build_editable(config_settings) + _missing()


def _missing() -> list[str]:
    return [name for part, name in REQUIREMENTS.items() if locate.FINDERS[part]() is None]
