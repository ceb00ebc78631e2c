"""Drafts that are drawn, for vLLM's `draft_sample_method="probabilistic"`."""

from __future__ import annotations

from collections.abc import Mapping
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
    is_greedy = (temperature <= 0)[:, None, None]
    logits = drafts.top_logits.float()
    logits = logits / torch.where(is_greedy, 1.0, temperature[:, None, None])
    # Of all candidates only the first is left where nothing is drawn, or nothing was drafted.
    is_first = torch.arange(logits.shape[-1], device=logits.device) == 0
    takes_first = is_greedy | (drafts.top_ids[..., :1] < 0)
    law = torch.softmax(torch.where(takes_first, 0.0, logits), dim=-1)
    law = torch.where(takes_first, is_first.float(), law)
    wait = torch.empty_like(law).exponential_()
    for request, generator in generators.items():
        if request < len(wait):
            wait[request].exponential_(generator=generator)
    chosen = (law / wait.clamp_(min=_LEAST_WAIT)).argmax(dim=-1, keepdim=True)
    ids = drafts.top_ids.clamp(min=0)
    probabilities = law.new_zeros((*law.shape[:2], vocab_size))
    probabilities.scatter_add_(2, ids, law)  # what is no candidate is id 0, and adds nothing
    return SampledDrafts(ids.gather(2, chosen).squeeze(2), probabilities)
