"""Kernels with everything it takes to run them: sources, inputs, and expected outputs.

Most are in `samples/`: small kernels, known to be right, that synchronise in the ways the project's
kernels do. `test_samples.py` runs them as they are, `test_planted_bugs.py` with errors. Any kernel
of the project becomes one by an entry of `SAMPLES`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hostsim import build
from sim.buffers import Buffer
from sim.emulator import Session

FOLDER = Path(__file__).parent / "samples"
CSRC = build.ROOT / "csrc"

BF16_ERROR = 2**-8  # relative, of one rounding
FLOAT_ERROR = 1e-5  # of float32 sums of some hundred terms


@dataclass(frozen=True)
class Output:
    """What a kernel wrote, and what it should have."""

    name: str
    got: Tensor
    expected: Tensor
    relative_error: float

    def mismatch(self) -> str | None:
        """Says where the worst element is; None if all are right."""
        got, expected = self.got.double(), self.expected.double()
        error = (got - expected).abs() / (expected.abs() + 1)
        error = error.nan_to_num(nan=torch.inf)
        if bool((error <= self.relative_error).all()):
            return None
        worst = int(error.argmax())
        at = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
        return (
            f"{self.name}{at}: expected {expected.flatten()[worst]:.6g}, "
            f"found {got.flatten()[worst]:.6g}"
        )


@dataclass
class Run:
    """A sample in a session: makes buffers, launches, remembers the outputs.

    The methods that make buffers return what a launch function takes. `suffix` is that of the names
    of launch functions in the session's library.
    """

    session: Session
    suffix: str = ""
    outputs: list[Output] = field(default_factory=list)

    def given(self, name: str, value: Tensor) -> ctypes.c_void_p:
        """A buffer that kernels may only read."""
        return self._add(Buffer.of_tensor(name, value))

    def zeros(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> ctypes.c_void_p:
        """A buffer of zeros, which must be zeros again at the end."""
        return self.updated(name, torch.zeros(shape, dtype=dtype), torch.zeros(shape), 0.0)

    def scratch(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> ctypes.c_void_p:
        """A buffer that starts out as NaN; what becomes of it does not matter."""
        return self._add(Buffer(name, torch.Size(shape).numel() * dtype.itemsize))

    def output(
        self, name: str, dtype: torch.dtype, expected: Tensor, relative_error: float
    ) -> ctypes.c_void_p:
        """A buffer that starts out as NaN, and what it must hold at the end."""
        buffer = Buffer(name, expected.numel() * dtype.itemsize)
        self._expect(buffer, dtype, expected, relative_error)
        return self._add(buffer)

    def updated(
        self, name: str, value: Tensor, expected: Tensor, relative_error: float
    ) -> ctypes.c_void_p:
        """A buffer that starts out as `value`, and what it must hold at the end."""
        buffer = Buffer.of_tensor(name, value, read_only=False)
        self._expect(buffer, value.dtype, expected, relative_error)
        return self._add(buffer)

    def launch(self, name: str, *arguments: Any) -> None:
        """Call a launch function; integers are passed as `int`.

        Raises:
            LaunchError: It returned a CUDA error.
        """
        status = getattr(self.session.emulator.library, name + self.suffix)(*arguments)
        if status != 0:
            raise LaunchError(f"{name}: expected to launch, got CUDA error {status}")

    def _add(self, buffer: Buffer) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.session.add(buffer).address)

    def _expect(
        self, buffer: Buffer, dtype: torch.dtype, expected: Tensor, relative_error: float
    ) -> None:
        got = buffer.tensor(expected.shape, dtype)
        self.outputs.append(Output(buffer.name, got, expected, relative_error))


class LaunchError(Exception):
    """A launch function returned a CUDA error."""


@dataclass(frozen=True)
class Sample:
    """A kernel to run.

    Attributes:
        run: Makes the buffers and queues the launches.
        source: What is compiled: the kernel, or a file that includes it. It has the functions that
            Python calls, each with SAMPLE_LAUNCHER at the start of a line.
        included: The files that `source` includes in which there may be planted bugs, and what
            these include of the project, each after those that it includes.
        includes: Folders.
    """

    run: Callable[[Run], None]
    source: Path
    included: Sequence[Path] = ()
    includes: Sequence[Path] = (FOLDER,)

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.included, self.source)


def _sample(name: str) -> Path:
    return FOLDER / f"{name}.cu"


def _randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


# ---- The samples ---------------------------------------------------------------------------------


def split_reduce(run: Run) -> None:
    M, K, splits = 21, 300, 3
    tiles = -(-M // 8)
    a, x = _randn(M, K), _randn(K)
    given = run.given("a", a), run.given("x", x)
    partial = run.scratch("partial", (tiles, splits, 8), torch.float32)
    counters = run.zeros("counters", (tiles,), torch.int32)
    expected = a.double() @ x.double()
    for name in ("y", "y of the second launch"):
        y = run.output(name, torch.float32, expected, FLOAT_ERROR)
        run.launch("launch_split_reduce", *given, partial, counters, y, M, K, splits)


def cp_async_gemm(run: Run) -> None:
    M, N, K = 41, 64, 256
    a, b = _randn(M, K, dtype=torch.bfloat16), _randn(N, K, dtype=torch.bfloat16)
    c = run.output("c", torch.bfloat16, a.double() @ b.double().T, BF16_ERROR)
    run.launch("launch_cp_async_gemm", run.given("a", a), run.given("b", b), c, M, N, K)


def tma_pipeline(run: Run) -> None:
    starts = torch.tensor([0, 30, 33, 64], dtype=torch.int32)  # more rows than a ring, and fewer
    rows, columns = int(starts[-1]), 256
    a, b = _randn(rows, columns), _randn(columns, rows).T.contiguous()
    products = a.double() * b.double()
    sums = torch.stack([x.sum(0) for x in products.tensor_split(starts[1:-1].long())])
    out = run.output("out", torch.float32, sums, FLOAT_ERROR)
    inputs = run.given("a", a), run.given("b", b), run.given("segment_start", starts)
    run.launch("launch_tma_pipeline", *inputs, out, len(starts) - 1)


def tma_tensor(run: Run) -> None:
    rows, columns = 41, 88  # three tiles for each of two blocks
    x, scale = _randn(rows, columns, dtype=torch.bfloat16), _randn(columns)
    y = run.output("y", torch.bfloat16, x.double() * scale.double(), BF16_ERROR)
    run.launch("launch_tma_tensor", run.given("x", x), run.given("scale", scale), y, rows, columns)


def wgmma_gemm(run: Run) -> None:
    M, N, K = 72, 24, 280
    a, b = _randn(M, K, dtype=torch.bfloat16), _randn(N, K, dtype=torch.bfloat16)
    c = run.output("c", torch.float32, a.double() @ b.double().T, FLOAT_ERROR)
    run.launch("launch_wgmma_gemm", run.given("a", a), run.given("b", b), c, M, N, K)


def cluster_sum(run: Run) -> None:
    rows, columns = 3, 301
    x = _randn(rows, columns).abs()
    expected = x.double() / x.double().sum(1, keepdim=True)
    y = run.output("y", torch.float32, expected, FLOAT_ERROR / columns)
    run.launch("launch_cluster_sum", run.given("x", x), y, rows, columns)


def attention_decode(run: Run) -> None:
    lengths = torch.tensor([37, 1, 16], dtype=torch.int32)  # the second leaves splits empty
    sequences, heads, splits, head_dim, page_tokens, max_pages, pages = 3, 2, 3, 64, 8, 5, 9
    table = torch.full((sequences, max_pages), pages + 100, dtype=torch.int32)
    used = iter([7, 2, 8, 0, 5, 3, 6, 1])
    for sequence, length in enumerate(lengths.tolist()):
        for i in range(-(-length // page_tokens)):
            table[sequence, i] = next(used)
    q = 3 * _randn(sequences, heads, head_dim)
    k, v = _randn(pages, page_tokens, heads, head_dim), _randn(pages, page_tokens, head_dim, heads)
    v = v.transpose(2, 3).contiguous()
    expected = _attention(q, k, v, table, lengths)
    pointers = [
        run.given(name, value)
        for name, value in {"q": q, "k": k, "v": v, "page_table": table, "lengths": lengths}.items()
    ]
    partial = run.scratch("partial", (sequences, heads, splits, head_dim + 2), torch.float32)
    counters = run.zeros("counters", (sequences, heads), torch.int32)
    for name in ("out", "out of the second launch"):
        out = run.output(name, torch.float32, expected, FLOAT_ERROR)
        sizes = sequences, heads, max_pages, splits
        run.launch("launch_attention_decode", *pointers, partial, counters, out, *sizes)


def _attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """[sequences, heads, head_dim] in float64."""
    outputs = []
    for sequence, length in enumerate(lengths.tolist()):
        pages = table[sequence, : -(-length // k.shape[1])].long()
        keys, values = (x[pages].flatten(0, 1)[:length].double() for x in (k, v))
        scores = torch.einsum("hd,thd->ht", q[sequence].double(), keys) * q.shape[-1] ** -0.5
        outputs.append(torch.einsum("ht,thd->hd", scores.softmax(-1), values))
    return torch.stack(outputs)


def pdl_chain(run: Run) -> None:
    rows, max_rows, columns, steps = 5, 7, 64, 2
    weight, average, bias = 1 + _randn(3, columns) / 8
    state = _randn(max_rows, columns)
    expected = state.double()
    for _ in range(steps):
        scaled = expected[:rows] * weight
        expected[:rows] = scaled - scaled @ average.double()[:, None] + bias
    constants = {"weight": weight, "average": average, "bias": bias}
    pointers = [run.given(name, value) for name, value in constants.items()]
    num_rows = run.given("num_rows", torch.tensor([rows], dtype=torch.int32))
    updated = run.updated("state", state, expected, FLOAT_ERROR)
    scaled_buffer = run.scratch("scaled", (max_rows, columns), torch.float32)
    mean = run.scratch("mean", (max_rows,), torch.float32)
    buffers = *pointers, num_rows, updated, scaled_buffer, mean
    run.launch("launch_pdl_chain", *buffers, max_rows, steps)


def named_barriers(run: Run) -> None:
    tiles, lanes = 5, torch.arange(32)
    x = _randn(tiles, 64)
    permuted = (5 * (5 * lanes + 3) + 3) % 32
    v = torch.stack([x[:, 63 - 32 * warp - permuted] for warp in range(2)], 1).double()
    lower, upper = v.split(16, dim=-1)
    expected = torch.cat(
        [
            lower.sum(-1, keepdim=True).expand_as(lower),
            upper.amax(-1, keepdim=True).expand_as(upper),
        ],
        -1,
    )
    out = run.output("out", torch.float32, expected, FLOAT_ERROR)
    run.launch("launch_named_barriers", run.given("x", x), out, tiles)


# ---- The project's kernels -----------------------------------------------------------------------


class EmbedNormConcatParams(ctypes.Structure):
    """Mirrors csrc/ops.h."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "token_ids", "source_row", "num_rows", "embedding", "hidden", "mask_hidden",
                "embed_weight", "hidden_weight", "out", "residual",
            )
        ),
        ("max_rows", ctypes.c_int),
        ("hidden_size", ctypes.c_int),
        ("vocab_size", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("norm_before_residual", ctypes.c_bool),
    )  # fmt: skip


def embed_norm_concat(run: Run) -> None:
    """Three launches, the third of which takes the first's residual as its hidden states.

    The second has fewer rows and nothing to do with them. So the order of the first and the third
    hangs on what the second's surplus blocks do.
    """
    dtype, rows, H, V, eps = torch.bfloat16, 5, 1048, 11, 1e-2
    embedding, mask_hidden = _randn(V, H, dtype=dtype), _randn(1, H, dtype=dtype)[0]
    weights = 1 + _randn(2, H, dtype=dtype) / 4
    token_ids = torch.tensor([3, 0, V - 1, 3, 7])
    source_row = torch.tensor([0, 1, -1, 2, -1], dtype=torch.int32)
    hidden = _randn(rows, H, dtype=dtype)
    constants = {
        "token_ids": run.given("token_ids", token_ids),
        "source_row": run.given("source_row", source_row),
        "embedding": run.given("embedding", embedding),
        "mask_hidden": run.given("mask_hidden", mask_hidden),
        "embed_weight": run.given("embed_weight", weights[0]),
        "hidden_weight": run.given("hidden_weight", weights[1]),
    }
    hidden[source_row < 0] = torch.nan  # must not be read
    first_hidden = run.given("hidden", hidden)

    def launch(label: str, n: int, x: Tensor, x_pointer: ctypes.c_void_p) -> ctypes.c_void_p:
        """Returns the residual; its rows are those of `x`, except for mask rows."""
        embed_norm = _rms_norm(embedding[token_ids], weights[0], eps)
        residual = torch.where(source_row[:, None] < 0, mask_hidden, x)
        out = torch.cat([embed_norm, _rms_norm(residual, weights[1], eps)], 1)
        out_pointer = run.output(f"out{label}", dtype, out[:n], BF16_ERROR)
        residual_pointer = run.output(f"residual{label}", dtype, residual[:n], 0.0)
        count = run.given(f"num_rows{label}", torch.tensor([n], dtype=torch.int32))
        params = EmbedNormConcatParams(
            **constants, num_rows=count, hidden=x_pointer, out=out_pointer,
            residual=residual_pointer, max_rows=rows, hidden_size=H, vocab_size=V, eps=eps,
        )  # fmt: skip
        run.launch("launch_embed_norm_concat_from_c", ctypes.byref(params), 0)
        return residual_pointer

    residual_pointer = launch("", rows, hidden, first_hidden)
    launch(" of the second launch", rows - 2, hidden, first_hidden)
    launch(" of the third launch", rows, hidden, residual_pointer)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


SAMPLES: dict[str, Sample] = {
    "split_reduce": Sample(split_reduce, _sample("split_reduce")),
    "cp_async_gemm": Sample(cp_async_gemm, _sample("cp_async_gemm")),
    "tma_pipeline": Sample(tma_pipeline, _sample("tma_pipeline")),
    "tma_tensor": Sample(tma_tensor, _sample("tma_tensor")),
    "wgmma_gemm": Sample(wgmma_gemm, _sample("wgmma_gemm")),
    "cluster_sum": Sample(cluster_sum, _sample("cluster_sum")),
    "attention_decode": Sample(attention_decode, _sample("attention_decode")),
    "pdl_chain": Sample(pdl_chain, _sample("pdl_chain"), includes=(FOLDER, CSRC)),
    "named_barriers": Sample(named_barriers, _sample("named_barriers")),
    "embed_norm_concat": Sample(
        embed_norm_concat,
        _sample("launch_embed_norm_concat"),
        included=[
            CSRC / "ops.h",
            CSRC / "common" / "launch.h",
            CSRC / "common" / "reduce.cuh",
            CSRC / "kernels" / "embed_norm_concat.cu",
        ],
        includes=(FOLDER, CSRC),
    ),
}
