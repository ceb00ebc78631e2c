"""A `Drafter` over the weights and caches of a serving engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p_eagle_cuda.buffers import DeviceSize, PassLimits, batch_sizes_up_to, plan_buffers
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.drafter import Drafter
from p_eagle_cuda.drafter_pass import Drafts
from p_eagle_cuda.errors import ConfigError
from p_eagle_cuda.fields import ConfigFields
from p_eagle_cuda.vllm_plugin.caches import adopt_caches
from p_eagle_cuda.vllm_plugin.options import PluginOptions
from p_eagle_cuda.vllm_plugin.replication import check_same_on_ranks
from p_eagle_cuda.vllm_plugin.sampling import CANDIDATES
from p_eagle_cuda.vllm_plugin.weights import adopt_weights, release_replaced
from p_eagle_cuda.weights import DrafterWeights

SMALLEST_BLOCK = 16  # positions; before the caches are there, the block table may be so wide


class ServedDrafter:
    """Our drafter in the place of vLLM's module, over the same weights and caches."""

    def __init__(
        self,
        module: Any,  # noqa: ANN401
        target: Any,  # noqa: ANN401
        vllm_config: Any,  # noqa: ANN401
        device: torch.device,
        options: PluginOptions,
        *,
        joins_taps: bool,
    ) -> None:
        """Adopt the weights, and hold the memory that the buffers will need.

        vLLM measures what is in use before it allocates caches, and the buffers come after those.

        Args:
            module: vLLM's drafter, loaded.
            target: vLLM's target, which may share the head.
            vllm_config: vLLM's configuration.
            device: Of the worker.
            options: Of the plugin.
            joins_taps: Whether the target's hidden states come side by side in one tensor.

        Raises:
            PEagleError: The checkpoint is not one that the kernels can run.
        """
        speculative, scheduler = vllm_config.speculative_config, vllm_config.scheduler_config
        self._device, self._options = device, options
        self._config = _read_config(speculative.draft_model_config)
        self._is_eager = not options.cuda_graphs or bool(
            getattr(speculative, "enforce_eager", False) or vllm_config.model_config.enforce_eager
        )
        max_position = min(
            vllm_config.model_config.max_model_len, self._config.max_position_embeddings
        )
        adopted = adopt_weights(module, self._config, max_position, options.weights)
        self._weights, self._gathered = adopted.weights, adopted.gathered
        self._num_ranks = vllm_config.parallel_config.tensor_parallel_size
        self._sizes = {
            "num_speculative_tokens": speculative.num_speculative_tokens,
            "max_requests": scheduler.max_num_seqs,
            "max_target_rows": min(options.max_target_rows, scheduler.max_num_batched_tokens),
        }
        sampling = getattr(speculative, "draft_sample_method", None)
        self._top_k = CANDIDATES if sampling == "probabilistic" else 1
        self._joins_taps = joins_taps and self._weights.fc_norms is None
        self._none_rejected = torch.zeros(scheduler.max_num_seqs, dtype=torch.int32, device=device)
        self._drafter: Drafter | None = None
        self._held: Tensor | None = torch.empty(
            self._plan_bytes(), dtype=torch.uint8, device=device
        )
        # A drafter that is whole on each rank is not the one that vLLM has compiled.
        self.is_in_the_way = bool(adopted.replaced) or self._num_ranks > 1
        release_replaced(adopted, target)  # last: from here on vLLM's own drafter cannot serve

    def describe(self) -> str:
        """What runs, in a line; of bytes, those of this rank."""
        mib = dict.fromkeys(("shared", "fp8", "gathered"), 0.0)
        for x in {x.data_ptr(): x for x in _matrices(self._weights)}.values():
            kind = "gathered" if x.data_ptr() in self._gathered else "shared"
            mib["fp8" if x.dtype != self._weights.dtype else kind] += x.nbytes / 2**20
        parts = [
            f"K = {self._sizes['num_speculative_tokens']}",
            f"{self._weights.dtype} weights of {mib['shared']:.1f} MiB shared with vLLM",
        ]
        if mib["fp8"]:
            parts.append(f"in FP8 {mib['fp8']:.1f} MiB in the place of vLLM's")
        if mib["gathered"]:
            parts.append(f"{mib['gathered']:.1f} MiB gathered from the target's vocabulary")
        if self._num_ranks > 1:
            parts.append(
                f"all of it, and caches of all {self._config.num_kv_heads} heads, on each of "
                f"{self._num_ranks} ranks"
            )
        parts.append(f"buffers of {self._plan_bytes() / 2**20:.1f} MiB")
        parts.append("kernel by kernel" if self._is_eager else "CUDA graphs")
        return ", ".join(parts)

    def ensure_caches(self, module: Any) -> None:  # noqa: ANN401
        """Build the drafter once vLLM's caches are there.

        Raises:
            PEagleError: They are of a kind that the kernels do not read.
        """
        if self._drafter is not None:
            return
        self._held = None
        from vllm.platforms import current_platform

        caches = adopt_caches(module, self._config, self._weights.dtype)
        is_cuda = self._device.type == "cuda"
        self._drafter = Drafter(
            self._config, self._weights, caches, **self._sizes, top_k=self._top_k,
            joined_taps=self._joins_taps,
            linear=self._options.linear, cuda_graphs=not self._is_eager,
            graph_pool=current_platform.get_global_graph_pool() if is_cuda else None,
            debug=self._options.debug,
        )  # fmt: skip

    def capture_graphs(self) -> None:
        """Record every graph, if that has not been done."""
        assert self._drafter is not None
        self._drafter.capture_graphs()

    def propose(
        self,
        *,
        tokens: Tensor,
        positions: Tensor,
        taps: tuple[Tensor, ...],
        query_start: Tensor,
        num_rejected: Tensor | None,
        next_tokens: Tensor,
        block_table: Tensor,
        k: int,
    ) -> Drafts:
        """Draft, from vLLM's tensors.

        Args:
            tokens: ``[T]`` int32, the target's input ids.
            positions: ``[T]`` int64.
            taps: n tensors ``[T, Ht]``, or one ``[T, n Ht]``.
            query_start: ``[B + 1]`` int32.
            num_rejected: ``[B]`` int32; None when nothing was verified.
            next_tokens: ``[B]`` int32 or int64.
            block_table: ``[B, blocks]`` int32.
            k: Tokens to draft, at least 1.

        Returns:
            The drafts, in memory that the next pass writes to.
        """
        assert self._drafter is not None
        drafter, B, T = self._drafter, len(next_tokens), len(tokens)
        if len(taps) == 1 and not self._joins_taps:
            taps = taps[0].chunk(self._config.num_taps, dim=1)
            if drafter.limits.batch_size(B, T) is not None:
                static = drafter.static_inputs(B, T).taps
                for target, tap in zip(static, taps, strict=True):
                    target.copy_(tap)
                taps = static
        found = drafter.propose(
            tokens, positions, [tap.contiguous() for tap in taps], query_start,
            self._none_rejected[:B] if num_rejected is None else num_rejected, next_tokens,
            block_table.contiguous(), k=k,
        )  # fmt: skip
        if self._options.debug and self._num_ranks > 1:
            check_same_on_ranks(found.token_ids)
        return found

    def _plan_bytes(self) -> int:
        """Of the buffers, for the smallest blocks."""
        limits = PassLimits(
            **self._sizes, top_k=self._top_k,
            max_blocks=-(-len(self._weights.rope) // SMALLEST_BLOCK),
            batch_sizes=batch_sizes_up_to(self._sizes["max_requests"]),
            has_joined_taps=self._joins_taps,
        )  # fmt: skip
        size = DeviceSize.of(self._device, self._config.head_dim)
        plan = plan_buffers(self._config, limits, self._weights.dtype, size)
        return sum(spec.num_bytes for spec in plan.values())


def _read_config(draft_model_config: Any) -> DrafterConfig:  # noqa: ANN401
    """The checkpoint's own config.json, which vLLM rewrites for some formats."""
    path = Path(draft_model_config.model)
    if path.is_dir():
        return DrafterConfig.from_pretrained(path)
    from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

    found = get_hf_file_to_dict(
        "config.json", draft_model_config.model, draft_model_config.revision
    )
    if found is None:
        raise ConfigError(f"{draft_model_config.model}: config.json is not found")
    return DrafterConfig.from_fields(ConfigFields(found, Path(draft_model_config.model)))


def _matrices(weights: DrafterWeights) -> list[Tensor]:
    """The large tensors: vLLM's, but for those in FP8."""
    layers = [t for x in weights.layers for t in (x.qkv, x.o, x.gate_up, x.down)]
    return [weights.embedding, weights.fc, weights.lm_head, *layers]
