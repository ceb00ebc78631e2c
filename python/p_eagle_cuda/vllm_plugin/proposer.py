"""The drafter of vLLM's V1 model runner."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from vllm.v1.spec_decode.eagle import EagleProposer

import vllm
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.vllm_plugin.options import PluginOptions
from p_eagle_cuda.vllm_plugin.replication import (
    cache_refusal,
    forget_layers,
    is_split,
    layer_names,
    made_whole,
)
from p_eagle_cuda.vllm_plugin.sampling import sample_drafts
from p_eagle_cuda.vllm_plugin.serving import ServedDrafter
from p_eagle_cuda.vllm_plugin.support import is_p_eagle, refusal
from p_eagle_cuda.vllm_plugin.verification import take_over_v1

logger = logging.getLogger("vllm.p_eagle_cuda")


class PEagleProposer(EagleProposer):  # type: ignore[misc]  # vLLM has no types here
    """vLLM's EAGLE proposer, with our kernels where vLLM is asked for a P-EAGLE drafter.

    For everything else, and for what our kernels do not serve, it is vLLM's own, unchanged.
    """

    def __init__(
        self,
        vllm_config: Any,  # noqa: ANN401
        device: torch.device,
        runner: Any = None,  # noqa: ANN401
    ) -> None:
        """As vLLM constructs it, before there is a model."""
        super().__init__(vllm_config, device, runner)
        self._runner = runner
        self._served: ServedDrafter | None = None
        method = getattr(vllm_config.speculative_config, "draft_sample_method", None)
        self._is_probabilistic = method == "probabilistic"

    def load_model(self, target_model: Any) -> None:  # noqa: ANN401
        """Load vLLM's module, and work with its weights if that is possible."""
        if not is_p_eagle(self.vllm_config):
            super().load_model(target_model)
            return
        of_target = layer_names(self.vllm_config)
        reason = self._find_refusal()
        with made_whole(self.vllm_config) if reason is None else nullcontext():
            super().load_model(target_model)
        if reason is None:
            reason = self._take_over(target_model)
            if reason is not None and is_split(self.vllm_config):
                del self.model
                forget_layers(self.vllm_config, layer_names(self.vllm_config) - of_target)
                super().load_model(target_model)
        if reason is not None:
            self._step_aside(reason)

    def _step_aside(self, reason: str) -> None:
        """One warning, of the first of the target's ranks, which all have the same reason."""
        self._served = None
        is_first = self.vllm_config.parallel_config.rank == 0
        logger.log(
            logging.WARNING if is_first else logging.DEBUG,
            "p_eagle_cuda steps aside, vLLM's own drafter serves: %s", reason,
        )  # fmt: skip

    def _find_refusal(self) -> str | None:
        """Why ours cannot serve, as far as the configuration tells."""
        try:
            options = PluginOptions.read(self.vllm_config.additional_config)
        except PEagleError as error:
            return str(error)
        if not options.enabled:
            return "switched off"
        return refusal(self.vllm_config, self.device.type, "V1", vllm.__version__)

    def _take_over(self, target_model: Any) -> str | None:  # noqa: ANN401
        """Serve with the module that is loaded; what is returned tells why that cannot be."""
        if is_split(self.vllm_config):
            reason = cache_refusal(self.vllm_config)
            if reason is not None:
                return reason
        options = PluginOptions.read(self.vllm_config.additional_config)
        try:
            self._served = ServedDrafter(
                self.model, target_model, self.vllm_config, self.device, options, joins_taps=True
            )
        except (PEagleError, AttributeError) as error:  # the latter: a module that is not known
            return str(error)
        logger.info("p_eagle_cuda drafts: %s", self._served.describe())
        take_over_v1(self.vllm_config, self.device.type, self._runner.rejection_sampler)
        return None

    @torch.inference_mode()
    def propose(
        self,
        num_speculative_tokens: int,
        target_token_ids: Tensor,
        target_positions: Tensor,
        target_hidden_states: Tensor,
        next_token_ids: Tensor,
        token_indices_to_sample: Tensor | None,
        common_attn_metadata: Any,  # noqa: ANN401
        sampling_metadata: Any,  # noqa: ANN401
        mm_embed_inputs: Any = None,  # noqa: ANN401
        num_rejected_tokens_gpu: Tensor | None = None,
        slot_mappings: Any = None,  # noqa: ANN401
    ) -> Tensor:
        """Draft for the batch that the target has just run; see vLLM's own."""
        if not self._is_ready():
            drafts: Tensor = super().propose(
                num_speculative_tokens, target_token_ids, target_positions, target_hidden_states,
                next_token_ids, token_indices_to_sample, common_attn_metadata, sampling_metadata,
                mm_embed_inputs, num_rejected_tokens_gpu, slot_mappings,
            )  # fmt: skip
            return drafts
        assert self._served is not None
        self.num_speculative_tokens = num_speculative_tokens
        self._last_draft_probs = None
        if target_positions.ndim == 2:  # of a target with M-RoPE; text has three times the same
            target_positions = target_positions[0]
        metadata = common_attn_metadata
        num_requests, k = metadata.num_reqs, num_speculative_tokens
        found = self._served.propose(
            tokens=target_token_ids,
            positions=target_positions,
            taps=(target_hidden_states,),
            query_start=metadata.query_start_loc[: num_requests + 1],
            num_rejected=num_rejected_tokens_gpu,
            next_tokens=next_token_ids,
            block_table=metadata.block_table_tensor[:num_requests],
            k=max(k, 1),  # with 0 the rows are stored, and nothing is drafted
        )
        if self._is_probabilistic and not sampling_metadata.all_greedy and k > 0:
            sampled = sample_drafts(
                found, sampling_metadata.temperature[:num_requests], sampling_metadata.generators,
                self.vllm_config.model_config.get_vocab_size(),
            )  # fmt: skip
            self._last_draft_probs = sampled.probabilities
            return sampled.token_ids
        # A copy, because the engine reads it while the next pass may run.
        return found.token_ids[:, :k].clamp(min=0)

    @torch.inference_mode()
    def dummy_run(
        self,
        num_tokens: int,
        use_cudagraphs: bool = True,
        is_graph_capturing: bool = False,
        slot_mappings: dict[str, Tensor] | None = None,
    ) -> None:
        """Record the graphs when vLLM records its own; otherwise there is nothing to warm up."""
        if self._served is None:
            super().dummy_run(num_tokens, use_cudagraphs, is_graph_capturing, slot_mappings)
        elif is_graph_capturing and self._is_ready() and self._served is not None:
            self._served.capture_graphs()

    def _is_ready(self) -> bool:
        """Whether our kernels serve; takes vLLM's caches when they have come."""
        if self._served is None:
            return False
        try:
            self._served.ensure_caches(self.model)
        except PEagleError as error:
            if self._served.is_in_the_way:
                raise RuntimeError(
                    f"p_eagle_cuda cannot draft: {error}; P_EAGLE_CUDA_DISABLE=1 serves with "
                    "vLLM's own drafter"
                ) from error
            self._step_aside(str(error))
        return self._served is not None
