"""Options of the plugin: ``--additional-config '{"p_eagle_cuda": {...}}'``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from p_eagle_cuda.errors import ConfigError
from p_eagle_cuda.linear_table import BACKENDS
from p_eagle_cuda.precision import WEIGHT_PRECISIONS

KEY = "p_eagle_cuda"
_WORDS = {
    "linear": BACKENDS,
    "weights": WEIGHT_PRECISIONS,
    "verification": ("vllm", "p_eagle_cuda"),
    "draft_length": ("fixed", "auto"),
}


@dataclass(frozen=True)
class PluginOptions:
    """What a user may choose.

    Attributes:
        enabled: Whether to take over at all.
        cuda_graphs: Whether decoding passes are replayed as CUDA graphs. vLLM's ``enforce_eager``
            turns them off, too.
        max_target_rows: Prompt rows that go through the drafter's layers together.
        linear: Backend of the linear layers, "auto", "fused", "torch" or "cutlass".
        weights: "auto" or "bf16" for vLLM's own, shared; "fp8_head" for an FP8 output head, "fp8"
            for all matrices in FP8, "w8a8" for FP8 activations, too. What becomes FP8 is freed in
            vLLM's drafter, so if the caches turn out to be of a kind that we do not serve, vLLM
            ends with an error.
        verification: "vllm", or "p_eagle_cuda" for our kernels in the place of vLLM's rejection
            sampling.
        draft_length: "fixed" for num_speculative_tokens, "auto" for fewer in larger batches.
        row_cost: Of "auto": the time of one more row in the target's pass, over that of a pass of
            one row; see `DraftLengthPolicy`.
        debug: Check all arguments, name the kernel that fails, and compare the drafts of a target's
            ranks; slow.
    """

    enabled: bool = True
    cuda_graphs: bool = True
    max_target_rows: int = 2048
    linear: str = "auto"
    weights: str = "auto"
    verification: str = "vllm"
    draft_length: str = "fixed"
    row_cost: float = 1 / 256
    debug: bool = False

    @classmethod
    def read(cls, additional_config: object) -> PluginOptions:
        """Take them from vLLM's configuration.

        Raises:
            ConfigError: An option is not known or of the wrong type.
        """
        given: Any = {}
        if isinstance(additional_config, Mapping):
            given = additional_config.get(KEY, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"{KEY}: expected an object of options, got {given!r}")
        known = {field.name: field.default for field in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(
                    f"{KEY}: expected one of the options {sorted(known)}, got {name!r}"
                )
            if type(value) is not type(known[name]):
                raise ConfigError(
                    f"{KEY}: {name} must be of type {type(known[name]).__name__}, got {value!r}"
                )
        options = cls(**given)
        if options.max_target_rows < 1:
            raise ConfigError(
                f"{KEY}: max_target_rows must be at least 1, got {options.max_target_rows}"
            )
        if not options.row_cost >= 0:
            raise ConfigError(f"{KEY}: row_cost must be at least 0, got {options.row_cost}")
        for name, words in _WORDS.items():
            if (word := getattr(options, name)) not in words:
                raise ConfigError(f"{KEY}: {name} must be one of {', '.join(words)}, got {word!r}")
        return options
