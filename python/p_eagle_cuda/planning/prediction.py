"""How long a pass is predicted to take on a GPU, kernel by kernel; a model, and no measurement.

What moves is what must, `phases`, times what the emulator has counted beyond that, `traffic`. The
rates are the GPU's; what kernels get of them is assumed, in `ASSUMED`. Every kernel finds L2 empty,
so rows that it gets from the one before count as if they came from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.drafter_pass import PRUNE_ABOVE
from p_eagle_cuda.linear import choose_backend, cutlass_size_refusals, size_refusals
from p_eagle_cuda.linear_table import ABOVE, LinearTable, kernel_of
from p_eagle_cuda.planning.gpus import Gpu
from p_eagle_cuda.planning.phases import (
    ACTIVATION_BYTES,
    BF16,
    Batch,
    Phase,
    Precision,
    floor_us,
    linear_layers,
    phases,
    total_bytes,
)
from p_eagle_cuda.planning.tiles import collective_rows, partial_bytes, tile_tokens
from p_eagle_cuda.planning.traffic import PassKind, PassTraffic

# The op of the linear backends behind each phase that has a choice of them.
LINEAR_OPS_OF_PHASES = {
    "project_taps": "project_taps", "qkv_rope_cache": "qkv_rope_cache", "o": "linear_residual",
    "norm_swiglu": "norm_swiglu", "down": "linear_residual",
}  # fmt: skip


@dataclass(frozen=True)
class Assumed:
    """What a kind of kernel is taken to get of a GPU, and to lose.

    About what is published for kernels of the kind; none of it was measured with these.

    Attributes:
        bandwidth: Share of the rate of large copies.
        products: Share of the rate of large products.
        fixed_us: Lost when it starts and ends.
        gap_us: Lost between it and the next one.
        least_us: It never takes less.
    """

    bandwidth: float
    products: float
    fixed_us: float
    gap_us: float
    least_us: float = 0.0


_GAP, _CUBLAS_GAP = 0.7, 1.0  # of programmatic dependent launches in a graph, and of others
ASSUMED = {
    "mma.sync": Assumed(0.93, 0.82, 0.5, _GAP),
    "wgmma": Assumed(0.93, 0.82, 0.5, _GAP),
    "wgmma fp8": Assumed(0.93, 0.82, 0.5, _GAP),
    "cuBLAS": Assumed(0.90, 0.82, 3.0, _CUBLAS_GAP),
    "head": Assumed(0.93, 0.85, 3.0, _GAP),  # its last CTA merges lists
    "attention": Assumed(0.85, 0.85, 0.0, _GAP, least_us=4.0),
    "CUTLASS": Assumed(0.90, 0.82, 3.0, _GAP),
    "rows": Assumed(0.70, 1.0, 0.0, _GAP, least_us=2.0),
    "rows of cuBLAS": Assumed(0.70, 1.0, 0.0, _CUBLAS_GAP, least_us=2.0),
}
# What `mma.sync` gets of the newer tensor cores' rate, where they have an instruction of their own.
MMA_SYNC_SHARE = {"sm_90": 0.6, "sm_100": 0.25}
# Of products of two FP8 factors, in tiles of up to so many tokens: in larger ones each CTA takes as
# long to quantise its rows as it gains.
FP8_SPEEDUP, FP8_SPEEDUP_TOKENS = 2, 128
EXPONENTIALS_SHARE = 1 / 0.8  # some of them are computed on other units


@dataclass(frozen=True)
class KernelPrediction:
    """One kernel of a pass, or on cuBLAS the few that take its place."""

    kernel: str
    runs_on: str
    launches: int
    needed_bytes: int  # that memory cannot avoid moving
    moved_bytes: int  # L2 empty before each launch
    us: float


@dataclass(frozen=True)
class Prediction:
    """Of one pass of a batch; times are predicted microseconds."""

    batch: Batch
    floor_us: float
    bytes: int  # that must move
    kernels: Sequence[KernelPrediction] = field(default_factory=list)

    @property
    def predicted_us(self) -> float:
        """All kernels, one after the other."""
        return sum(kernel.us for kernel in self.kernels)

    @property
    def launches(self) -> int:
        """Of the pass."""
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def moved_bytes(self) -> int:
        """Of all kernels."""
        return sum(kernel.moved_bytes for kernel in self.kernels)


class PassModel:
    """Predicts passes of one drafter on one GPU."""

    def __init__(
        self,
        config: DrafterConfig,
        gpu: Gpu,
        precision: Precision = BF16,
        linear: str = "auto",
        traffic: PassTraffic | None = None,
    ) -> None:
        """Choose what runs the linear layers, as a `Drafter` would.

        Args:
            config: The drafter's.
            gpu: Where.
            precision: Of its weights and caches.
            linear: As in `Drafter`: "auto", "fused", "torch" or "cutlass".
            traffic: What was counted; the counts that come with the package if None.

        Raises:
            BackendError: No backend can run a layer of this drafter.
        """
        self.config, self.gpu, self.precision = config, gpu, precision
        self.traffic = PassTraffic.read() if traffic is None else traffic
        is_fp8 = precision.weight == 1
        table = LinearTable.read() if linear == "auto" else linear
        layers = linear_layers(config)
        sizes = {
            "project_taps": [layers["fc"]],
            "qkv_rope_cache": [layers["qkv of the first layer"], layers["qkv"]],
            "linear_residual": [layers["o"], layers["down"]],
            "norm_swiglu": [layers["gate_up"]],
        }
        columns = {op: {x[1] for x in found} for op, found in sizes.items()}
        columns["project_taps"] = {config.target_hidden_size}
        refusals = size_refusals(columns, config.hidden_size, config.head_dim)
        on_cutlass = cutlass_size_refusals(sizes, gpu.architecture)
        dtype = torch.float8_e4m3fn if is_fp8 else torch.bfloat16
        self._choices = {
            op: choose_backend(
                op, table, gpu.architecture, dtype, refusals.get(op), on_cutlass.get(op)
            )
            for op in sizes
        }

    def predict(self, batch: Batch) -> Prediction:
        """One pass of this batch, its rows in the buffers of a graph."""
        needed = phases(self.config, batch, self.precision)
        floor = floor_us(needed, self.gpu.bytes_per_s, self.gpu.flops_per_s)
        kernels, firsts = [], set()
        for phase in self.phases(batch):
            kernels.append(self._kernel(phase, batch, is_first=phase.kernel not in firsts))
            firsts.add(phase.kernel)
        return Prediction(batch, floor, total_bytes(needed), kernels)

    def phases(self, batch: Batch) -> list[Phase]:
        """The launches of such a pass, on the fused backend."""
        prunes = batch.padded_rows > max(PRUNE_ABOVE, batch.sampled_rows)
        return phases(self.config, batch, self.precision, prunes=prunes)

    def runs_on(self, kernel: str, padded_rows: int) -> str:
        """What runs a phase, as a key of `ASSUMED`."""
        kinds = {"paged_attention": "attention", "lm_head_topk": "head"}
        if kernel not in LINEAR_OPS_OF_PHASES:
            return kinds.get(kernel, "rows")
        choice = self._choices[LINEAR_OPS_OF_PHASES[kernel]]
        if choice.fused_rows is not None and padded_rows > choice.fused_rows:
            return ABOVE[choice.above]
        found = kernel_of(self.gpu.architecture, padded_rows, self.precision.kind)
        return "wgmma fp8" if found == "wgmma" and self.precision.fp8_activations else found

    def _kernel(self, phase: Phase, batch: Batch, *, is_first: bool) -> KernelPrediction:
        _, padded_rows = phase.num_rows(batch)
        runs_on = self.runs_on(phase.kernel, padded_rows)
        if runs_on in ABOVE.values():
            return self._product(phase, batch, runs_on, is_first=is_first)
        kind = PassKind.of(self.precision, batch.padded_rows)
        counted = self.traffic.find(kind, phase.kernel)
        tiles, products = self._tiles(phase, batch, runs_on)
        # Of several tiles of tokens each reads the whole weight.
        moved = (phase.all_bytes + (tiles - 1) * phase.weights) * counted.moved_over_needed
        moved += counted.partial_over_planned * partial_bytes(
            phase, self.config, batch, runs_on, self.gpu.num_sms
        )
        us = self._us(runs_on, moved, products)
        if phase.kernel == "paged_attention":
            exponentials = phase.flops / (4 * self.config.head_dim)
            share = ASSUMED[runs_on].bandwidth * EXPONENTIALS_SHARE
            us = max(us, 1e6 * exponentials / (self.gpu.exponentials_per_s * share))
        us += ASSUMED[runs_on].gap_us
        return KernelPrediction(phase.kernel, runs_on, 1, phase.bytes, round(moved), us)

    def _tiles(self, phase: Phase, batch: Batch, runs_on: str) -> tuple[int, float]:
        """Tiles of tokens that have rows, and operations, those of empty rows too.

        Two for each product, or as many as take its time.
        """
        if not phase.elements:
            return 1, phase.flops
        rows, padded_rows = phase.num_rows(batch)
        tokens = tile_tokens(runs_on, padded_rows)
        tiles = -(-rows // tokens)
        is_faster = runs_on == "wgmma fp8" and tokens <= FP8_SPEEDUP_TOKENS
        per_product = 2.0 / (FP8_SPEEDUP if is_faster else 1)
        return int(tiles), per_product * phase.elements * tiles * tokens

    def _us(self, runs_on: str, moved: float, products: float) -> float:
        """Without the gap after it."""
        assumed, gpu = ASSUMED[runs_on], self.gpu
        share = assumed.products
        if runs_on in ("mma.sync", "head", "attention"):
            share *= MMA_SYNC_SHARE.get(gpu.architecture, 1.0)
        streaming = moved / (gpu.bytes_per_s * assumed.bandwidth)
        multiplying = products / (gpu.flops_per_s * share)
        return max(1e6 * max(streaming, multiplying) + assumed.fixed_us, assumed.least_us)

    def _product(
        self, phase: Phase, batch: Batch, runs_on: str, *, is_first: bool
    ) -> KernelPrediction:
        """A product by itself, with row kernels around it.

        cuBLAS's is of all rows that buffers have room for. CUTLASS's is of tiles of those that
        exist, and gates as it stores.
        """
        (rows, R), config = phase.num_rows(batch), self.config
        is_cutlass = runs_on == ABOVE["cutlass"]
        norm = [2 * config.hidden_size]
        around = {  # elements per row that each row kernel reads and writes
            "project_taps": [2 * config.num_taps * config.target_hidden_size],
            "qkv_rope_cache": [*([] if is_first else norm), 2 * phase.matrix[0]],
            "norm_swiglu": [*norm, *([] if is_cutlass else [3 * config.intermediate_size])],
        }.get(phase.kernel, [])
        moved = phase.all_bytes
        multiplied, row_kernel = (
            (collective_rows(rows, R), "rows") if is_cutlass else (R, "rows of cuBLAS")
        )
        products = 2.0 * phase.elements * multiplied
        us = self._us(runs_on, moved, products) + ASSUMED[runs_on].gap_us
        for width in around:
            size = width * R * ACTIVATION_BYTES
            moved += size
            us += self._us(row_kernel, size, 0) + ASSUMED[row_kernel].gap_us
        return KernelPrediction(phase.kernel, runs_on, 1 + len(around), phase.bytes, moved, us)
