"""The ops of a drafter pass, in the order in which it runs them.

The device of the tensors decides who computes: CUDA tensors go to the fused kernels of the compiled
library, CPU tensors to `p_eagle_cuda.reference`. An op that the library does not hold raises on
CUDA tensors; nothing falls back.

Conventions, stated once. Sizes: B requests, K drafted tokens, T rows the target has just computed,
R drafter rows (the most there can be, known to the host), H hidden, Ht target hidden, n taps,
V vocabulary, Vd draft vocabulary, D head dimension, Nq/Nkv heads, I intermediate, P positions.
"Working dtype" is one dtype for every floating-point tensor of a call where nothing else is said:
bfloat16 or float16, on the CPU also float32 and float64. `num_rows` is a ``[1]`` int32 tensor on
the device, the rows that exist: rows past it are neither read nor written, so that one CUDA graph
serves every acceptance pattern. Tensors are contiguous, caches excepted. Outputs are allocated when
not given. CUDA implementations allocate nothing, never synchronise, and read nothing on the host.
Wrong dtypes, shapes or strides raise ValueError (RuntimeError from CUDA implementations) with a
message that names the argument, what it must be and what it is.
"""

from p_eagle_cuda._registry import (
    implementations,
    linear_workspace,
    lm_head_workspace,
    load_library,
    verify_workspace,
)
from p_eagle_cuda.ops.attention import (
    AttentionBuffers,
    allocate_attention,
    paged_attention,
    plan_attention,
    slice_work,
)
from p_eagle_cuda.ops.gemm import gemm, gemm_residual, gemm_swiglu
from p_eagle_cuda.ops.head import lm_head_topk
from p_eagle_cuda.ops.inputs import embed_norm_concat, prepare_inputs, project_taps
from p_eagle_cuda.ops.layers import linear_residual, norm_swiglu, qkv_rope_cache
from p_eagle_cuda.ops.pruning import prune_rows
from p_eagle_cuda.ops.rows import gate_rows, gather_taps, norm_rows, rope_cache
from p_eagle_cuda.ops.tree import build_tree, compact_cache
from p_eagle_cuda.ops.verification import Sampling, apply_penalties, logit_floors, verify

__all__ = [
    "AttentionBuffers",
    "Sampling",
    "allocate_attention",
    "apply_penalties",
    "build_tree",
    "compact_cache",
    "embed_norm_concat",
    "gate_rows",
    "gather_taps",
    "gemm",
    "gemm_residual",
    "gemm_swiglu",
    "implementations",
    "linear_residual",
    "linear_workspace",
    "lm_head_topk",
    "lm_head_workspace",
    "logit_floors",
    "norm_rows",
    "norm_swiglu",
    "paged_attention",
    "plan_attention",
    "prepare_inputs",
    "project_taps",
    "prune_rows",
    "qkv_rope_cache",
    "rope_cache",
    "slice_work",
    "verify",
    "verify_workspace",
]

load_library()
