"""Drafts that are drawn, for vLLM's `draft_sample_method="probabilistic"`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from p_eagle_cuda.drafter_pass import Drafts

CANDIDATES = 16  # of each position, from which its draft is drawn
_LEAST_WAIT = 1e-30  # of the race: an exponential variable that is zero would win as NaN


class SampledDrafts(NamedTuple):
    """Tokens, and the law that they were drawn from, which verification has to know."""

    token_ids: Tensor  # [B, K] int64; 0 where nothing is drafted
    probabilities: Tensor  # [B, K, V] float32


def sample_drafts(
    drafts: Drafts,
    temperature: Tensor,
    generators: Mapping[int, torch.Generator],
    vocab_size: int,
) -> SampledDrafts:
    """Draw a token for each position from the softmax of its best candidates' logits.

    The law is that of the candidates alone, so what vLLM's rejection sampling makes of it is
    lossless. A request whose temperature is not above 0 gets the best candidate with probability 1.

    Args:
        drafts: Of a pass, with `CANDIDATES` for each position, or as many as there are.
        temperature: ``[B]`` float32.
        generators: Of the requests that have a seed, by their place in the batch.
        vocab_size: V, the target's.
    """
    ids, logits = _candidates(drafts)
    is_greedy = (temperature <= 0)[:, None, None]
    law = torch.softmax(logits / torch.where(is_greedy, 1.0, temperature[:, None, None]), dim=-1)
    is_first = torch.arange(logits.shape[-1], device=logits.device) == 0
    law = torch.where(is_greedy, is_first.float(), law)
    wait = torch.empty_like(law).exponential_()
    for request, generator in generators.items():
        if request < len(wait):
            wait[request].exponential_(generator=generator)
    chosen = (law / wait.clamp_(min=_LEAST_WAIT)).argmax(dim=-1, keepdim=True)
    probabilities = law.new_zeros((*law.shape[:2], vocab_size))
    probabilities.scatter_add_(2, ids, law)
    return SampledDrafts(ids.gather(2, chosen).squeeze(2), probabilities)


class KeyedSampler:
    """Draws the drafts of vLLM's V2 runner, and keeps the logits that verification takes.

    The law is that of `sample_drafts`. The noise is vLLM's own, keyed by the request's seed, as the
    target's is. Its key is the step of the request and the depth of the draft, never the position
    of the token alone: that would be met again by the next step, where verification may depend on
    it already (`noise.Stream`).
    """

    def __init__(self, draft_logits: Tensor, gumbel_sample: Callable[..., Tensor]) -> None:
        """Take over what verification reads.

        Args:
            draft_logits: ``[slots, K, V]`` float32, -inf everywhere; a request has a slot.
            gumbel_sample: VLLM's ``vllm.v1.worker.gpu.sample.gumbel.gumbel_sample``.
        """
        slots, K, _ = draft_logits.shape
        self.logits, self._gumbel_sample = draft_logits, gumbel_sample
        self._steps = torch.arange(K, device=draft_logits.device)
        # Tokens that have logits, so that only those are taken back, and not all of V.
        self._written = torch.zeros(
            (slots, K, CANDIDATES), dtype=torch.int64, device=draft_logits.device
        )

    def draw(
        self,
        drafts: Drafts,
        slots: Tensor,
        lengths: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        *,
        use_fp64: bool,
    ) -> Tensor:
        """Draw a token for each position, and keep the logits of its candidates.

        Args:
            drafts: Of a pass, with `CANDIDATES` for each of k positions.
            slots: ``[B]`` int, where each request is kept.
            lengths: ``[B]`` int, tokens of each request that the target has read and kept.
            temperature: ``[slots]`` float32; with 0 the best candidate is taken.
            seeds: ``[slots]`` int64.
            use_fp64: Whether the noise is in float64.

        Returns:
            ``[B, k]`` int64; 0 where nothing is drafted.
        """
        ids, logits = _candidates(drafts)
        B, k, n = ids.shape
        steps = self._steps[:k]
        # A candidate that is missing has the first one's id, and writes what that one does.
        kept = torch.where(ids == ids[..., :1], logits[..., :1], logits)
        rows = slots[:, None, None], steps[:, None]
        self.logits[(*rows, self._written[slots, :k])] = -torch.inf
        self.logits[(*rows, ids)] = kept
        self._written[slots, :k] = ids
        keys = lengths.long()[:, None] * len(self._steps) + steps
        ranks = self._gumbel_sample(
            logits.view(B * k, n), slots[:, None].expand(B, k).reshape(-1), temperature, seeds,
            keys.view(-1), apply_temperature=True, is_drafting=True, use_fp64=use_fp64,
        )  # fmt: skip
        return ids.gather(2, ranks.view(B, k, 1)).squeeze(2)


def _candidates(drafts: Drafts) -> tuple[Tensor, Tensor]:
    """Ids and float32 logits ``[B, K, n]`` of what may be drawn, best first, and always something.

    Where nothing is drafted it is token 0 for certain. A candidate that is missing has the id of
    the first one, and logit -inf.
    """
    is_missing = drafts.top_ids < 0
    is_first = torch.arange(drafts.top_ids.shape[-1], device=drafts.top_ids.device) == 0
    ids = torch.where(is_missing, drafts.top_ids[..., :1].clamp(min=0), drafts.top_ids)
    return ids, torch.where(is_missing & is_first, 0.0, drafts.top_logits.float())
