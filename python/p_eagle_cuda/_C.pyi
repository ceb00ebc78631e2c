"""The compiled module (csrc/module.cpp). Import torch first."""

from typing import Any

version: str
cuda_archs: tuple[str, ...]
cuda_version: str
nvcc_version: str
cutlass_version: str

def cuda_ops() -> list[str]:
    """Names of the ops that this build implements for CUDA."""

def linear_workspace_bytes(num_sms: int) -> int:
    """Size of the linear layers' workspace on a device of this many SMs."""

def lm_head_workspace_bytes(num_sms: int, num_samples: int, top_k: int) -> int:
    """Size of the workspace of `lm_head_topk` for so many rows, on a device of this many SMs."""

def verify_workspace_bytes(num_rows: int, vocab_size: int) -> int:
    """Size of the workspace of `verify` for so many rows of logits."""

def linear_plan(
    rows: int, columns: int, tile_rows: int, num_rows: int, weight_bytes: int, num_sms: int
) -> dict[str, Any]:
    """How the weight ``[rows, columns]`` of a linear layer is dealt to CTAs.

    Args:
        rows: Of the weight.
        columns: Of the weight, a multiple of 64.
        tile_rows: 64, or 128 for heads of that size.
        num_rows: Most rows of the batch.
        weight_bytes: Of an element, 2 or 1.
        num_sms: Of the device.
    """

def attention_blocks_per_sm(head_dim: int, shared_bytes_per_sm: int) -> int:
    """Thread blocks of the attention kernel that an SM holds."""

def attention_max_segments(num_rows: int, num_requests: int, group: int) -> int:
    """Segments that a work map has room for; `group` is query heads per KV head."""

def attention_work_size(num_rows: int, num_requests: int, group: int, num_blocks: int) -> int:
    """Elements of a work map."""

def attention_workspace_bytes(num_blocks: int, head_dim: int) -> int:
    """Bytes of the attention kernel's workspace."""
