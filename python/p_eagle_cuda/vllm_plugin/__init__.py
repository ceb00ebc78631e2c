"""P-EAGLE inside vLLM: what its plugin loader calls, in every process, before a model is built.

Installing the package next to vLLM is enough: a drafter that is served with
``{"method": "eagle3", "parallel_drafting": true}`` then runs on this package's kernels. Where it
cannot, vLLM's own drafter serves, and one warning says why. ``P_EAGLE_CUDA_DISABLE=1`` leaves vLLM
alone.
"""

from __future__ import annotations

import logging
import os
import sys

from p_eagle_cuda.vllm_plugin.versions import unsupported_version

_state = {"registered": False}


def register() -> None:
    """Take the place of vLLM's EAGLE proposer. Idempotent; touches no CUDA."""
    if _state["registered"]:
        return
    _state["registered"] = True
    logger = logging.getLogger("vllm.p_eagle_cuda")
    if os.environ.get("P_EAGLE_CUDA_DISABLE") == "1":
        logger.info("p_eagle_cuda: disabled by P_EAGLE_CUDA_DISABLE=1")
        return
    import vllm

    reason = unsupported_version(vllm.__version__)
    if reason is None:
        try:
            _replace_proposer()
        except (ImportError, AttributeError) as error:
            reason = f"vLLM {vllm.__version__} has no such seam ({error})"
    if reason is not None:
        logger.warning("p_eagle_cuda steps aside: %s", reason)


def _replace_proposer() -> None:
    """The V1 runner looks the class up as a global of its module when it builds a drafter."""
    from vllm.v1.spec_decode import eagle

    from p_eagle_cuda.vllm_plugin.proposer import PEagleProposer

    eagle.EagleProposer = PEagleProposer
    runner = sys.modules.get("vllm.v1.worker.gpu_model_runner")
    if runner is not None:
        runner.EagleProposer = PEagleProposer  # type: ignore[attr-defined]
