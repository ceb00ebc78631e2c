"""P-EAGLE on vLLM's V2 model runner, which has no parallel drafting of its own for EAGLE."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator

from p_eagle_cuda.errors import ConfigError, PEagleError
from p_eagle_cuda.vllm_plugin.options import PluginOptions
from p_eagle_cuda.vllm_plugin.replication import cache_refusal, is_split, made_whole
from p_eagle_cuda.vllm_plugin.sampling import KeyedSampler
from p_eagle_cuda.vllm_plugin.serving import ServedDrafter

logger = logging.getLogger("vllm.p_eagle_cuda")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what to do where ours cannot draft: this runner has no other drafter for P-EAGLE."""
    try:
        yield
    except (PEagleError, AttributeError) as error:  # the latter: a module that is not known
        raise RuntimeError(
            f"p_eagle_cuda cannot draft: {error}; VLLM_USE_V2_MODEL_RUNNER=0 or "
            "P_EAGLE_CUDA_DISABLE=1 serves with vLLM's own drafter"
        ) from error


class PEagleSpeculator(EagleSpeculator):  # type: ignore[misc]  # vLLM has no types here
    """Drafts with our kernels; of vLLM's speculator it uses the loading and the bookkeeping."""

    def draft_logits_spec(self, vllm_config: Any) -> tuple[torch.dtype, float]:  # noqa: ANN401
        """Dtype and fill of what verification reads of drafts that are drawn; vLLM allocates it."""
        return torch.float32, -torch.inf

    def load_model(self, target_model: Any) -> None:  # noqa: ANN401
        """Load vLLM's module and work with its weights.

        Raises:
            RuntimeError: The checkpoint is not one that the kernels can run, and this runner has
                no other drafter for it.
        """
        with made_whole(self.vllm_config):
            super().load_model(target_model)
        with _explained():
            if is_split(self.vllm_config) and (reason := cache_refusal(self.vllm_config)):
                raise ConfigError(reason)
            options = PluginOptions.read(self.vllm_config.additional_config)
            self._served = ServedDrafter(
                self.model, target_model, self.vllm_config, self.device, options,
                joins_taps=False,
            )  # fmt: skip
        self._sampler: KeyedSampler | None = None
        if self.draft_logits is not None:  # draft_sample_method is "probabilistic"
            self._sampler = KeyedSampler(self.draft_logits, gumbel_sample)
        logger.info("p_eagle_cuda drafts on the V2 runner: %s", self._served.describe())

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:  # noqa: ANN401
        """The graphs are ours."""

    def capture(self) -> None:
        """Record them, when vLLM records its own."""
        with _explained():
            self._served.ensure_caches(self.model)
        self._served.capture_graphs()

    @torch.inference_mode()
    def propose(
        self,
        input_batch: Any,  # noqa: ANN401
        attn_metadata: Any,  # noqa: ANN401
        slot_mappings: Any,  # noqa: ANN401
        last_hidden_states: Tensor,
        aux_hidden_states: list[Tensor] | None,
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        next_prefill_tokens: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        *args: Any,  # noqa: ANN401
        dummy_run: bool = False,
        num_speculative_tokens: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """Draft for the batch that the target has just run; see vLLM's own."""
        B, T = input_batch.num_reqs, input_batch.num_tokens
        drafts: Tensor = self.draft_tokens[:B]
        if dummy_run:  # nothing to warm up, and its requests are nobody's
            return drafts
        assert aux_hidden_states, "a P-EAGLE drafter reads the target's hidden states"
        k = self.num_speculative_steps if num_speculative_tokens is None else num_speculative_tokens
        with _explained():
            self._served.ensure_caches(self.model)
        requests = input_batch.idx_mapping[:B]
        prefill = next_prefill_tokens if next_prefill_tokens.ndim == 1 else next_prefill_tokens[0]
        group = next(g for g, groups in enumerate(self.attn_groups) if groups)
        drafted = self._served.propose(
            tokens=input_batch.input_ids[:T],
            positions=input_batch.positions[:T],
            taps=tuple(tap[:T] for tap in aux_hidden_states),
            query_start=input_batch.query_start_loc[: B + 1],
            num_rejected=num_rejected[:B],
            next_tokens=torch.where(
                num_sampled[:B] > 0, last_sampled.flatten()[requests], prefill[requests]
            ),
            block_table=self.block_tables.input_block_tables[group][:B],
            k=max(k, 1),  # with 0 the rows are stored, and nothing is drafted
        )
        if k == 0:
            return drafts.fill_(-1)
        if self._sampler is not None:
            drafts[:, :k] = self._sampler.draw(
                drafted, requests, input_batch.seq_lens[:B] - num_rejected[:B], temperature, seeds,
                use_fp64=self.use_fp64_gumbel,
            )  # fmt: skip
        else:
            torch.clamp(drafted.token_ids, min=0, out=drafts[:, :k])
        return drafts
