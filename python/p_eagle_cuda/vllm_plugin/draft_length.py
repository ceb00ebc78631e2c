"""Fewer drafts in larger batches, by the schedule that vLLM's scheduler keeps.

How many tokens are drafted is the scheduler's to say: it makes room for them before they are there,
and with asynchronous scheduling before the step that drafts them has run. A drafter cannot return
fewer. But the scheduler looks the number up by the size of the batch, on every step, if it is given
a schedule; the drafter gets the number with the step, on all ranks the same.
"""

from __future__ import annotations

import logging
from itertools import groupby
from typing import Any

from p_eagle_cuda.draft_length import DraftLengthPolicy
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.vllm_plugin.options import PluginOptions
from p_eagle_cuda.vllm_plugin.support import is_p_eagle, refusal
from p_eagle_cuda.vllm_plugin.versions import OPTION_VERSIONS, unsupported_version

logger = logging.getLogger("vllm.p_eagle_cuda")

Schedule = list[tuple[int, int, int]]


def make_schedule(max_k: int, max_requests: int, row_cost: float) -> Schedule:
    """First and last batch size and the number of drafts, as vLLM takes it.

    Args:
        max_k: Most drafts.
        max_requests: Largest batch.
        row_cost: As of `DraftLengthPolicy`, whose other figures are its defaults, before it has
            seen a verification.
    """
    policy = DraftLengthPolicy(max_k, row_cost=row_cost)
    schedule = []
    for k, sizes in groupby(range(1, max_requests + 1), policy.choose):
        first, *more = sizes
        schedule.append((first, more[-1] if more else first, k))
    return schedule


def give_schedule(vllm_config: Any, device_type: str, version: str) -> None:  # noqa: ANN401
    """Put a schedule into vLLM's configuration, if that is asked for; the log tells.

    Not where our drafter steps aside. A schedule that is there already stays.

    Args:
        vllm_config: vLLM's configuration, before it has been looked at as a whole.
        device_type: Of the workers, "cuda" or "cpu".
        version: vLLM's.
    """
    if vllm_config.speculative_config is None or not is_p_eagle(vllm_config):
        return
    try:
        options = PluginOptions.read(vllm_config.additional_config)
    except PEagleError:
        return  # the drafter will say why
    if options.draft_length != "auto" or not options.enabled:
        return
    speculative = vllm_config.speculative_config
    schedule = make_schedule(
        speculative.num_speculative_tokens, vllm_config.scheduler_config.max_num_seqs,
        options.row_cost,
    )  # fmt: skip
    given = getattr(speculative, "num_speculative_tokens_per_batch_size", None)
    if given == schedule:
        return  # vLLM checks some configurations twice
    reason = unsupported_version(version, *OPTION_VERSIONS) or refusal(
        vllm_config, device_type, "V1", version
    )
    if reason is None and given is not None:
        reason = "num_speculative_tokens_per_batch_size is given"
    if reason is not None:
        logger.warning("p_eagle_cuda: draft_length is left as it is: %s", reason)
        return
    speculative.num_speculative_tokens_per_batch_size = schedule
    logger.info(
        "p_eagle_cuda: drafts by batch size: %s",
        ", ".join(f"{k} for {first} to {last}" for first, last, k in schedule),
    )
