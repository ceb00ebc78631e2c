"""What the kernels of a pass must move and compute: the count behind floors and predictions.

A phase is a kernel of `DrafterPass` on the fused backend. Bytes: each weight once, the stored keys
and values of the context once, and the rows that enter the pass. What one kernel hands to the next
is counted apart, in `Phase.rows`, because it can stay in L2. Operations: of rows that exist.
Rejected rows are none; in the first layer all mask rows have the same queries, keys and values; in
the last one only sampled rows need to go on after attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.precision import FP8_ACTIVATIONS, FP8_LAYERS, QUANTIZED

ACTIVATION_BYTES = 2  # of an element of a row: bfloat16


@dataclass(frozen=True)
class Batch:
    """Requests that decode: each has verified k drafts, of which some were accepted.

    Attributes:
        k: K, tokens drafted for each request.
        accepted: By request, accepted drafts; a fraction stands for a mean over many steps.
        contexts: By request, positions whose keys and values are stored already.
    """

    k: int
    accepted: Sequence[float]
    contexts: Sequence[int]

    @classmethod
    def of_equal(cls, size: int, k: int, accepted: float, context: int) -> Batch:
        """Requests that are alike."""
        return cls(k, [accepted] * size, [context] * size)

    @property
    def size(self) -> int:
        """B, requests."""
        return len(self.accepted)

    @property
    def real_rows(self) -> float:
        """Rows of tokens that the target has accepted, its own included."""
        return sum(accepted + 1 for accepted in self.accepted)

    @property
    def rows(self) -> float:
        """All rows that exist: those, and K - 1 mask rows for each request."""
        return self.real_rows + self.size * (self.k - 1)

    @property
    def padded_rows(self) -> int:
        """R, rows that the buffers of a graph have room for: no draft rejected."""
        return self.size * 2 * self.k

    @property
    def sampled_rows(self) -> int:
        """Rows that the head reads."""
        return self.size * self.k


@dataclass(frozen=True)
class Precision:
    """Bytes of an element of what is not a row of activations, and what multiplies weights."""

    weight: int = 2
    head: int = 2
    cache: int = 2
    fp8_activations: bool = False  # of the linear layers, the head's not

    @property
    def kind(self) -> str:
        """Of the weights, as in `linear_table`."""
        return "w8a8" if self.fp8_activations else "fp8" if self.weight == 1 else "16-bit"

    @classmethod
    def of(cls, weights: str, kv_dtype: str) -> Precision:
        """By the names of `p_eagle_cuda.precision`, for the working dtype bfloat16."""
        return cls(
            weight=1 if weights in FP8_LAYERS else 2,
            head=1 if weights in QUANTIZED else 2,
            cache=1 if kv_dtype == "fp8" else 2,
            fp8_activations=weights in FP8_ACTIVATIONS,
        )


BF16 = Precision()  # all of it


class Phase(NamedTuple):
    """One kernel of a pass; all sizes are in bytes."""

    kernel: str
    weights: int = 0
    cache: int = 0  # stored keys and values
    inputs: int = 0  # rows that come from outside: taps, embeddings
    rows: int = 0  # rows that it reads from, or writes for, another kernel
    flops: int = 0  # two for each product; one where both factors are FP8, which is twice as fast
    matrix: tuple[int, int] = (0, 0)  # [rows, columns] of the weight, if there is one
    is_sampled: bool = False  # whether it works on no other rows than those that are sampled

    @property
    def bytes(self) -> int:
        """That memory cannot avoid moving."""
        return self.weights + self.cache + self.inputs

    @property
    def elements(self) -> int:
        """Of the weight."""
        return self.matrix[0] * self.matrix[1]

    @property
    def all_bytes(self) -> int:
        """That the kernel moves by itself, L2 empty before it."""
        return self.bytes + self.rows

    def num_rows(self, batch: Batch) -> tuple[float, int]:
        """Rows of the batch that it works on, and those that its buffers have room for."""
        if self.is_sampled:
            return batch.sampled_rows, batch.sampled_rows
        return batch.rows, batch.padded_rows


def linear_layers(config: DrafterConfig) -> dict[str, tuple[int, int]]:
    """``[rows, columns]`` of each weight that a pass streams, but for the head's."""
    H, I = config.hidden_size, config.intermediate_size  # noqa: E741 - the paper's letter
    q_width = config.num_heads * config.head_dim
    qkv = q_width + 2 * config.num_kv_heads * config.head_dim
    return {
        "fc": (H, config.num_taps * config.target_hidden_size),
        "qkv of the first layer": (qkv, 2 * H),
        "qkv": (qkv, H),
        "o": (H, q_width),
        "gate_up": (2 * I, H),
        "down": (H, I),
    }


def phases(
    config: DrafterConfig, batch: Batch, precision: Precision = BF16, *, prunes: bool = False
) -> list[Phase]:
    """The kernels of a pass, in the order of their launches.

    What must move and be computed does not depend on it, but `prunes` says whether the pass moves
    the rows that are sampled together before the last layer's attention, which takes two launches.
    """
    layers = linear_layers(config)
    real, rows, sampled = batch.real_rows, batch.rows, batch.sampled_rows
    H, V, D = config.hidden_size, config.draft_vocab_size, config.head_dim
    q_width, kv_width = config.num_heads * D, 2 * config.num_kv_heads * D
    contexts, cached = sum(batch.contexts), precision.cache
    flops = 1 if precision.fp8_activations else 2  # of a product in a linear layer

    def elements(count: float) -> int:
        return round(ACTIVATION_BYTES * count)

    def linear(
        kernel: str, name: str, num_rows: float, handed: float, inputs: float = 0, part: int = 0
    ) -> Phase:
        """`num_rows` are multiplied; `handed` and `inputs` are elements of rows.

        `part` is of the weight's rows, where it is not all of them.
        """
        N, K = layers[name]
        N = part or N
        return Phase(
            kernel, weights=N * K * precision.weight, inputs=elements(inputs),
            rows=elements(handed), flops=round(flops * N * K * num_rows), matrix=(N, K),
        )  # fmt: skip

    found = [
        _prepare_inputs(batch),
        linear("project_taps", "fc", real, real * H, inputs=real * layers["fc"][1]),
        # An embedding for each real row, and one for all mask rows.
        Phase("embed_norm_concat", inputs=elements((real + 1) * H),
              rows=elements(real * H + rows * 3 * H)),
    ]  # fmt: skip
    for i in range(config.num_layers):
        is_first, is_last = i == 0, i == config.num_layers - 1
        moves = prunes and is_last and not is_first
        new_keys = round(rows * kv_width * cached)
        name = "qkv of the first layer" if is_first else "qkv"
        read = real * 2 * H if is_first else rows * H
        if moves:
            stored = linear("qkv_rope_cache", name, rows, read, part=kv_width)
            asked = linear("qkv_rope_cache", name, sampled, sampled * (H + q_width), part=q_width)
            found += [
                stored._replace(rows=stored.rows + new_keys),
                Phase("prune_rows", rows=elements(2 * sampled * H), is_sampled=True),
                asked._replace(is_sampled=True),
            ]
        else:
            qkv = linear("qkv_rope_cache", name, real if is_first else rows, read + rows * q_width)
            found += [qkv._replace(rows=qkv.rows + new_keys)]
        keys = sum(
            (n + (a + batch.k) / 2) * (batch.k if is_last else a + batch.k)
            for n, a in zip(batch.contexts, batch.accepted, strict=True)
        )
        on, there = sampled if is_last else rows, sampled if moves else rows
        of_layer = [
            Phase("paged_attention", cache=contexts * kv_width * cached,
                  rows=elements(2 * there * q_width) + new_keys, flops=round(4 * q_width * keys)),
            linear("o", "o", on, there * (q_width + 2 * H)),
            linear("norm_swiglu", "gate_up", on, there * (H + layers["down"][1])),
            linear("down", "down", on, there * (layers["down"][1] + 2 * H)),
        ]  # fmt: skip
        found += [phase._replace(is_sampled=moves) for phase in of_layer]
    head = Phase(
        "lm_head_topk", weights=V * H * precision.head, rows=elements(sampled * H),
        flops=2 * V * H * sampled, matrix=(V, H), is_sampled=True,
    )  # fmt: skip
    return [*found, head]


def total_bytes(found: Sequence[Phase]) -> int:
    """That a pass moves at least."""
    return sum(phase.bytes for phase in found)


def floor_us(found: Sequence[Phase], bytes_per_s: float, flops_per_s: float) -> float:
    """Microseconds of a pass at least, at these rates.

    A phase takes the longer of its two times, and no phase overlaps another, although parts of
    them could.
    """
    return 1e6 * sum(max(p.bytes / bytes_per_s, p.flops / flops_per_s) for p in found)


def _prepare_inputs(batch: Batch) -> Phase:
    """Tokens and positions of what was verified to ids, sources, positions and slots of rows."""
    verified = batch.size * (batch.k + 1)
    return Phase(
        "prepare_inputs",
        rows=verified * 16 + batch.size * 16 + round(batch.rows * 28) + batch.sampled_rows * 4,
    )
