"""The compiled module (csrc/module.cpp). Import torch first."""

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
