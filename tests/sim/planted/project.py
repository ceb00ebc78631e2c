"""Bugs in the project's kernels. A new kernel adds its rows here."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_embed = partial(Bug, "embed_norm_concat")

BUGS = (
    _embed(
        "warps' sums read without a barrier",
        "    __syncthreads();\n",
        finds="race",
        file="reduce.cuh",
    ),
    _embed(
        "warps' sums all in one place",
        "shared.warp_sums[thread / kWarpSize] = value;",
        "shared.warp_sums[0] = value;",
        finds="race",
        file="reduce.cuh",
    ),
    _embed(
        "one warp too many in the sum",
        "lane < kWarps ?",
        "lane <= kWarps ?",
        finds="memory",
        file="reduce.cuh",
    ),
    _embed(
        "half of the warp left out of the sum",
        "int offset = kWarpSize / 2;",
        "int offset = kWarpSize / 4;",
        finds=WRONG_RESULT,
        file="reduce.cuh",
    ),
    _embed(
        "no wait for the previous kernel",
        "  cudaGridDependencySynchronize();\n",
        finds="pdl",
        file="launch.h",
    ),
    _embed(
        "surplus blocks leave before the wait",
        "  wait_for_previous_kernel();\n",
        "  if (row >= *params.num_rows) return;\n  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _embed(
        "row past the last one",
        "row >= *params.num_rows",
        "row > *params.num_rows",
        finds="memory",
    ),
    _embed(
        "hidden state of a mask row read",
        "params.source_row[row] < 0",
        "params.source_row[row] < -1",
        finds=WRONG_RESULT,
    ),
    _embed(
        "rows of the output overlap",
        "int64_t(row) * 2 * num_vecs",
        "int64_t(row) * num_vecs",
        finds="race",
    ),
    _embed(
        "residual written by both halves",
        "if (!is_embedding_half) {",
        "{",
        finds="race",
    ),
    _embed(
        "vectors past the end of a row",
        "if (vec < num_vecs) {\n      x[i] = x_row[vec];",
        "{\n      x[i] = x_row[vec];",
        finds="memory",
    ),
    _embed(
        "threads without vectors leave before the barrier",
        "  sum_of_squares = Config::Reduce::reduce(",
        "  if (thread >= num_vecs - Config::kThreads) return;\n"
        "  sum_of_squares = Config::Reduce::reduce(",
        finds="warp",
    ),
)
