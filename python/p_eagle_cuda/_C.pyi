"""The compiled module (csrc/module.cpp). Import torch first."""

version: str
cuda_archs: tuple[str, ...]
cuda_version: str
nvcc_version: str
cutlass_version: str

def cuda_ops() -> list[str]:
    """Names of the ops that this build implements for CUDA."""

def attention_blocks_per_sm(head_dim: int, shared_bytes_per_sm: int) -> int:
    """Thread blocks of the attention kernel that an SM holds."""

def attention_max_segments(num_rows: int, num_requests: int, group: int) -> int:
    """Segments that a work map has room for; `group` is query heads per KV head."""

def attention_work_size(num_rows: int, num_requests: int, group: int, num_blocks: int) -> int:
    """Elements of a work map."""

def attention_workspace_bytes(num_blocks: int, head_dim: int) -> int:
    """Bytes of the attention kernel's workspace."""
