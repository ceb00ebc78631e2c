"""The toy pair on disk, and its target: a pytest plugin of the modules that need it."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints import write_drafter, write_target
from p_eagle_cuda.target import Target
from toy_engine import TAPS


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("pair")
    write_target(path / "target")
    write_drafter(path / "drafter")
    return path / "target", path / "drafter"


@pytest.fixture(scope="session")
def target(folders: tuple[Path, Path]) -> Target:
    return Target.from_pretrained(folders[0], tap_layer_ids=TAPS)
