"""The versions of vLLM that this package knows."""

from __future__ import annotations

import re

# The oldest with the layout of paged caches that the kernels read, and the newest that was tried.
OLDEST, NEWEST = (0, 27), (0, 33)


def unsupported_version(version: str) -> str | None:
    """Why the plugin does nothing in this version of vLLM; None if it works."""
    found = re.match(r"(\d+)\.(\d+)", version)
    expected = f"expected vLLM {_shown(OLDEST)} to {_shown(NEWEST)}, found {version}"
    if found is None:
        return expected
    release = int(found[1]), int(found[2])
    return None if OLDEST <= release <= NEWEST else expected


def _shown(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
