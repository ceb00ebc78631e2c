"""The P-EAGLE drafter: K tokens for every request of a batch in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p_eagle_cuda._registry import compiled
from p_eagle_cuda.buffers import (
    Buffers,
    BufferSpec,
    DeviceSize,
    PassInputs,
    PassLimits,
    batch_sizes_up_to,
    copy_together,
    format_plan,
    plan_buffers,
)
from p_eagle_cuda.chunking import run_in_chunks
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.cuda_graphs import CudaRecorder, GraphCache, PassShape, Recorder
from p_eagle_cuda.cuda_limits import cuda_refusals
from p_eagle_cuda.drafter_pass import PRUNE_ABOVE, DrafterPass, Drafts
from p_eagle_cuda.errors import BackendError
from p_eagle_cuda.input_checks import check_contents, check_inputs
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.linear import LinearChoice, LinearLayers, architecture_of
from p_eagle_cuda.linear_table import LinearTable
from p_eagle_cuda.precision import kv_cache_dtype
from p_eagle_cuda.reference import LayerCache
from p_eagle_cuda.tracing import Tracer
from p_eagle_cuda.weights import DrafterWeights, load_drafter_weights

__all__ = ["Drafter", "Drafts"]


class Drafter:
    """A loaded drafter with its paged cache and its buffers, all allocated at construction.

    The drafter keeps its own keys and values of every accepted token. It shares block tables and
    positions with the target: the token at position p has its row at position p - 1, beside the
    target's hidden state there.

    A batch with at most K + 1 target rows per request, on average, as when decoding, is copied to
    static buffers and padded to one of a few batch sizes. On CUDA a graph of the pass is recorded
    for each size when it first comes, or by `capture_graphs`, and replayed. Larger batches, prompts
    among them, are launched kernel by kernel.
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
        joined_taps: bool = False,
        linear: str | LinearTable = "auto",
        prune_above: int = PRUNE_ABOVE,
        cuda_graphs: bool = True,
        batch_sizes: Sequence[int] | None = None,
        max_graphs: int = 64,
        graph_pool: Any = None,  # noqa: ANN401 - torch has no name for it
        nvtx: bool = False,
        debug: bool = False,
    ) -> None:
        """Allocate the buffers of a drafter.

        Args:
            config: The checkpoint's configuration.
            weights: Its packed weights; their device and working dtype are the drafter's.
                Positions past the end of their rope table get no slot in the cache, and no draft.
            caches: One paged cache per layer, from `allocate_cache` or a serving engine's own.
            num_speculative_tokens: K, the most that a pass drafts. May exceed the K of training;
                the later positions are then rarely accepted.
            max_requests: Most requests in one pass.
            max_target_rows: Target rows that go through the layers together; a batch that has
                more, as prompts do, goes through in chunks of so many.
            top_k: Candidates returned per position, 1 to 16.
            joined_taps: Whether `propose` gets the taps side by side, in one tensor
                ``[T, n Ht]``. Not for checkpoints with a norm of its own for each tap.
            linear: Backend of the linear layers: "fused" kernels, which are made for up to 32
                rows; "torch", which is cuBLAS on CUDA; "cutlass", for many rows on sm_90 and
                sm_100; "auto" for what the package's table says; or another such table. See
                `linear_backends`.
            prune_above: Passes of more rows than this, T + B (k - 1), compute in the last layer
                only keys and values of rows that no draft is sampled from. Drafts stay the same
                but for rounding; it takes two launches more, and saves work where that, and not
                the reading of weights, takes the time.
            cuda_graphs: Whether padded batches are replayed as graphs on CUDA. Launched kernel by
                kernel they give the same bits.
            batch_sizes: What batches are padded to, ascending; 1, 2, 4, 8, 12, 16 and so on up to
                `max_requests` if None, at most 256.
            max_graphs: Graphs that are kept, one for each batch size and number of drafts that
                comes up; the least recently used goes.
            graph_pool: Memory pool of other graphs to share, from `torch.cuda.graph_pool_handle`.
            nvtx: Push NVTX ranges named by layer and op. Graphs show their kernels' names instead.
            debug: Check the contents of arguments, launch kernel by kernel, wait for each and name
                the one that fails. Slow.

        Raises:
            BackendError: `linear` is no backend, or one that cannot run these weights; or the
                kernels do not take a drafter like this.
            ValueError: A size is out of range, or the caches do not fit the configuration.
        """
        K, dtype, device = num_speculative_tokens, weights.dtype, weights.norm.device
        for name, value in (
            ("num_speculative_tokens", K),
            ("max_requests", max_requests),
            ("max_target_rows", max_target_rows),
            ("top_k", top_k),
            ("max_graphs", max_graphs),
        ):
            if value < 1:
                raise ValueError(f"Drafter: {name} must be at least 1, got {value}")
        if prune_above < 0:
            raise ValueError(f"Drafter: prune_above must be at least 0, got {prune_above}")
        self.config, self.weights, self.caches = config, weights, list(caches)
        self.block_size = _common_block_size(config, self.caches)
        self.num_speculative_tokens, self.top_k = K, top_k
        if joined_taps and weights.fc_norms is not None:
            raise ValueError(
                "Drafter: the checkpoint has a norm for each tap, so taps must not be joined"
            )
        sizes = batch_sizes_up_to(max_requests) if batch_sizes is None else tuple(batch_sizes)
        if not sizes or min(sizes) < 1 or sorted(set(sizes)) != list(sizes):
            raise ValueError(f"Drafter: batch_sizes must ascend from at least 1, got {sizes}")
        self.limits = PassLimits(
            num_speculative_tokens=K, top_k=top_k, max_requests=max_requests,
            max_target_rows=max_target_rows, max_blocks=-(-len(weights.rope) // self.block_size),
            batch_sizes=sizes, has_joined_taps=joined_taps,
        )  # fmt: skip
        refusals = cuda_refusals(
            config, dtype, self.caches, self.limits.most_requests * K, top_k,
            architecture_of(device), compiled().cuda_archs,
        )  # fmt: skip
        if refusals:
            raise BackendError(f"Drafter: on CUDA {'; '.join(refusals)}")
        self._dtype, self._device, self._debug = dtype, device, debug
        plan = plan_buffers(config, self.limits, dtype, DeviceSize.of(device, config.head_dim))
        self._buffers = Buffers.allocate(plan, device)
        layers = LinearLayers(
            weights, config.num_taps, self.limits.most_rows, self._buffers.linear_workspace, linear
        )
        self.buffer_plan: dict[str, BufferSpec] = {**plan, **layers.plan}
        self._pass = DrafterPass(
            config, weights, self.caches, self._buffers, layers,
            Tracer(device, nvtx=nvtx, debug=debug), top_k,
            prune_above,
        )  # fmt: skip
        record = _recorder(device, graph_pool) if cuda_graphs and not debug else None
        self._graphs = (
            GraphCache(self._launch_padded, self._warm_up, record, max_graphs) if record else None
        )

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
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        weights: str = "auto",
        kv_dtype: str | torch.dtype = "auto",
        k_scale: float = 1.0,
        v_scale: float = 1.0,
        quantized_cache: bool | str | Path = False,
        max_position: int | None = None,
        target_embedding: Tensor | None = None,
        target_lm_head: Tensor | None = None,
        progress: bool = True,
        **options: Any,  # noqa: ANN401 - the constructor has their types
    ) -> Drafter:
        """Load a checkpoint folder and allocate its cache.

        Args:
            path: Folder with config.json and safetensors.
            num_speculative_tokens: K, drafted in each pass.
            max_requests: Most requests in one pass.
            max_target_rows: Target rows that go through the layers together.
            num_blocks: Blocks in the cache.
            block_size: Positions in a block.
            dtype: Working dtype; the checkpoint's if None.
            device: Where the weights and buffers go.
            weights: "auto" keeps the matrices in the working dtype; "bf16" does so too, and is an
                error if that is not bfloat16; "fp8_head" quantises the output head; "fp8" all
                matrices: fc, the layers' and the head. Quantised matrices are float8_e4m3fn with
                a scale for each output row (`precision.quantize_rows`); norms, biases and the
                embedding stay as they are. On CUDA they run on the fused kernels at any row count.
                "w8a8" is "fp8" with the rows that the linear layers multiply, those of the head
                excepted, rounded to FP8 too (`precision.quantize_activations`): on every device
                and for any number of rows, so that no draft depends on its batch because of it.
                On Hopper more than 32 rows then take FP8 tensor cores.
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
            target_embedding: ``[V, H]`` for checkpoints that share the target's table.
            target_lm_head: ``[V, H]`` for checkpoints that share the target's head.
            progress: Show a progress bar for a large checkpoint.
            options: Further ones of the constructor: `top_k`, `linear`, `cuda_graphs` and so on.

        Raises:
            ConfigError: The configuration is missing, malformed or not supported, or the working
                dtype does not go with `weights` or `kv_dtype`.
            CheckpointError: The tensors are not those that the configuration calls for.
            BackendError: `linear` is no backend, or one that cannot run these weights; or the
                kernels do not take a drafter like this.
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
            max_requests=max_requests, max_target_rows=max_target_rows, **options,
        )  # fmt: skip

    def linear_backends(self) -> tuple[LinearChoice, ...]:
        """Which backend runs each linear layer at how many rows, and why; a line each as str."""
        return self._pass.linear.choices

    def describe_buffers(self) -> str:
        """Every buffer with its shape, dtype and size, largest first, and their sum."""
        return format_plan(self.buffer_plan)

    def capture_graphs(self, ks: Sequence[int] | None = None, *, progress: bool = True) -> None:
        """Record the graphs of all batch sizes now, and not when each is first needed.

        Does nothing where there are no graphs: on the CPU, with ``cuda_graphs=False``, or when
        debugging.

        Args:
            ks: Numbers of drafts to record for; K alone if None.
            progress: Show a progress bar.
        """
        ks = (self.num_speculative_tokens,) if ks is None else ks
        for k in ks:
            self._check_k(k)
        if self._graphs is not None:
            sizes = self.limits.batch_sizes[::-1]  # the smaller ones then need no more memory
            self._graphs.capture([PassShape(size, k) for k in ks for size in sizes], progress)

    def static_inputs(self, num_requests: int, num_target_rows: int) -> PassInputs:
        """Where a batch of this size may be written to spare `propose` from copying it.

        Args:
            num_requests: B.
            num_target_rows: T, at most K + 1 rows per request of the batch size that B is padded
                to.

        Returns:
            Views of static buffers, to be filled and given to `propose`; each may also be
            replaced. Valid for the drafter's life.

        Raises:
            ValueError: There are no static buffers for such a batch.
        """
        if self.limits.batch_size(num_requests, num_target_rows) is None:
            raise ValueError(
                f"Drafter.static_inputs: expected at most {self.limits.batch_sizes[-1]} requests "
                f"with {self.num_speculative_tokens + 1} target rows each, got {num_requests} and "
                f"{num_target_rows} rows"
            )
        return self._buffers.static_inputs(num_requests, num_target_rows)

    def propose(
        self,
        target_tokens: Tensor,
        target_positions: Tensor,
        taps: Sequence[Tensor],
        query_start: Tensor,
        num_rejected: Tensor,
        next_tokens: Tensor,
        block_table: Tensor,
        *,
        k: int | None = None,
    ) -> Drafts:
        """Draft tokens for every request, and store the keys and values of its valid rows.

        Every valid target row must pass through here once, prompts included, in order: they are
        the drafter's context. `ops.prepare_inputs` defines the row layout. On CUDA it neither
        waits for the device nor allocates, but to record a graph and to cut a batch into chunks.

        Args:
            target_tokens: ``[T]`` int64 or int32, ids the target has just read, requests adjacent.
            target_positions: ``[T]`` int64, their absolute positions.
            taps: n tensors ``[T, Ht]`` in the working dtype, the tapped hidden states of the rows;
                with `joined_taps` one ``[T, n Ht]``.
            query_start: ``[B + 1]`` int32, first row of each request, then their total, at most T.
                Requests without rows are padding.
            num_rejected: ``[B]`` int32, rows at the end of each request that failed verification.
            next_tokens: ``[B]`` int64 or int32, the token after each request's last valid row.
            block_table: ``[B, max_blocks]`` int32.
            k: Tokens to draft for each request; K if None. May differ from pass to pass.

        Returns:
            The drafts; row b is request b's. A request without valid rows gets -1, -inf, -inf.

        Raises:
            ValueError: More requests than the drafter was built for, or a tensor on the wrong
                device or of the wrong shape, dtype or strides.
            RuntimeError: A kernel could not be launched.
        """
        given = PassInputs(
            target_tokens, target_positions, tuple(taps), query_start, num_rejected, next_tokens,
            block_table,
        )  # fmt: skip
        k = self.num_speculative_tokens if k is None else k
        self._check_k(k)
        check_inputs(given, self.config, self.limits.has_joined_taps, self._dtype, self._device)
        B = given.num_requests
        if B > self.limits.max_requests:
            raise ValueError(
                f"Drafter.propose: built for at most {self.limits.max_requests} requests, got {B}"
            )
        if self._debug:
            check_contents(
                given, len(self.weights.embedding), len(self.caches[0].k), self.block_size
            )
        size = self.limits.batch_size(B, given.num_rows)
        if size is None:
            given = given._replace(
                target_tokens=given.target_tokens.long(), next_tokens=given.next_tokens.long()
            )
            return run_in_chunks(
                self._pass.run, given, k, self.limits.max_target_rows, self._buffers
            )
        shape = PassShape(size, k)
        graph = self._graphs.find(shape) if self._graphs is not None else None
        stage(given, self._buffers, size if graph is None else graph.batch_size)
        if self._graphs is None or graph is None:
            drafts = self._launch_padded(shape)
        else:
            drafts = self._graphs.replay(graph)
        return drafts.first(B)

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= self.num_speculative_tokens:
            raise ValueError(f"Drafter: k must be 1 to K = {self.num_speculative_tokens}, got {k}")

    def _launch_padded(self, shape: PassShape) -> Drafts:
        """Launch a pass over the static inputs."""
        rows = self.limits.padded_rows(shape.batch_size)
        return self._pass.run(self._buffers.static_inputs(shape.batch_size, rows), shape.k)

    def _warm_up(self, shape: PassShape) -> None:
        """The same without a request that has rows, so that nothing is written to the cache."""
        rows = self.limits.padded_rows(shape.batch_size)
        static = self._buffers.static_inputs(shape.batch_size, rows)
        no_rows = self._buffers.no_rows[: shape.batch_size + 1]
        self._pass.run(static._replace(query_start=no_rows), shape.k)


def stage(given: PassInputs, buffers: Buffers, batch_size: int) -> None:
    """Copy a batch to the static buffers, padded to `batch_size` with requests without rows.

    What lies there already is not copied.
    """
    B, T = given.num_requests, given.num_rows
    static = buffers.static_inputs(B, T)
    columns = min(given.block_table.shape[1], static.block_table.shape[1])
    copy_together(
        [
            (static.target_tokens, given.target_tokens),
            (static.target_positions, given.target_positions),
            (static.next_tokens, given.next_tokens),
            *zip(static.taps, given.taps, strict=True),
            (static.query_start, given.query_start),
            (static.num_rejected, given.num_rejected),
            (static.block_table[:, :columns], given.block_table[:, :columns]),
        ]
    )
    if columns < static.block_table.shape[1]:
        static.block_table[:, columns:].fill_(-1)
    if batch_size > B:
        buffers.static_query_start[B + 1 : batch_size + 1].fill_(T)


def _recorder(device: torch.device, graph_pool: Any) -> Recorder | None:  # noqa: ANN401
    return CudaRecorder(device, graph_pool) if device.type == "cuda" else None


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
