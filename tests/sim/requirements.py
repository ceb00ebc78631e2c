"""What the emulator needs of the machine."""

from __future__ import annotations

import os

import pytest

from hostsim import build


def require_cuda_compiler() -> None:
    """Skip a test where nvcc or CUTLASS are missing, or fail if P_EAGLE_REQUIRE_SIM=1."""
    try:
        build.tools()
    except build.MissingToolsError as missing:
        if os.environ.get("P_EAGLE_REQUIRE_SIM") == "1":
            raise
        pytest.skip(str(missing))
