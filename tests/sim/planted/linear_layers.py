"""Bugs in the linear layers."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_kernel = partial(Bug, "linear_layers", file="kernel.cuh")
_arrival = partial(Bug, "linear_layers", file="arrival.cuh")
_rows = partial(Bug, "linear_layers", file="rows.cuh")
_weights = partial(Bug, "linear_layers", file="weights.cuh")
_product = partial(Bug, "linear_layers", file="product.cuh")
_partition = partial(Bug, "linear_layers", file="partition.h")
_residual = partial(Bug, "linear_layers", file="epilogue_residual.cuh")
_epilogue = partial(Bug, "linear_layers", file="epilogue.cuh")

BUGS = (
    _kernel(
        "no wait for the previous kernel",
        "    wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _kernel(
        "a launch without rows leaves before the wait",
        "    wait_for_previous_kernel();\n",
        "    if (*params_.input.num_rows == 0) {\n      cute::cp_async_wait<0>();\n      return;\n"
        "    }\n    wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _kernel(
        "weights used one stage before they have come",
        "cute::cp_async_wait<Config::kStages - 2>();",
        "cute::cp_async_wait<Config::kStages - 1>();",
        finds="race",
    ),
    _kernel(
        "no barrier between storing a block and multiplying it",
        "      __syncthreads();  // this unit is in shared memory, and all have done with the one"
        " before\n",
        finds="race",
    ),
    _kernel(
        "stage that is being multiplied is loaded over",
        "load_weight(stage == 0 ? Config::kStages - 1 : stage - 1);",
        "load_weight(stage);",
        finds="race",
    ),
    _kernel(
        "one buffer for two blocks of rows",
        "shared_.rows[(i - begin) % 2]",
        "shared_.rows[0]",
        finds="race",
    ),
    _kernel(
        "no group for a stage that is not loaded",
        "      cute::cp_async_fence();  // a group for each stage, also an empty one\n",
        "      if (to_load > 0) cute::cp_async_fence();\n",
        finds="race",
    ),
    _kernel(
        "rows of the block that was",
        "        rows.load(unit.column());\n      }\n",
        "        rows.load(current.column());\n      }\n",
        finds=WRONG_RESULT,
    ),
    _kernel(
        "the sum of a tile goes on into the next",
        "        finish(current.tile, begin, end, acc);\n        acc.clear();\n",
        "        finish(current.tile, begin, end, acc);\n",
        finds=WRONG_RESULT,
    ),
    _product(
        "arrives before all threads have stored their part",
        "bool arrives_last(int tile, bool& is_last) const {\n    Config::sync();\n",
        "bool arrives_last(int tile, bool& is_last) const {\n",
        finds="race",
    ),
    _arrival(
        "arrives without a fence",
        "  fence_device();  // what the CTA has stored comes before its arrival\n",
        finds="race",
    ),
    _arrival(
        "adds without a fence",
        "  fence_device();  // what the others have stored before theirs comes before what is read "
        "now\n",
        finds="race",
    ),
    _arrival(
        "counter not reset",
        "    *counter = 0;  // for the next kernel\n",
        finds=WRONG_RESULT,
    ),
    _arrival(
        "one arrival too few awaited",
        "== num_ctas - 1;",
        "== num_ctas - 2;",
        finds="race",
    ),
    _product(
        "one counter for all tiles",
        "reinterpret_cast<int32_t*>(base_) + in_grid(first_cta),",
        "reinterpret_cast<int32_t*>(base_),",
        finds=WRONG_RESULT,
    ),
    _kernel(
        "a CTA's own part taken for the sum",
        "      acc = parts.template sum<Config::kTokens>(tile, 0);\n",
        finds=WRONG_RESULT,
    ),
    _product(
        "the tile that a CTA begins in the slot of the one that it ends",
        "store(begins_tile, acc, 0, num_octets);",
        "store(false, acc, 0, num_octets);",
        finds="race",
    ),
    _product(
        "nobody waits to hear who is last",
        "    Config::sync();\n    return is_last;\n",
        "    return is_last;\n",
        finds="race",
    ),
    _rows(
        "rows that do not exist are read",
        "if (row < *input.num_rows) {",
        "if (row < input.max_rows) {",
        finds="memory",
    ),
    _rows(
        "a norm of the row beside it",
        "rows_.rstd[block_.norm_group][token(i)]",
        "rows_.rstd[block_.norm_group][token(i) ^ 1]",
        finds=WRONG_RESULT,
    ),
    _rows(
        "parts of a sum of squares added without a barrier",
        "      partial[part][token] = sum;\n    }\n    __syncthreads();\n",
        "      partial[part][token] = sum;\n    }\n",
        finds="race",
    ),
    _rows(
        "last group of columns left out of a norm",
        "group < groups; group += kParts",
        "group < groups - 1; group += kParts",
        finds=WRONG_RESULT,
    ),
    _weights(
        "swizzle of half the rows",
        "(vec ^ (row & 7))",
        "(vec ^ (row & 3))",
        benign="weights and rows agree on it; it costs bank conflicts only",
    ),
    _weights(
        "halves of a block's steps swapped for the weight alone",
        "2 * quad + half)]",
        "2 * quad + 1 - half)]",
        finds=WRONG_RESULT,
    ),
    _partition(
        "runs of units that leave one out",
        "/ num_ctas) *",
        "/ num_ctas + (cta > 3)) *",
        finds=WRONG_RESULT,
    ),
    _residual(
        "sums of squares of the values before they are rounded",
        "squares[i] = rounded.x * rounded.x + rounded.y * rounded.y;",
        "squares[i] = sum.x * sum.x + sum.y * sum.y;",
        benign="less than this sample can tell; test_linear_layers.py can",
    ),
    _residual(
        "sums of squares of every row, whether it exists or not",
        "&& source_row[token] >= 0) {",
        ") {",
        finds="memory",
    ),
    _epilogue(
        "sums of a warp taken before all have stored theirs",
        "    Config::sync();\n",
        finds="race",
    ),
    _epilogue(
        "a quad's lanes left out of a sum over rows",
        "int offset = 4; offset < kWarpSize",
        "int offset = 8; offset < kWarpSize",
        finds=WRONG_RESULT,
    ),
    _epilogue(
        "a row stored one too far",
        "warp * kWarpRows + group * 2;",
        "warp * kWarpRows + group * 2 + 2;",
        finds=WRONG_RESULT,
    ),
)
