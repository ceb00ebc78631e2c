"""The P-EAGLE drafter: K tokens for every request of a batch in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from p_eagle_cuda import ops
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.linear import LinearChoice, LinearLayers
from p_eagle_cuda.linear_table import LinearTable
from p_eagle_cuda.precision import kv_cache_dtype
from p_eagle_cuda.reference import STATISTIC_COLUMNS, LayerCache, PreparedInputs
from p_eagle_cuda.weights import DrafterWeights, load_drafter_weights


class Drafts(NamedTuple):
    """What a pass drafts. Views of the drafter's buffers, valid until its next pass."""

    token_ids: Tensor  # [B, K] int64, the most likely token of each position
    top_ids: Tensor  # [B, K, k] int64, the k most likely, best first
    top_logits: Tensor  # [B, K, k] float32
    lse: Tensor  # [B, K] float32, log-sum-exp of all logits: log p = logit - lse


class Drafter:
    """A loaded drafter with its paged cache and its buffers, all allocated at construction.

    The drafter keeps its own keys and values of every accepted token. It shares block tables and
    positions with the target: the token at position p has its row at position p - 1, beside the
    target's hidden state there.
    """

    def __init__(
        self,
        config: DrafterConfig,
        weights: DrafterWeights,
        caches: Sequence[LayerCache],
        *,
        num_speculative_tokens: int,
        max_requests: int,
        max_target_rows: int,
        top_k: int = 1,
        linear: str | LinearTable = "auto",
    ) -> None:
        """Allocate the buffers of a drafter.

        Args:
            config: The checkpoint's configuration.
            weights: Its packed weights; their device and working dtype are the drafter's.
                Positions past the end of their rope table get no slot in the cache.
            caches: One paged cache per layer, from `allocate_cache` or a serving engine's own.
            num_speculative_tokens: K, drafted in each pass. May exceed the K of training; the
                later positions are then rarely accepted.
            max_requests: Most requests in one pass.
            max_target_rows: Most target rows T in one pass: K + 1 a request when decoding, more
                when prompts are read.
            top_k: Candidates returned per position, 1 to 16.
            linear: Backend of the linear layers: "fused" kernels, which are made for up to 32
                rows; "torch", which is cuBLAS on CUDA; "auto" for what the package's table says;
                or another such table. See `linear_backends`.

        Raises:
            BackendError: `linear` is no backend, or one that cannot run these weights.
            ValueError: A size is out of range, or the caches do not fit the configuration.
        """
        K, dtype, device = num_speculative_tokens, weights.dtype, weights.norm.device
        for name, value in (
            ("num_speculative_tokens", K),
            ("max_requests", max_requests),
            ("max_target_rows", max_target_rows),
            ("top_k", top_k),
        ):
            if value < 1:
                raise ValueError(f"Drafter: {name} must be at least 1, got {value}")
        self.config, self.weights, self.caches = config, weights, list(caches)
        self.block_size = _common_block_size(config, self.caches)
        self.num_speculative_tokens = K
        self.max_requests, self.max_target_rows = max_requests, max_target_rows
        self.top_k = top_k

        R, N = max_target_rows + max_requests * (K - 1), max_requests * K
        H, D = config.hidden_size, config.head_dim
        Nq, Nkv = config.num_heads, config.num_kv_heads
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self._inputs = PreparedInputs(
            token_ids=new(R, dtype=torch.int64),
            positions=new(R, dtype=torch.int64),
            slots=new(R, dtype=torch.int64),
            source_row=new(R, dtype=torch.int32),
            row_start=new(max_requests + 1, dtype=torch.int32),
            seq_lens=new(max_requests, dtype=torch.int32),
            sample_rows=new(N, dtype=torch.int32),
        )
        self._hidden, self._residual, self._concat = new(R, H), new(R, H), new(R, 2 * H)
        self._attention = ops.allocate_attention(R, max_requests, Nq, Nkv, D, device)
        self._q, self._attended = new(R, Nq, D), new(R, Nq * D)
        self._activated = new(R, config.intermediate_size)
        self._sum_squares = new(-(-H // STATISTIC_COLUMNS) * R, dtype=wide)
        self._workspace = ops.linear_workspace(device)
        self._linear = LinearLayers(weights, config.num_taps, R, self._workspace, linear)
        self._head_workspace = ops.lm_head_workspace(device, N, top_k)
        self._ids = new(N, top_k, dtype=torch.int64)
        self._logits, self._lse = new(N, top_k, dtype=wide), new(N, dtype=wide)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        num_speculative_tokens: int,
        max_requests: int,
        max_target_rows: int,
        num_blocks: int,
        block_size: int = 16,
        top_k: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        weights: str = "auto",
        kv_dtype: str | torch.dtype = "auto",
        k_scale: float = 1.0,
        v_scale: float = 1.0,
        quantized_cache: bool | str | Path = False,
        max_position: int | None = None,
        linear: str | LinearTable = "auto",
        target_embedding: Tensor | None = None,
        target_lm_head: Tensor | None = None,
        progress: bool = True,
    ) -> Drafter:
        """Load a checkpoint folder and allocate its cache.

        Args:
            path: Folder with config.json and safetensors.
            num_speculative_tokens: K, drafted in each pass.
            max_requests: Most requests in one pass.
            max_target_rows: Most target rows in one pass.
            num_blocks: Blocks in the cache.
            block_size: Positions in a block.
            top_k: Candidates returned per position.
            dtype: Working dtype; the checkpoint's if None.
            device: Where the weights and buffers go.
            weights: "auto" keeps the matrices in the working dtype; "bf16" does so too, and is an
                error if that is not bfloat16; "fp8_head" quantises the output head; "fp8" all
                matrices: fc, the layers' and the head. Quantised matrices are float8_e4m3fn with
                a scale for each output row (`precision.quantize_rows`); norms, biases and the
                embedding stay as they are. On CUDA they run on the fused kernels at any row count.
            kv_dtype: Of the keys and values: "auto" for the working dtype; "bf16" for the same,
                with the same error; "fp8" for float8_e4m3fn. Or one of these as a torch dtype, or
                float8_e5m2. FP8 caches store ``x / scale`` and saturate.
            k_scale: Scale of FP8 keys.
            v_scale: Scale of FP8 values.
            quantized_cache: Keep quantised matrices in a file and take them from it next time: True
                for `p_eagle_cuda-<weights>.cache` in the checkpoint's folder, or another folder.
                Its checksum and the checkpoint's are verified at each load; a file that is
                damaged, or of another checkpoint, is replaced with a warning, and one that cannot
                be written is a warning.
            max_position: First position that is out of bounds; the config's if None.
            linear: Backend of the linear layers, as for the constructor.
            target_embedding: ``[V, H]`` for checkpoints that share the target's table.
            target_lm_head: ``[V, H]`` for checkpoints that share the target's head.
            progress: Show a progress bar for a large checkpoint.

        Raises:
            ConfigError: The configuration is missing, malformed or not supported, or the working
                dtype does not go with `weights` or `kv_dtype`.
            CheckpointError: The tensors are not those that the configuration calls for.
            BackendError: `linear` is no backend, or one that cannot run these weights.
            ValueError: A size is out of range.
        """
        config = DrafterConfig.from_pretrained(path)
        loaded = load_drafter_weights(
            path, config, dtype=dtype, device=device, target_embedding=target_embedding,
            target_lm_head=target_lm_head, max_position=max_position, precision=weights,
            quantized_cache=quantized_cache, progress=progress,
        )  # fmt: skip
        caches = allocate_cache(
            config.num_layers, num_blocks, config.num_kv_heads, block_size, config.head_dim,
            kv_cache_dtype(kv_dtype, loaded.dtype), device, k_scale, v_scale,
        )  # fmt: skip
        return cls(
            config, loaded, caches, num_speculative_tokens=num_speculative_tokens,
            max_requests=max_requests, max_target_rows=max_target_rows, top_k=top_k, linear=linear,
        )  # fmt: skip

    def linear_backends(self) -> tuple[LinearChoice, ...]:
        """Which backend runs each linear layer at how many rows, and why; a line each as str."""
        return self._linear.choices

    def propose(
        self,
        target_tokens: Tensor,
        target_positions: Tensor,
        taps: Sequence[Tensor],
        query_start: Tensor,
        num_rejected: Tensor,
        next_tokens: Tensor,
        block_table: Tensor,
    ) -> Drafts:
        """Draft K tokens for every request, and store the keys and values of its valid rows.

        Every valid target row must pass through here once, prompts included, in order: they are
        the drafter's context. `ops.prepare_inputs` defines the row layout.

        Args:
            target_tokens: ``[T]`` int64, ids the target has just read, requests adjacent.
            target_positions: ``[T]`` int64, their absolute positions.
            taps: n tensors ``[T, Ht]`` in the working dtype, the tapped hidden states of the rows.
            query_start: ``[B + 1]`` int32, first row of each request, then T.
            num_rejected: ``[B]`` int32, rows at the end of each request that failed verification.
            next_tokens: ``[B]`` int64, the token after each request's last valid row.
            block_table: ``[B, max_blocks]`` int32.

        Returns:
            The drafts; row b is request b's.

        Raises:
            ValueError: More requests or rows than the drafter was built for, or a tensor of the
                wrong shape or dtype.
        """
        config, w, K = self.config, self.weights, self.num_speculative_tokens
        T, B = target_tokens.numel(), num_rejected.numel()
        if B > self.max_requests or T > self.max_target_rows:
            raise ValueError(
                f"Drafter.propose: built for at most {self.max_requests} requests and "
                f"{self.max_target_rows} target rows, got {B} and {T}"
            )
        if len(taps) != config.num_taps:
            raise ValueError(
                f"Drafter.propose: the checkpoint reads {config.num_taps} taps, got {len(taps)}"
            )
        R, eps = T + B * (K - 1), config.rms_norm_eps
        inputs = ops.prepare_inputs(
            target_tokens, target_positions, query_start, num_rejected, next_tokens, block_table,
            K, config.mask_token_id, self.block_size, len(w.rope), out=self._slice(B, R),
        )  # fmt: skip
        num_rows = inputs.row_start[B:]
        linear = self._linear.for_rows(R)
        hidden = linear.project_taps(
            taps, inputs.source_row, num_rows, w.fc, w.input_norm, w.fc_norms, eps,
            out=self._hidden[:R], weight_scale=w.fc_scale,
        )  # fmt: skip
        Nq, Nkv, D = config.num_heads, config.num_kv_heads, config.head_dim
        work = ops.plan_attention(
            inputs.row_start, inputs.seq_lens, inputs.positions, Nq, Nkv,
            block_table.shape[1] * self.block_size, 0, False,
            ops.slice_work(self._attention.work, R, B, Nq, Nkv, D),
        )  # fmt: skip
        first = w.layers[0]
        assert first.hidden_norm is not None, "layer 0 of a drafter norms the hidden state"
        x, residual = ops.embed_norm_concat(
            inputs.token_ids, inputs.source_row, num_rows, w.embedding, hidden, w.mask_hidden,
            first.input_norm, first.hidden_norm, eps, config.norm_before_residual,
            out=self._concat[:R], residual=self._residual[:R],
        )  # fmt: skip
        # Of what `residual` last became: who adds to it leaves them for the next norm, or None.
        sums_buffer = self._sum_squares[: -(-config.hidden_size // STATISTIC_COLUMNS) * R]
        sums_buffer, sums = sums_buffer.view(-1, R), None
        for i, (layer, cache) in enumerate(zip(w.layers, self.caches, strict=True)):
            q = linear.qkv_rope_cache(
                x if i == 0 else residual, None if i == 0 else layer.input_norm, layer.qkv,
                layer.qkv_bias, layer.q_norm, layer.k_norm, w.rope, inputs.positions, inputs.slots,
                num_rows, cache.k_scale, cache.v_scale, eps, cache.k, cache.v, q=self._q[:R],
                sum_squares=None if i == 0 else sums, mask_heads=w.mask_heads if i == 0 else None,
                source_row=inputs.source_row if i == 0 else None, weight_scale=layer.qkv_scale,
            )  # fmt: skip
            attended = ops.paged_attention(
                q, cache.k, cache.v, cache.k_scale, cache.v_scale, block_table, inputs.row_start,
                inputs.seq_lens, inputs.positions, softmax_scale=D**-0.5, work=work,
                workspace=self._attention.workspace, out=self._attended[:R],
            )  # fmt: skip
            sums = linear.linear_residual(
                attended, layer.o, layer.o_bias, num_rows, residual, sums_buffer,
                weight_scale=layer.o_scale,
            )  # fmt: skip
            activated = linear.norm_swiglu(
                residual, layer.post_norm, layer.gate_up, num_rows, eps, out=self._activated[:R],
                sum_squares=sums, gate_up_scale=layer.gate_up_scale,
            )  # fmt: skip
            sums = linear.linear_residual(
                activated, layer.down, None, num_rows, residual, sums_buffer,
                weight_scale=layer.down_scale,
            )  # fmt: skip
        ids, logits, lse = ops.lm_head_topk(
            residual, inputs.sample_rows, w.norm, w.lm_head, w.draft_to_target, self.top_k, eps,
            out=(self._ids[: B * K], self._logits[: B * K], self._lse[: B * K]),
            sum_squares=sums, weight_scale=w.lm_head_scale, workspace=self._head_workspace,
        )  # fmt: skip
        shape = (B, K, self.top_k)
        return Drafts(ids.view(shape)[..., 0], ids.view(shape), logits.view(shape), lse.view(B, K))

    def _slice(self, num_requests: int, num_rows: int) -> PreparedInputs:
        """The input buffers, cut to a pass of this size."""
        i, B, R = self._inputs, num_requests, num_rows
        return PreparedInputs(
            token_ids=i.token_ids[:R],
            positions=i.positions[:R],
            slots=i.slots[:R],
            source_row=i.source_row[:R],
            row_start=i.row_start[: B + 1],
            seq_lens=i.seq_lens[:B],
            sample_rows=i.sample_rows[: B * self.num_speculative_tokens],
        )


def _common_block_size(config: DrafterConfig, caches: Sequence[LayerCache]) -> int:
    """The positions in a block, once the caches are known to fit the drafter."""
    if len(caches) != config.num_layers:
        raise ValueError(
            f"Drafter: expected a cache for each of {config.num_layers} layers, got {len(caches)}"
        )
    blocks, _, block_size, _ = caches[0].k.shape
    expected = (blocks, config.num_kv_heads, block_size, config.head_dim)
    for i, cache in enumerate(caches):
        for name, x in (("k", cache.k), ("v", cache.v)):
            if x.shape != expected:
                raise ValueError(
                    f"Drafter: `{name}` of cache {i} must have shape {list(expected)}, "
                    f"got {list(x.shape)}"
                )
    return int(block_size)
