"""The whole drafter on every rank of a target that tensor parallelism splits.

vLLM splits an EAGLE drafter as it does the target, whatever `draft_tensor_parallel_size` says: each
of its layers asks for the tensor-parallel group when it is made. Made while that group is one of
this rank alone, they hold all of the drafter, and tell vLLM of caches of all its heads. A pass then
needs no other rank, and the same kernels on the same inputs draft the same tokens everywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import copy
from typing import Any

from torch import Tensor


def is_split(vllm_config: Any) -> bool:  # noqa: ANN401
    """Whether the target has several tensor-parallel ranks."""
    return int(vllm_config.parallel_config.tensor_parallel_size) > 1


@contextlib.contextmanager
def made_whole(vllm_config: Any) -> Iterator[None]:  # noqa: ANN401
    """What vLLM makes and loads meanwhile is not split. Nothing is done where nothing would be.

    The group that stands in is that of the pipeline's ranks, of which there is one: a target in
    several stages is refused.
    """
    if not is_split(vllm_config):
        yield
        return
    from vllm.distributed import parallel_state

    group, alone = parallel_state._TP, parallel_state.get_pp_group()
    assert alone.world_size == 1, "the configuration was to be refused"
    parallel_state._TP = alone
    try:
        yield
    finally:
        parallel_state._TP = group


def gather_vocabulary(shard: Tensor) -> Tensor:
    """Rows of a vocabulary that the target's ranks share -> all of them, on each rank.

    Args:
        shard: ``[rows, H]``, this rank's part; the ranks have adjacent ones, as many rows each.
    """
    from vllm.distributed import get_tp_group

    gathered: Tensor = get_tp_group().all_gather(shard.contiguous(), dim=0)
    return gathered


def check_same_on_ranks(token_ids: Tensor) -> None:
    """Compare drafts ``[B, K]`` with those of the other ranks.

    Raises:
        RuntimeError: They differ, so the ranks' inputs or weights do.
    """
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    of_ranks = group.all_gather(token_ids.contiguous(), dim=0).view(-1, *token_ids.shape)
    differ = (of_ranks != of_ranks[0]).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if differ:
        raise RuntimeError(
            f"p_eagle_cuda: expected the same drafts on each of {group.world_size} ranks, those of "
            f"ranks {differ} are not those of rank 0"
        )


def layer_names(vllm_config: Any) -> set[str]:  # noqa: ANN401
    """Of all layers that vLLM knows by name, those with caches among them."""
    return set(vllm_config.compilation_config.static_forward_context)


def forget_layers(vllm_config: Any, names: set[str]) -> None:  # noqa: ANN401
    """Let vLLM make layers of these names anew."""
    for name in names:
        del vllm_config.compilation_config.static_forward_context[name]


def cache_refusal(vllm_config: Any) -> str | None:  # noqa: ANN401
    """Why vLLM could not give the layers that there are the caches they want; None if it can.

    A layer of the drafter takes more bytes for a position than one of the target, which has a share
    of its heads. That is asked of vLLM's own planning, on copies, before it comes to do it itself.
    """
    from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
    from vllm.v1.attention.backends.utils import (
        get_supported_kv_cache_layouts,
        resolve_kv_cache_layout,
    )
    from vllm.v1.core.kv_cache_planning import get_global_kv_cache_groups
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
    from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec

    trial = copy(vllm_config)
    trial.cache_config = copy(vllm_config.cache_config)
    specs = get_kv_cache_spec(trial)
    backends = get_current_attn_backends(trial)
    try:
        register_all_kvcache_specs(trial)
        layouts = [layout.name for layout in get_supported_kv_cache_layouts(backends)]
        resolve_kv_cache_layout(trial, [layouts], specs.values())
        groups = get_global_kv_cache_groups(trial, [specs])
    except (AssertionError, NotImplementedError, ValueError) as error:
        return f"vLLM has no caches for all of the drafter's heads: {' '.join(str(error).split())}"
    of_drafter = {name for name, spec in specs.items() if spec.is_draft}
    num_groups = sum(not of_drafter.isdisjoint(group.layer_names) for group in groups)
    if num_groups != 1:
        return (
            "with caches of all of the drafter's heads vLLM would put its layers into "
            f"{num_groups} groups of caches, expected one"
        )
    return None
