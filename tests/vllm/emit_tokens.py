"""Draw drafts for vLLM's V2 runner, and have its rejection sampler verify them.

    python emit_tokens.py RESULT.json

A target of 6 tokens, with a law of its own after each; two drafts for each of many requests, which
lie in slots in another order. The result: the target's laws, and of each request its
temperature, what was emitted, and how many tokens of it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path

import torch
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample

from p_eagle_cuda.drafter_pass import Drafts
from p_eagle_cuda.vllm_plugin.sampling import CANDIDATES, KeyedSampler

REQUESTS, K, V = 300, 2, 6


def main(result_path: str) -> None:
    """Draw and verify once for each request; some have drafts of an earlier step."""
    for load in entry_points(group="vllm.general_plugins"):
        if load.name == "a_cpu_standins":
            load.load()()
    torch.manual_seed(2)
    target = 0.3 * torch.randn(V + 1, V)  # after each token, and at the beginning
    top_ids = torch.full((REQUESTS, K, CANDIDATES), -1)
    top_logits = torch.full((REQUESTS, K, CANDIDATES), -torch.inf)
    top_logits[..., :3] = torch.tensor([0.3, 0.0, -0.3])
    slots = torch.randperm(REQUESTS)
    temperature = torch.where(torch.arange(REQUESTS) % 10 == 0, 0.0, 0.3)  # of each slot
    seeds = torch.randint(2**62, (REQUESTS,))
    sampler = KeyedSampler(torch.full((REQUESTS, K, V), -torch.inf), gumbel_sample)
    lengths = torch.full((REQUESTS,), 11)
    for candidates, B in (([5, 3, 0], 10), ([1, 4, 2], REQUESTS)):
        top_ids[..., :3] = torch.tensor(candidates)
        drafts = Drafts(top_ids[..., 0], top_ids, top_logits, torch.zeros(REQUESTS, K)).first(B)
        tokens = sampler.draw(drafts, slots[:B], lengths[:B], temperature, seeds, use_fp64=False)

    read = torch.cat([torch.full((REQUESTS, 1), V), tokens], dim=1)
    of_request = temperature[slots]
    logits = target[read] / torch.where(of_request == 0, 1.0, of_request)[:, None, None]
    places = slots[:, None].expand_as(read).flatten()
    depths = torch.arange(K + 1).expand_as(read).flatten()
    emitted, num_emitted = rejection_sample(
        logits.flatten(0, 1), sampler.logits, read.flatten(),
        torch.arange(REQUESTS + 1, dtype=torch.int32) * (K + 1), 10 + depths, slots, places, depths,
        temperature, seeds, K,
    )  # fmt: skip
    result = {
        "target": target.tolist(), "temperature": of_request.tolist(), "emitted": emitted.tolist(),
        "num_emitted": num_emitted.tolist(),
    }  # fmt: skip
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
