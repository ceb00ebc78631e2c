"""The versions of vLLM that this package knows."""

from __future__ import annotations

import re
from typing import Any

Release = tuple[int, int]

# What the plugin was tried with, and `tests/vllm/results` tells how far. V1 runner: older
# ones than 0.27 have another layout of paged caches.
V1_VERSIONS: tuple[Release, Release] = (0, 28), (0, 33)
# V2 runner, whose insides change with every release.
V2_VERSIONS: tuple[Release, Release] = (0, 32), (0, 33)
# What reaches into vLLM's sampling, scheduling and planning of caches, on either runner: likewise.
OPTION_VERSIONS: tuple[Release, Release] = (0, 33), (0, 33)


def unsupported_version(version: str, oldest: Release, newest: Release) -> str | None:
    """Why the plugin does nothing in this version of vLLM; None if it works."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is not None and oldest <= (int(found[1]), int(found[2])) <= newest:
        return None
    return f"expected vLLM {_shown(oldest)} to {_shown(newest)}, found {version}"


def takes_multimodal_inputs(model_config: Any) -> bool:  # noqa: ANN401
    """Whether a model does: vLLM's configuration tells from 0.31 on, a registry before that."""
    if hasattr(model_config, "supports_multimodal_inputs"):
        return bool(model_config.supports_multimodal_inputs)
    from vllm.multimodal import MULTIMODAL_REGISTRY

    return bool(MULTIMODAL_REGISTRY.supports_multimodal_inputs(model_config))


def _shown(release: Release) -> str:
    return ".".join(map(str, release))
