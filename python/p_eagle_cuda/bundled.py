"""Where the small trained pair that comes with the package lies."""

from __future__ import annotations

from pathlib import Path

import p_eagle_cuda


def bundled_target() -> Path:
    """Folder of a Llama-type target trained on the Python standard library's source text."""
    return _data("target")


def bundled_drafter() -> Path:
    """Folder of the P-EAGLE drafter trained on that target's own continuations."""
    return _data("drafter")


def _data(name: str) -> Path:
    # An editable installation has two folders: the sources, and what was compiled.
    folders = [Path(folder) / "data" / name for folder in p_eagle_cuda.__path__]
    return next((folder for folder in folders if folder.is_dir()), folders[0])
