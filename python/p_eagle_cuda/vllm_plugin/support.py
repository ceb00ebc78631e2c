"""What of vLLM's settings this package does not serve."""

from __future__ import annotations

from typing import Any

import torch

from p_eagle_cuda import ops
from p_eagle_cuda.drafter_pass import PASS_OPS
from p_eagle_cuda.ops.layers import CUDA_HEAD_DIMS
from p_eagle_cuda.vllm_plugin.versions import (
    OPTION_VERSIONS,
    takes_multimodal_inputs,
    unsupported_version,
)


def is_p_eagle(vllm_config: Any) -> bool:  # noqa: ANN401 - vLLM's types change with its versions
    """Whether vLLM is asked for a drafter of this kind at all."""
    speculative = vllm_config.speculative_config
    return speculative.method == "eagle3" and bool(speculative.parallel_drafting)


def refusal(vllm_config: Any, device_type: str, runner: str, version: str) -> str | None:  # noqa: ANN401
    """Why vLLM's own drafter has to serve; None if ours can.

    Args:
        vllm_config: vLLM's whole configuration, with speculative decoding.
        device_type: Of the workers, "cuda" or "cpu".
        runner: The model runner, "V1" or "V2".
        version: vLLM's.
    """
    try:
        return _find_refusal(vllm_config, device_type, runner, version)
    except AttributeError as error:
        return f"this vLLM's configuration is not one that is known ({error})"


def _find_refusal(vllm_config: Any, device_type: str, runner: str, version: str) -> str | None:  # noqa: ANN401
    speculative, model = vllm_config.speculative_config, vllm_config.model_config
    draft = speculative.draft_model_config
    parallel = vllm_config.parallel_config
    hf = draft.hf_config
    head_dim = draft.get_head_size()
    checks = {
        "the drafter has M-RoPE": draft.uses_mrope,
        "the target takes multimodal inputs": takes_multimodal_inputs(model),
        "the model is split into pipeline stages": parallel.pipeline_parallel_size > 1,
        "contexts are split over several GPUs": (
            getattr(parallel, "decode_context_parallel_size", 1) > 1
            or getattr(parallel, "prefill_context_parallel_size", 1) > 1
        ),
        "the drafter's checkpoint is quantised": draft.quantization is not None,
        "target and drafter have different vocabularies": (
            getattr(speculative, "use_heterogeneous_vocab", False)
        ),
        "the drafter scales its logits": getattr(hf, "logit_scale", 1.0) != 1.0,
        "LoRA adapters are on": vllm_config.lora_config is not None,
        "text is watermarked": getattr(vllm_config, "watermark_config", None) is not None,
        "verification is adaptive, which takes the drafter's logits": (
            getattr(speculative, "enable_adaptive_verification", False)
        ),
        "the draft batch is not padded": (
            runner == "V1" and speculative.disable_padded_drafter_batch
        ),
    }
    for reason, applies in checks.items():
        if applies:
            return reason
    if parallel.tensor_parallel_size > 1:
        if getattr(vllm_config, "kv_transfer_config", None) is not None:
            return (
                "the target is split over several GPUs and its caches go to another engine, which "
                "was not tried"
            )
        untried = unsupported_version(version, *OPTION_VERSIONS)
        if untried is not None:
            return f"the target is split over several GPUs: {untried}"
    if device_type == "cuda":
        if head_dim not in CUDA_HEAD_DIMS:
            sizes = " or ".join(map(str, CUDA_HEAD_DIMS))
            return f"the drafter's heads have size {head_dim}, the kernels take {sizes}"
        if model.dtype not in (torch.bfloat16, torch.float16):
            return f"the dtype is {model.dtype}, the kernels take bfloat16 and float16"
        built = ops.implementations()
        missing = [name for name in PASS_OPS if not built[name]["cuda"]]
        if missing:
            return f"this build has no CUDA kernel for {', '.join(missing)}"
    elif device_type != "cpu":
        return f"there are no kernels for {device_type}"
    return None
