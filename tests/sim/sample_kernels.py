"""The sample kernels: every kernel that is run as it is, and with planted bugs.

Those in `samples/` are small, known to be right, and synchronise in the ways the project's kernels
do; those of `project_kernels` and `attention_kernels` are the project's own. `test_samples.py` runs
them as they are, `test_planted_bugs.py` with errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sim import (
    attention_kernels,
    filter_samples,
    gemm_sample,
    head_sample,
    linear_sample,
    project_kernels,
    rows_sample,
    tree_samples,
)
from sim.sample import BF16_ERROR, FLOAT_ERROR, Run, Sample, randn, source


def split_reduce(run: Run) -> None:
    M, K, splits = 21, 300, 3
    tiles = -(-M // 8)
    a, x = randn(M, K), randn(K)
    given = run.given("a", a), run.given("x", x)
    partial = run.scratch("partial", (tiles, splits, 8), torch.float32)
    counters = run.zeros("counters", (tiles,), torch.int32)
    expected = a.double() @ x.double()
    for name in ("y", "y of the second launch"):
        y = run.output(name, torch.float32, expected, FLOAT_ERROR)
        run.launch("launch_split_reduce", *given, partial, counters, y, M, K, splits)


def cp_async_gemm(run: Run) -> None:
    M, N, K = 41, 64, 256
    a, b = randn(M, K, dtype=torch.bfloat16), randn(N, K, dtype=torch.bfloat16)
    c = run.output("c", torch.bfloat16, a.double() @ b.double().T, BF16_ERROR)
    run.launch("launch_cp_async_gemm", run.given("a", a), run.given("b", b), c, M, N, K)


def tma_pipeline(run: Run) -> None:
    starts = torch.tensor([0, 30, 33, 64], dtype=torch.int32)  # more rows than a ring, and fewer
    rows, columns = int(starts[-1]), 256
    a, b = randn(rows, columns), randn(columns, rows).T.contiguous()
    products = a.double() * b.double()
    sums = torch.stack([x.sum(0) for x in products.tensor_split(starts[1:-1].long())])
    out = run.output("out", torch.float32, sums, FLOAT_ERROR)
    inputs = run.given("a", a), run.given("b", b), run.given("segment_start", starts)
    run.launch("launch_tma_pipeline", *inputs, out, len(starts) - 1)


def tma_tensor(run: Run) -> None:
    rows, columns = 41, 88  # three tiles for each of two blocks
    x, scale = randn(rows, columns, dtype=torch.bfloat16), randn(columns)
    y = run.output("y", torch.bfloat16, x.double() * scale.double(), BF16_ERROR)
    run.launch("launch_tma_tensor", run.given("x", x), run.given("scale", scale), y, rows, columns)


def wgmma_gemm(run: Run) -> None:
    M, N, K = 72, 24, 280
    a, b = randn(M, K, dtype=torch.bfloat16), randn(N, K, dtype=torch.bfloat16)
    c = run.output("c", torch.float32, a.double() @ b.double().T, FLOAT_ERROR)
    run.launch("launch_wgmma_gemm", run.given("a", a), run.given("b", b), c, M, N, K)


def cluster_sum(run: Run) -> None:
    rows, columns = 3, 301
    x = randn(rows, columns).abs()
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
    q = 3 * randn(sequences, heads, head_dim)
    k, v = randn(pages, page_tokens, heads, head_dim), randn(pages, page_tokens, head_dim, heads)
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
    weight, average, bias = 1 + randn(3, columns) / 8
    state = randn(max_rows, columns)
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
    x = randn(tiles, 64)
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


SAMPLES: dict[str, Sample] = {
    **{
        run.__name__: Sample(run, source(run.__name__))
        for run in (
            split_reduce,
            cp_async_gemm,
            tma_pipeline,
            tma_tensor,
            wgmma_gemm,
            cluster_sum,
            attention_decode,
            pdl_chain,
            named_barriers,
        )
    },
    **project_kernels.SAMPLES,
    **linear_sample.SAMPLES,
    **attention_kernels.SAMPLES,
    **rows_sample.SAMPLES,
    **head_sample.SAMPLES,
    **tree_samples.SAMPLES,
    **filter_samples.SAMPLES,
    **gemm_sample.SAMPLES,
}
