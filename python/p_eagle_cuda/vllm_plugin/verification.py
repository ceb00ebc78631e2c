"""Our verification in the place of vLLM's rejection sampling, for chains of greedy drafts.

vLLM's samplers stay: their penalties, filters and processors make the logits, their code finds the
logprobs. Between the two each runner calls a function `rejection_sample`, and that is replaced.

A draft that was not drawn is accepted by vLLM with its own probability p(x), or else a token comes
from p without x. Here the target draws a token of p, and the draft is accepted if it is that one:
the same law of what is accepted and of what is emitted, and at temperature 0 the same tokens.
Drafts that were drawn would be accepted less often this way, so vLLM's own code verifies them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from p_eagle_cuda import ops
from p_eagle_cuda.ops import Sampling
from p_eagle_cuda.tree import MAX_NODES
from p_eagle_cuda.vllm_plugin.options import PluginOptions
from p_eagle_cuda.vllm_plugin.versions import OPTION_VERSIONS, unsupported_version

logger = logging.getLogger("vllm.p_eagle_cuda")

REPLACED = "rejection_sample"  # what both runners' samplers call


def verification_refusal(vllm_config: Any, device_type: str, version: str) -> str | None:  # noqa: ANN401
    """Why vLLM's own code has to verify; None if ours can.

    Args:
        vllm_config: vLLM's configuration, with a P-EAGLE drafter.
        device_type: Of the workers, "cuda" or "cpu".
        version: vLLM's.
    """
    speculative = vllm_config.speculative_config
    method = getattr(speculative, "rejection_sample_method", "standard")
    if method != "standard":
        return f'rejection_sample_method is "{method}", ours does what "standard" does'
    if getattr(vllm_config, "watermark_config", None) is not None:
        return "text is watermarked"
    if getattr(speculative, "draft_sample_method", None) == "probabilistic":
        return 'draft_sample_method is "probabilistic", ours is for drafts that are not drawn'
    k = speculative.num_speculative_tokens
    if k >= MAX_NODES:
        return f"num_speculative_tokens is {k}, expected at most {MAX_NODES - 1}"
    if not ops.implementations()["verify"].get(device_type, False):
        return f"this build has no kernel for verify on {device_type}"
    return unsupported_version(version, *OPTION_VERSIONS)


def take_over_v1(vllm_config: Any, device_type: str, sampler: Any) -> None:  # noqa: ANN401
    """Let a rejection sampler of the V1 runner verify with our kernels, if that is asked for."""
    theirs = type(sampler).forward
    verify = _replaced(vllm_config, device_type, theirs, rejection_sample_v1)
    if verify is not theirs:
        sampler.forward = MethodType(verify, sampler)


def verifying_v2(vllm_config: Any, device_type: str, theirs: Any) -> Any:  # noqa: ANN401
    """The class of the V2 runner's rejection sampler -> one that verifies as is asked for."""
    verify = _replaced(vllm_config, device_type, theirs._verify, rejection_sample_v2)
    if verify is theirs._verify:
        return theirs
    return type(theirs.__name__, (theirs,), {"_verify": verify})


def _replaced(
    vllm_config: Any,  # noqa: ANN401
    device_type: str,
    theirs: Any,  # noqa: ANN401
    replacement: Callable[..., Any],
) -> Any:  # noqa: ANN401
    """A function of vLLM, calling `replacement` if that is asked for and possible; logs which."""
    import vllm

    if PluginOptions.read(vllm_config.additional_config).verification != "p_eagle_cuda":
        return theirs
    reason = verification_refusal(vllm_config, device_type, vllm.__version__)
    if reason is None and REPLACED not in theirs.__code__.co_names:
        reason = f"vLLM {vllm.__version__} has no such seam"
    if reason is not None:
        logger.warning("p_eagle_cuda: vLLM's own code verifies: %s", reason)
        return theirs
    logger.info(
        "p_eagle_cuda verifies: greedy and sampled requests, chains of up to %d drafts; penalties, "
        "filters and logprobs are vLLM's",
        vllm_config.speculative_config.num_speculative_tokens,
    )
    return with_replaced(theirs, partial(replacement, workspace=Workspace()))


class Workspace:
    """Memory of `ops.verify`, which stays from step to step."""

    def __init__(self) -> None:
        """None so far."""
        self._num_rows, self._memory = 0, torch.empty(0, dtype=torch.uint8)

    def of(self, logits: Tensor) -> Tensor:
        """Enough for ``[R, V]`` logits; made anew when R passes a power of two for the first time.

        V and the device are always the same.
        """
        num_rows, vocab_size = logits.shape
        if num_rows > self._num_rows:
            self._num_rows = 1 << (num_rows - 1).bit_length()
            self._memory = ops.verify_workspace(logits.device, self._num_rows, vocab_size)
        return self._memory


def with_replaced(function: Any, replacement: Callable[..., Any]) -> FunctionType:  # noqa: ANN401
    """The same function, but what it calls `rejection_sample` is `replacement`."""
    return FunctionType(
        function.__code__, {**function.__globals__, REPLACED: replacement}, function.__name__,
        function.__defaults__, function.__closure__,
    )  # fmt: skip


def rejection_sample_v1(
    draft_token_ids: Tensor,
    num_draft_tokens: Sequence[int],
    max_spec_len: int,
    cu_num_draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_logits: Tensor,
    bonus_token_ids: Tensor,
    sampling_metadata: Any,  # noqa: ANN401
    *,
    workspace: Workspace,
    **_: Any,  # noqa: ANN401 - of other methods, which are refused
) -> Tensor:
    """What vLLM's V1 runner calls to verify.

    The runner has chosen the token after all drafts already. So the rows are one fewer than
    usual, and the last draft of a request is compared with what its last row chooses.

    Args:
        draft_token_ids: ``[T]`` int32, requests adjacent; -1: to be rejected.
        num_draft_tokens: Of each request.
        max_spec_len: N, the largest of these.
        cu_num_draft_tokens: ``[B]`` int32, their cumulative sums.
        draft_probs: None, for drafts that were not drawn.
        target_logits: ``[T, V]`` float32, filtered and penalised, and over the temperature where
            that is not 0.
        bonus_token_ids: ``[B, 1]``, the target's token after all drafts.
        sampling_metadata: vLLM's: `temperature`, `all_greedy` and `generators` are read.
        workspace: Of all calls.

    Returns:
        ``[B, N + 1]`` int32: accepted drafts, then the target's own token, then -1.
    """
    assert draft_probs is None, "the configuration was to be refused"
    bonus = bonus_token_ids.view(-1, 1).long()
    if max_spec_len == 0:
        return bonus.int()
    ids, B, device = draft_token_ids.long(), len(num_draft_tokens), target_logits.device
    row_start = torch.nn.functional.pad(cu_num_draft_tokens, (1, 0))
    first, num_drafts = row_start[:-1, None].long(), row_start.diff()[:, None].long()
    nodes = torch.arange(max_spec_len, device=device)
    # Node 0 is the last known token, which is not looked at.
    candidates = ids[(first + nodes - 1).clamp(0, len(ids) - 1)]
    sampling = None
    if not sampling_metadata.all_greedy:
        sampling = Sampling(
            (sampling_metadata.temperature != 0).float(),
            _draw_keys(num_draft_tokens, sampling_metadata.generators, device),
            torch.zeros(B, dtype=torch.int64, device=device),
        )
    found = ops.verify(
        target_logits, row_start, candidates, bonus.flatten(), sampling,
        workspace=workspace.of(target_logits),
    )  # fmt: skip
    # A request without drafts has no rows, and its next token is the bonus as it was given.
    last_draft = ids[(first + num_drafts - 1).clamp(0, len(ids) - 1)]
    are_accepted = (found.num_accepted[:, None] == num_drafts - 1) & (
        found.next_tokens[:, None] == last_draft
    )
    tokens = torch.nn.functional.pad(found.tokens, (0, 1), value=-1)
    own = torch.where(are_accepted | (num_drafts == 0), bonus, tokens.gather(1, num_drafts))
    return tokens.scatter_(1, num_drafts, own).int()


def _draw_keys(
    num_draft_tokens: Sequence[int], generators: Mapping[int, torch.Generator], device: torch.device
) -> Tensor:
    """A key of the noise of each request, ``[B]`` int64; of its own generator if it has a seed.

    As in vLLM the generator of a request without drafts is left as it is.
    """
    keys = torch.empty(len(num_draft_tokens), dtype=torch.int64, device=device).random_()
    for request, generator in generators.items():
        if num_draft_tokens[request] > 0:
            keys[request].random_(generator=generator)
    return keys


def rejection_sample_v2(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_sampled: Tensor,
    cu_num_logits: Tensor,
    pos: Tensor,
    idx_mapping: Tensor,
    expanded_idx_mapping: Tensor,
    expanded_local_pos: Tensor,
    temperature: Tensor,
    seed: Tensor,
    num_speculative_steps: int,
    *_: Any,  # noqa: ANN401 - of other methods, which are refused
    workspace: Workspace,
    **__: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    """What vLLM's V2 runner calls to verify.

    The noise depends on the seed and the positions alone: the text of a request with a seed is the
    same whatever is drafted.

    Args:
        target_logits: ``[R, V]``, filtered and penalised, and over the temperature.
        draft_logits: None, for drafts that were not drawn.
        draft_sampled: ``[R]`` int32, the last known token and the drafts of each request; -1: to be
            rejected.
        cu_num_logits: ``[B + 1]`` int32, first row of each request.
        pos: ``[R]`` int64, absolute positions.
        idx_mapping: ``[B]``, where the requests are in `temperature` and `seed`.
        expanded_idx_mapping: Not used.
        expanded_local_pos: Not used.
        temperature: float32, of all requests.
        seed: int64, of all requests.
        num_speculative_steps: K.
        workspace: Of all calls.

    Returns:
        Tokens ``[B, K + 1]`` int64, -1 past their number, and that number ``[B]`` int32.
    """
    assert draft_logits is None, "the configuration was to be refused"
    first, nodes = (
        cu_num_logits[:-1].long(),
        torch.arange(num_speculative_steps + 1, device=target_logits.device),
    )
    requests = idx_mapping.long()
    sampling = Sampling((temperature[requests] != 0).float(), seed[requests], pos[first].long())
    found = ops.verify(
        target_logits.contiguous(), cu_num_logits.int(),
        draft_sampled[(first[:, None] + nodes).clamp(max=len(draft_sampled) - 1)].long(),
        torch.zeros_like(first), sampling, workspace=workspace.of(target_logits),
    )  # fmt: skip
    return found.tokens, found.num_accepted + 1
