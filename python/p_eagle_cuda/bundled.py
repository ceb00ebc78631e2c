"""Where the small trained pair that comes with the package lies."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def bundled_target() -> Path:
    """Folder of a Llama-type target trained on the Python standard library's source text."""
    return Path(str(files("p_eagle_cuda") / "data" / "target"))


def bundled_drafter() -> Path:
    """Folder of the P-EAGLE drafter trained on that target's own continuations."""
    return Path(str(files("p_eagle_cuda") / "data" / "drafter"))
