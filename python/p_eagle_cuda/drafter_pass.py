"""One forward pass of the drafter, op by op, in buffers that exist already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from p_eagle_cuda import ops
from p_eagle_cuda.buffers import Buffers, PassInputs
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.linear import LinearLayers, LinearPass
from p_eagle_cuda.reference import STATISTIC_COLUMNS, LayerCache
from p_eagle_cuda.tracing import Tracer
from p_eagle_cuda.weights import DrafterWeights, LayerWeights

# Passes of more rows than this leave out of the last layer what no draft needs. Up to here
# products wait for weights, above it each row counts. Predicted, of 16-bit weights
# on an H200 (790 TFLOP/s, 4.3 TB/s: 184 rows); the two further launches are worth some 15 rows.
PRUNE_ABOVE = 192

# What a pass calls, on any backend of the linear layers.
PASS_OPS = (
    "embed_norm_concat", "gate_rows", "gather_taps", "gemm", "gemm_residual", "gemm_swiglu",
    "linear_residual", "lm_head_topk", "norm_rows", "norm_swiglu", "paged_attention",
    "plan_attention", "prepare_inputs", "project_taps", "prune_rows", "qkv_rope_cache",
    "rope_cache",
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


class _Rows(NamedTuple):
    """The rows that a layer works on: all of a pass, or those that pruning has left."""

    residual: Tensor  # [R, H]
    positions: Tensor  # [R]
    slots: Tensor  # [R]
    row_start: Tensor  # [B + 1]
    sample_rows: Tensor  # [B * K]
    work: Tensor  # the map of their attention

    @property
    def num_rows(self) -> Tensor:
        """That exist: [1]."""
        return self.row_start[-1:]

    @property
    def size(self) -> int:
        """R."""
        return len(self.residual)


class _SplitLayer(NamedTuple):
    """A layer's projections to queries and to keys and values, apart. Views of its weights."""

    queries: LayerWeights
    keys_and_values: LayerWeights

    @classmethod
    def of(cls, layer: LayerWeights, width: int) -> _SplitLayer:
        """With queries in the first `width` rows of the weight."""

        def rows(part: slice) -> LayerWeights:
            bias, scale = layer.qkv_bias, layer.qkv_scale
            return replace(
                layer, qkv=layer.qkv[part], qkv_bias=None if bias is None else bias[part],
                qkv_scale=None if scale is None else scale[part],
            )  # fmt: skip

        return cls(rows(slice(width)), rows(slice(width, None)))


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
        prune_above: int,
    ) -> None:
        """Take what the passes work with; `top_k` candidates are returned per position."""
        self.config, self.weights, self.caches = config, weights, list(caches)
        self.buffers, self.linear, self.tracer, self.top_k = buffers, linear, tracer, top_k
        self.prune_above = prune_above
        self._last = _SplitLayer.of(weights.layers[-1], config.num_heads * config.head_dim)

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
        rows = _Rows(
            residual, inputs.positions, inputs.slots, inputs.row_start, inputs.sample_rows, work
        )
        # Of what the residual last became: who adds to it leaves them for the next norm, or None.
        sums: Tensor | None = None
        for i, (layer, cache) in enumerate(zip(w.layers, self.caches, strict=True)):
            with tracer.part(f"layer {i}"):
                if i == 0:
                    q = self._project_heads(
                        linear, layer, cache, rows, x, None, mask_heads=w.mask_heads,
                        source_row=inputs.source_row,
                    )  # fmt: skip
                elif i == len(w.layers) - 1 and R > max(self.prune_above, B * k):
                    self._project_heads(
                        linear, self._last.keys_and_values, cache, rows, residual,
                        layer.input_norm, sum_squares=sums,
                    )  # fmt: skip
                    rows = self._prune(rows, inputs.seq_lens, given, k)
                    linear = tracer.name(self.linear.for_rows(rows.size))
                    no_cache = cache._replace(k=cache.k[:, :0], v=cache.v[:, :0])
                    q = self._project_heads(
                        linear, self._last.queries, no_cache, rows, rows.residual, layer.input_norm
                    )
                else:
                    q = self._project_heads(
                        linear, layer, cache, rows, residual, layer.input_norm, sum_squares=sums
                    )
                attended = op.paged_attention(
                    q, cache.k, cache.v, cache.k_scale, cache.v_scale, given.block_table,
                    rows.row_start, inputs.seq_lens, rows.positions, softmax_scale=D**-0.5,
                    work=rows.work, workspace=buffers.attention_workspace,
                    out=buffers.attended[: rows.size],
                )  # fmt: skip
                sums_buffer = self._sums_buffer(rows.size)
                sums = linear.linear_residual(
                    attended, layer.o, layer.o_bias, rows.num_rows, rows.residual, sums_buffer,
                    weight_scale=layer.o_scale,
                )  # fmt: skip
                activated = linear.norm_swiglu(
                    rows.residual, layer.post_norm, layer.gate_up, rows.num_rows, eps,
                    out=buffers.activated[: rows.size], sum_squares=sums,
                    gate_up_scale=layer.gate_up_scale,
                )  # fmt: skip
                sums = linear.linear_residual(
                    activated, layer.down, None, rows.num_rows, rows.residual, sums_buffer,
                    weight_scale=layer.down_scale,
                )  # fmt: skip
        N = B * k
        ids, logits, lse = op.lm_head_topk(
            rows.residual, rows.sample_rows, w.norm, w.lm_head, w.draft_to_target, self.top_k, eps,
            out=(buffers.top_ids[:N], buffers.top_logits[:N], buffers.lse[:N]),
            sum_squares=sums, weight_scale=w.lm_head_scale, workspace=buffers.head_workspace,
        )  # fmt: skip
        return Drafts.of(ids, logits, lse, k)

    def _project_heads(
        self,
        linear: LinearPass,
        layer: LayerWeights,
        cache: LayerCache,
        rows: _Rows,
        x: Tensor,
        norm: Tensor | None,
        **options: Tensor | None,
    ) -> Tensor:
        """Store keys and values, and return queries; either may have no heads."""
        num_heads = layer.qkv.shape[0] // self.config.head_dim - 2 * cache.k.shape[1]
        return linear.qkv_rope_cache(
            x, norm, layer.qkv, layer.qkv_bias, layer.q_norm, layer.k_norm, self.weights.rope,
            rows.positions, rows.slots, rows.num_rows, cache.k_scale, cache.v_scale,
            self.config.rms_norm_eps, cache.k, cache.v, q=self.buffers.q[: rows.size, :num_heads],
            weight_scale=layer.qkv_scale, **options,
        )  # fmt: skip

    def _prune(self, rows: _Rows, seq_lens: Tensor, given: PassInputs, k: int) -> _Rows:
        """The rows that drafts are sampled from, moved together, with a map of their attention."""
        config, B = self.config, given.num_requests
        Nq, Nkv, D = config.num_heads, config.num_kv_heads, config.head_dim
        work = ops.slice_work(self.buffers.pruned_work, B * k, B, Nq, Nkv, D)
        pruned = self.tracer.name(ops).prune_rows(
            rows.residual, rows.positions, rows.row_start, rows.sample_rows, seq_lens,
            out=self.buffers.pruned(B, k), work=work, num_heads=Nq, num_kv_heads=Nkv,
            max_keys=given.block_table.shape[1] * self.caches[0].k.shape[2],
        )  # fmt: skip
        return _Rows(
            pruned.x, pruned.positions, rows.slots[: B * k], pruned.row_start, pruned.sample_rows,
            work,
        )  # fmt: skip

    def _sums_buffer(self, num_rows: int) -> Tensor:
        """Where the sums of squares of so many rows of the residual go."""
        groups = -(-self.config.hidden_size // STATISTIC_COLUMNS)
        return self.buffers.sum_squares[: groups * num_rows].view(groups, num_rows)
