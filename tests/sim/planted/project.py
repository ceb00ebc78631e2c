"""Bugs in the project's kernels, except those of attention. A new kernel adds its rows here."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_prepare = partial(Bug, "prepare_inputs")
_prune = partial(Bug, "prune_rows")
_embed = partial(Bug, "embed_norm_concat")

BUGS = (
    _prepare(
        "warps' sums read without a barrier",
        "    __syncthreads();\n",
        finds="race",
        file="scan.cuh",
    ),
    _prepare(
        "sum before a thread has its own value in it",
        "Sums sums{inclusive - value, 0};",
        "Sums sums{inclusive, 0};",
        finds=WRONG_RESULT,
        file="scan.cuh",
    ),
    _prepare(
        "sum before a warp has the warp's in it",
        "i < warp ?",
        "i <= warp ?",
        finds=WRONG_RESULT,
        file="scan.cuh",
    ),
    _prepare(
        "one lane left out at each step of the scan",
        "lane >= offset ?",
        "lane > offset ?",
        finds=WRONG_RESULT,
        file="scan.cuh",
    ),
    _prepare(
        "last step of the scan left out",
        "offset < kWarpSize;",
        "offset < kWarpSize / 2;",
        finds=WRONG_RESULT,
        file="scan.cuh",
    ),
    _prepare(
        "no wait for the previous kernel",
        "  cudaGridDependencySynchronize();\n",
        finds="pdl",
        file="launch.h",
    ),
    _prepare(
        "counts read before the wait",
        "  wait_for_previous_kernel();\n",
        "  int const early = params.query_start[0];\n"
        "  wait_for_previous_kernel();\n"
        "  if (early < 0) return;\n",
        finds="pdl",
    ),
    _prepare(
        "a launch without requests leaves before the wait",
        "  wait_for_previous_kernel();\n",
        "  if (params.num_requests == 0) return;\n  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _prepare(
        "tile read before it is there",
        "    __syncthreads();\n",
        finds="race",
    ),
    _prepare(
        "end of the tile not written",
        "      shared.row_start[Config::kThreads] = num_rows_before;\n",
        finds="uninit",
    ),
    _prepare(
        "second tile starts at row 0",
        "num_rows_before + rows.before",
        "rows.before",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "counts of the first tile used for the second",
        "load_counts(params, tile + Config::kThreads + thread)",
        "load_counts(params, tile + thread)",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "counts past the last request",
        "request >= params.num_requests",
        "request > params.num_requests",
        finds="memory",
    ),
    _prepare(
        "mask rows of requests that are rejected as a whole",
        "counts.num_valid > 0 ?",
        "counts.num_valid >= 0 ?",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "first row of a request given to the one before",
        "(shared.row_start[middle] <= row ? low : high)",
        "(shared.row_start[middle] < row ? low : high)",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "whole tile searched, also past the last request",
        "find_request(shared, num_in_tile, row)",
        "find_request(shared, Config::kThreads, row)",
        benign="what is past the last request starts where the rows end",
    ),
    _prepare(
        "tokens not shifted",
        "source + 1)",
        "source)",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "token past the target's last",
        "0 <= index && index < size",
        "0 <= index && index <= size",
        finds="memory",
    ),
    _prepare(
        "next token of a request on its row before",
        "j < last_valid ? element",
        "j < last_valid - 1 ? element",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "mask rows with a source row",
        "source_row = is_mask ? -1 : int(source);",
        "source_row = int(source);",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "slot for the first position past the last one",
        "position >= uint64_t(params.max_position)",
        "position > uint64_t(params.max_position)",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "block table of the next request, at the end of a row",
        "column >= uint64_t(params.max_blocks)",
        "column > uint64_t(params.max_blocks)",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "negative blocks used",
        "block >= 0 ?",
        "block >= -1 ?",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "columns past the end of the block table",
        "column < end ? columns[column] : 0",
        "columns[column]",
        finds="memory",
    ),
    _prepare(
        "last column without a block found, not the first",
        "int i = Config::kColumnsPerLane - 1; i >= 0; --i",
        "int i = 0; i < Config::kColumnsPerLane; ++i",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "only one step of the search for a column",
        "base += kStep",
        "base += end",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "columns before the first position looked at",
        "begin / block_size, end_column",
        "0, end_column",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "last column left out where it is not full",
        "(end - 1) / block_size + 1",
        "end / block_size",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "samples of requests without rows",
        "has_rows && row < end_of_stored ?",
        "row < end_of_stored ?",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "samples of rows without a slot",
        "has_rows && row < end_of_stored ?",
        "has_rows ?",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "sample of the first row without a slot",
        "row < end_of_stored ?",
        "row <= end_of_stored ?",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "last block of requests left out",
        "ceil_div(params.num_requests, Config::kWarps)",
        "params.num_requests / Config::kWarps",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "row_start without its first element",
        "    params.row_start[0] = 0;\n",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "rows of no request not written",
        "if (row < params.max_rows) {",
        "if (row < num_rows_before) {",
        finds=WRONG_RESULT,
    ),
    _prepare(
        "row past the last one",
        "if (row < params.max_rows) {",
        "if (row <= params.max_rows) {",
        finds="memory",
    ),
    _prepare(
        "arrival before a block's part is written",
        "__syncthreads();  // the block's part is written, and what is shared has been read",
        finds="race",
        file="attention_work.cuh",
    ),
    _prepare(
        "who is last read without a barrier",
        "__syncthreads();  // is_last is known",
        finds="race",
        file="attention_work.cuh",
    ),
    _prepare(
        "arrival without a fence",
        "  fence_device();  // what the CTA has stored comes before its arrival\n",
        finds="race",
        file="arrival.cuh",
    ),
    _prepare(
        "map without a fence",
        "  fence_device();  // what the others have stored before theirs comes before what is read "
        "now\n",
        finds="race",
        file="arrival.cuh",
    ),
    _prepare(
        "map by the last but one",
        "arrives_last(&header->arrivals, gridDim.x)",
        "arrives_last(&header->arrivals, gridDim.x - 1)",
        finds="race",
        file="attention_work.cuh",
    ),
    _prepare(
        "map by every block",
        "    if (is_last) {\n",
        "    {\n",
        finds="race",
        file="attention_work.cuh",
    ),
    _prepare(
        "counter not reset",
        "    *counter = 0;  // for the next kernel\n",
        benign="the map's header is written as a whole",
        file="arrival.cuh",
    ),
    _prepare(
        "counter not left at zero",
        "tiles_per_block, 0, {}};",
        "tiles_per_block, 1, {}};",
        finds=WRONG_RESULT,
        file="attention_work.cuh",
    ),
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
    _prune(
        "requests of other blocks' threads not counted",
        "before += __syncthreads_count(",
        "before = __syncthreads_count(",
        finds=WRONG_RESULT,
    ),
    _prune(
        "the request itself counted",
        "other < request && has_rows",
        "other <= request && has_rows",
        finds=WRONG_RESULT,
    ),
    _prune(
        "the first rows of a request kept",
        "int64_t(params.row_start[request + 1]) - params.num_kept + index",
        "int64_t(params.row_start[request]) + index",
        finds=WRONG_RESULT,
    ),
    _prune(
        "a row without a slot sampled",
        "is_kept && params.sample_rows[blockIdx.x] >= 0",
        "is_kept",
        finds=WRONG_RESULT,
    ),
    _prune(
        "vectors past the end of a row",
        "vec < row_vecs; vec",
        "vec <= row_vecs; vec",
        finds="race",
    ),
)
