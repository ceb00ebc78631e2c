"""Fused CUDA kernels for the P-EAGLE drafter, with a CPU reference that runs the same code.

The public names load on first use, so that importing the package costs nothing and touches no
device.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

_HOME = {
    "Drafter": "drafter",
    "DrafterConfig": "config",
    "DraftLengthPolicy": "draft_length",
    "DraftTree": "draft_tree",
    "PEagleProposer": "vllm_plugin.proposer",  # needs vLLM
    "SpeculativeEngine": "engine",
}

__all__ = [
    "DraftLengthPolicy",
    "DraftTree",
    "Drafter",
    "DrafterConfig",
    "PEagleProposer",
    "SpeculativeEngine",
    "__version__",
    "ops",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the attribute is
    if name == "__version__":
        return version("p_eagle_cuda")
    if name == "ops":
        return import_module("p_eagle_cuda.ops")
    if name in _HOME:
        return getattr(import_module(f"p_eagle_cuda.{_HOME[name]}"), name)
    raise AttributeError(f"module 'p_eagle_cuda' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
