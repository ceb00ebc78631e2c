"""Bugs in the wide linear layers; what they share with the others is in `linear_layers`."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_kernel = partial(Bug, "wide_layers", file="kernel.cuh")
_rows = partial(Bug, "wide_layers", file="row_copier.cuh")
_wgmma = partial(Bug, "wide_layers", file="wgmma.cuh")
_map = partial(Bug, "wide_layers", file="weight_map.cuh")
_swiglu = partial(Bug, "wide_layers", file="epilogue_swiglu.cuh")
_fp8 = partial(Bug, "wide_fp8_layers", file="row_quantizer.cuh")
_fp8_product = partial(_fp8, file="wgmma.cuh")
_fp8_kernel = partial(_fp8, file="kernel.cuh")
_fp8_scale = partial(_fp8, file="quantize.cuh")

BUGS = (
    _kernel(
        "no wait for the previous kernel",
        "    wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _kernel(
        "a CTA without rows leaves while its weights are underway",
        "          CopyBarrier::wait(&shared_.has_weight[stage], 0);\n",
        finds="mbarrier",
    ),
    _kernel(
        "weights multiplied before they have come",
        "        CopyBarrier::wait(&shared_.has_weight[ring.stage], ring.parity);\n",
        finds="race",
    ),
    _kernel(
        "rows multiplied before they have come",
        "        Barrier::wait(&shared_.has_rows[ring.stage], ring.parity);\n",
        finds="race",
    ),
    _kernel(
        "a stage filled while it is multiplied",
        "        Barrier::wait(&shared_.is_empty[started.stage], started.parity ^ 1);\n",
        finds="race",
    ),
    _kernel(
        "a first round that waits for the one before",
        "started.parity ^ 1);",
        "started.parity);",
        finds="deadlock",
    ),
    _wgmma(
        "a stage is free before it has been multiplied",
        "cute::warpgroup_wait<0>();",
        "cute::warpgroup_wait<1>();",
        finds="race",
    ),
    _kernel(
        "rows normed before they have come",
        "cute::cp_async_wait<Config::kAhead>();",
        "cute::cp_async_wait<Config::kAhead + 1>();",
        finds="race",
    ),
    _kernel(
        "normed rows not shown to wgmma",
        "        cutlass::arch::fence_view_async_shared();  // wgmma will read what this thread has"
        " written\n",
        finds="proxy",
    ),
    _kernel(
        "a warp's rows are ready before all its lanes are",
        "        __syncwarp();\n",
        finds="race",
    ),
    _kernel(
        "the next tokens' sums over the last ones'",
        "      EpilogueConfig::sync();  // the epilogue's shared memory is free again\n",
        finds="race",
    ),
    _kernel(
        "one epilogue barrier for both warpgroups",
        "NamedBarrier::sync(kThreads, 1 + group())",
        "NamedBarrier::sync(kThreads, 1)",
        finds="race",
    ),
    _kernel(
        "parts of the first tokens for all of them",
        "(tile, first / 8)",
        "(tile, 0)",
        finds=WRONG_RESULT,
    ),
    _rows(
        "rows that do not exist are read",
        "source >= 0);",
        "true);",
        benign="they are another row's, whose product nobody stores",
    ),
    _rows(
        "a norm of the row beside it",
        "rows_.rstd[group][token(i)]",
        "rows_.rstd[group][token(i) ^ 1]",
        finds=WRONG_RESULT,
    ),
    _wgmma(
        "the same columns of the rows at every step",
        "operands[1] += 16 * 2 >> 4;",
        "operands[1] += 0;",
        finds=WRONG_RESULT,
    ),
    _map(
        "rows that are not the weight's",
        "row_bytes * rows.half_step",
        "row_bytes * (rows.half_step + 1)",
        finds="memory",
    ),
    _swiglu(
        "gates with the next pair's rows",
        ".group_step = 8,",
        ".group_step = 7,",
        finds=WRONG_RESULT,
    ),
    _fp8_product(
        "a block's sum goes on with the next one's scale",
        "multiply_block<cutlass::float_e4m3_t, false>",
        "multiply_block<cutlass::float_e4m3_t, true>",
        finds=WRONG_RESULT,
    ),
    _fp8_product(
        "the scales of other rows",
        "scales + first + octet * 8 + threadIdx.x % 4 * 2)",
        "scales + first + (octet ^ 1) * 8 + threadIdx.x % 4 * 2)",
        finds=WRONG_RESULT,
    ),
    _fp8_kernel(
        "the scales of another stage",
        "scales(ring.stage), num_tokens);",
        "scales(ring.stage ^ 1), num_tokens);",
        finds="race",
    ),
    _fp8_kernel(
        "a stage is free before all lanes have read the scales",
        "          __syncwarp();  // all lanes have read the scales\n",
        finds="race",
    ),
    _fp8_kernel(
        "rows that no step fills hold anything",
        "        rows.clear_rest(shared_.rows[stage], scales(stage));\n",
        finds="uninit",
    ),
    _fp8(
        "quantised before it has come",
        "cute::cp_async_wait<kPlaces - 1>();",
        "cute::cp_async_wait<kPlaces>();",
        finds="race",
    ),
    _fp8(
        "norms of the block before",
        "    column_ = next_column(column_);\n    load_norm();\n",
        "    load_norm();\n    column_ = next_column(column_);\n",
        finds=WRONG_RESULT,
    ),
    _fp8(
        "a scale of one half of a block",
        "      largest = fmaxf(largest, rstd[half] * largest_of(values[half]));",
        "      largest = rstd[half] * largest_of(values[half]);",
        finds=WRONG_RESULT,
    ),
    _fp8_scale(
        "a scale of some of the columns",
        "offset < kBlockVecs; offset *= 2",
        "offset < kBlockVecs / 2; offset *= 2",
        finds=WRONG_RESULT,
    ),
    _fp8_scale(
        "a scale that makes the largest value saturate",
        "constexpr int kCarry = 0x1fffff;",
        "constexpr int kCarry = 0;",
        finds=WRONG_RESULT,
    ),
)
