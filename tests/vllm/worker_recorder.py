"""An extension of vLLM's workers that records what each of them drafts; see `run_engine.py`."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from launches import Launches
from p_eagle_cuda import Drafter, ops

_drafts: list[Any] = []
_launches: set[tuple[str, ...]] = set()
_verifications: list[None] = []


class Recorder:
    """What a worker can be asked for from the engine's process."""

    def recorded(self) -> dict[str, Any]:
        """Drafts of each step; what is launched beside our drafter's pass; our verifications."""
        return {
            "drafts": _drafts,
            "launches": sorted(_launches),
            "num_verifications": len(_verifications),
        }


def _record_drafts(owner: Any) -> None:
    """Of whatever drafts: vLLM's drafter or ours."""
    propose, launch_padded = owner.propose, Drafter._launch_padded

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        padded = []
        launches = Launches()

        def uncounted(drafter: Any, shape: Any) -> Any:
            padded.append(shape)
            return launches.without(launch_padded)(drafter, shape)

        Drafter._launch_padded = uncounted
        with launches if getattr(self, "_served", None) else nullcontext():
            result = propose(self, *args, **kwargs)
        if padded:
            _launches.add(tuple(launches.names))
        if not kwargs.get("dummy_run"):
            _drafts.append(result.tolist())
        return result

    owner.propose = recording


def _record_verifications() -> None:
    verify = ops.verify

    def recording(*args: Any, **kwargs: Any) -> Any:
        _verifications.append(None)
        return verify(*args, **kwargs)

    ops.verify = recording


# vLLM imports this after its plugins, and before a worker makes its drafter.
from vllm.v1.spec_decode import eagle  # noqa: E402

_record_drafts(eagle.EagleProposer)
if os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1":
    from p_eagle_cuda.vllm_plugin.speculator import PEagleSpeculator

    _record_drafts(PEagleSpeculator)
_record_verifications()
