"""One forward pass of the drafter, op by op, in buffers that exist already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from p_eagle_cuda import ops
from p_eagle_cuda.buffers import Buffers, PassInputs
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.linear import LinearLayers
from p_eagle_cuda.reference import STATISTIC_COLUMNS, LayerCache
from p_eagle_cuda.tracing import Tracer
from p_eagle_cuda.weights import DrafterWeights

# What a pass calls, on any backend of the linear layers.
PASS_OPS = (
    "embed_norm_concat", "gate_rows", "gather_taps", "gemm", "gemm_residual", "gemm_swiglu",
    "linear_residual", "lm_head_topk", "norm_rows", "norm_swiglu", "paged_attention",
    "plan_attention", "prepare_inputs", "project_taps", "qkv_rope_cache", "rope_cache",
)  # fmt: skip


class Drafts(NamedTuple):
    """What a pass drafts. Views of the drafter's buffers, valid until its next pass.

    Where there is no draft, because the request has no valid rows or the position no slot in the
    cache, the ids are -1, logits and lse -inf.
    """

    token_ids: Tensor  # [B, K] int64, the most likely token of each position
    top_ids: Tensor  # [B, K, k] int64, the k most likely, best first
    top_logits: Tensor  # [B, K, k] float32
    lse: Tensor  # [B, K] float32, log-sum-exp of all logits: log p = logit - lse

    @classmethod
    def of(cls, top_ids: Tensor, top_logits: Tensor, lse: Tensor, k: int) -> Drafts:
        """From what the head writes, a row for each of k positions of each request."""
        shape = (-1, k, top_ids.shape[-1])
        ids = top_ids.view(shape)
        return cls(ids[..., 0], ids, top_logits.view(shape), lse.view(-1, k))

    def first(self, num_requests: int) -> Drafts:
        """Of the first requests only."""
        return Drafts(*(x[:num_requests] for x in self))


class DrafterPass:
    """Launches the kernels of passes, which all use the same buffers.

    It reads nothing from the device, waits for nothing and allocates nothing, so a CUDA graph may
    record it. The numbers of rows and requests that the host knows are those that the tensors have
    room for; which of the rows exist is decided by `prepare_inputs` on the device.
    """

    def __init__(
        self,
        config: DrafterConfig,
        weights: DrafterWeights,
        caches: Sequence[LayerCache],
        buffers: Buffers,
        linear: LinearLayers,
        tracer: Tracer,
        top_k: int,
    ) -> None:
        """Take what the passes work with; `top_k` candidates are returned per position."""
        self.config, self.weights, self.caches = config, weights, list(caches)
        self.buffers, self.linear, self.tracer, self.top_k = buffers, linear, tracer, top_k

    def run(self, given: PassInputs, k: int) -> Drafts:
        """Draft k tokens for every request.

        Args:
            given: The target's rows.
            k: Tokens to draft for each request, at most K.

        Returns:
            The drafts, in the buffers. Requests without rows get -1, -inf, -inf.
        """
        config, w, buffers, tracer = self.config, self.weights, self.buffers, self.tracer
        B = given.num_requests
        R, eps = given.num_rows + B * (k - 1), config.rms_norm_eps
        block_size = self.caches[0].k.shape[2]
        Nq, Nkv, D = config.num_heads, config.num_kv_heads, config.head_dim
        op, linear = tracer.name(ops), tracer.name(self.linear.for_rows(R))

        work = ops.slice_work(buffers.attention_work, R, B, Nq, Nkv, D)
        inputs = op.prepare_inputs(
            given.target_tokens, given.target_positions, given.query_start, given.num_rejected,
            given.next_tokens, given.block_table, k, config.mask_token_id, block_size, len(w.rope),
            out=buffers.inputs(B, R, k), work=work, num_heads=Nq, num_kv_heads=Nkv,
        )  # fmt: skip
        num_rows = inputs.row_start[B:]
        hidden = linear.project_taps(
            given.taps, inputs.source_row, num_rows, w.fc, w.input_norm, w.fc_norms, eps,
            out=buffers.hidden[:R], weight_scale=w.fc_scale,
        )  # fmt: skip
        first = w.layers[0]
        assert first.hidden_norm is not None, "layer 0 of a drafter norms the hidden state"
        x, residual = op.embed_norm_concat(
            inputs.token_ids, inputs.source_row, num_rows, w.embedding, hidden, w.mask_hidden,
            first.input_norm, first.hidden_norm, eps, config.norm_before_residual,
            out=buffers.concat[:R], residual=buffers.residual[:R],
        )  # fmt: skip
        # Of what `residual` last became: who adds to it leaves them for the next norm, or None.
        sums_buffer = buffers.sum_squares[: -(-config.hidden_size // STATISTIC_COLUMNS) * R]
        sums_buffer, sums = sums_buffer.view(-1, R), None
        for i, (layer, cache) in enumerate(zip(w.layers, self.caches, strict=True)):
            is_first = i == 0
            with tracer.part(f"layer {i}"):
                q = linear.qkv_rope_cache(
                    x if is_first else residual, None if is_first else layer.input_norm, layer.qkv,
                    layer.qkv_bias, layer.q_norm, layer.k_norm, w.rope, inputs.positions,
                    inputs.slots, num_rows, cache.k_scale, cache.v_scale, eps, cache.k, cache.v,
                    q=buffers.q[:R], sum_squares=None if is_first else sums,
                    mask_heads=w.mask_heads if is_first else None,
                    source_row=inputs.source_row if is_first else None,
                    weight_scale=layer.qkv_scale,
                )  # fmt: skip
                attended = op.paged_attention(
                    q, cache.k, cache.v, cache.k_scale, cache.v_scale, given.block_table,
                    inputs.row_start, inputs.seq_lens, inputs.positions, softmax_scale=D**-0.5,
                    work=work, workspace=buffers.attention_workspace, out=buffers.attended[:R],
                )  # fmt: skip
                sums = linear.linear_residual(
                    attended, layer.o, layer.o_bias, num_rows, residual, sums_buffer,
                    weight_scale=layer.o_scale,
                )  # fmt: skip
                activated = linear.norm_swiglu(
                    residual, layer.post_norm, layer.gate_up, num_rows, eps,
                    out=buffers.activated[:R], sum_squares=sums,
                    gate_up_scale=layer.gate_up_scale,
                )  # fmt: skip
                sums = linear.linear_residual(
                    activated, layer.down, None, num_rows, residual, sums_buffer,
                    weight_scale=layer.down_scale,
                )  # fmt: skip
        N = B * k
        ids, logits, lse = op.lm_head_topk(
            residual, inputs.sample_rows, w.norm, w.lm_head, w.draft_to_target, self.top_k, eps,
            out=(buffers.top_ids[:N], buffers.top_logits[:N], buffers.lse[:N]),
            sum_squares=sums, weight_scale=w.lm_head_scale, workspace=buffers.head_workspace,
        )  # fmt: skip
        return Drafts.of(ids, logits, lse, k)
