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
from typing import Any

from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.vllm_plugin.draft_length import give_schedule
from p_eagle_cuda.vllm_plugin.options import PluginOptions
from p_eagle_cuda.vllm_plugin.support import is_p_eagle, refusal
from p_eagle_cuda.vllm_plugin.versions import V1_VERSIONS, V2_VERSIONS, unsupported_version

# What vLLM's V2 runner calls the feature that it lacks.
PARALLEL_DRAFTING = "parallel drafting for EAGLE speculative decoding"

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

    for runner, (oldest, newest), take_over in (
        ("V1", V1_VERSIONS, _replace_proposer),
        ("V2", V2_VERSIONS, _add_speculator),
    ):
        reason = unsupported_version(vllm.__version__, oldest, newest)
        if reason is None:
            try:
                take_over()
            except (ImportError, AttributeError) as error:
                reason = f"vLLM {vllm.__version__} has no such seam ({error})"
        if reason is not None:
            logger.warning("p_eagle_cuda steps aside on the %s model runner: %s", runner, reason)


def _replace_proposer() -> None:
    """The V1 runner looks the class up as a global of its module when it builds a drafter."""
    from vllm.v1.spec_decode import eagle

    from p_eagle_cuda.vllm_plugin.proposer import PEagleProposer

    eagle.EagleProposer = PEagleProposer
    runner = sys.modules.get("vllm.v1.worker.gpu_model_runner")
    if runner is not None:
        runner.EagleProposer = PEagleProposer  # type: ignore[attr-defined]
    _offer_schedule()


def _offer_schedule() -> None:
    """The schedule of drafts has to be there before vLLM checks its configuration as a whole."""
    from vllm.config import VllmConfig
    from vllm.platforms import current_platform

    import vllm

    check = VllmConfig.__post_init__

    def post_init(config: Any) -> None:  # noqa: ANN401
        give_schedule(config, current_platform.device_type, vllm.__version__)
        check(config)

    VllmConfig.__post_init__ = post_init


def _add_speculator() -> None:
    """The V2 runner calls a function to make a speculator, if the configuration lets it serve."""
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu import spec_decode

    find_unsupported, make_speculator = (
        VllmConfig._get_v2_model_runner_unsupported_features,
        spec_decode.init_speculator,
    )

    def unsupported_features(config: Any) -> list[str]:  # noqa: ANN401
        found: list[str] = find_unsupported(config)
        return [x for x in found if x != PARALLEL_DRAFTING or not _serves(config)]

    def init_speculator(config: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        from vllm.v1.worker.gpu import model_runner
        from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

        from p_eagle_cuda.vllm_plugin.speculator import PEagleSpeculator
        from p_eagle_cuda.vllm_plugin.verification import verifying_v2

        # The runner makes its sampler later, of a class that it looks up as a global.
        model_runner.RejectionSampler = RejectionSampler
        if not is_p_eagle(config):
            return make_speculator(config, *args, **kwargs)
        device = kwargs["device"] if "device" in kwargs else args[0]
        model_runner.RejectionSampler = verifying_v2(config, device.type, RejectionSampler)
        return PEagleSpeculator(config, device)

    VllmConfig._get_v2_model_runner_unsupported_features = unsupported_features
    spec_decode.init_speculator = init_speculator
    runner = sys.modules.get("vllm.v1.worker.gpu.model_runner")
    if runner is not None:
        runner.init_speculator = init_speculator  # type: ignore[attr-defined]


def _serves(vllm_config: Any) -> bool:  # noqa: ANN401
    """Whether we can take over, as far as the configuration tells."""
    from vllm.platforms import current_platform

    import vllm

    if not is_p_eagle(vllm_config):
        return False
    try:
        options = PluginOptions.read(vllm_config.additional_config)
    except PEagleError:
        return False  # the V1 runner will say why
    device_type, version = current_platform.device_type, vllm.__version__
    return options.enabled and refusal(vllm_config, device_type, "V2", version) is None
