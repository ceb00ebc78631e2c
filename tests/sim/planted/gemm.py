"""Bugs in the matrix products of many rows; the mainloop of these is CUTLASS's."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_kernel = partial(Bug, "gemm", file="kernel.cuh")
_sm100 = partial(Bug, "gemm_sm100", file="sm100.cuh")
_epilogue = partial(Bug, "gemm", file="gemm_epilogue.cuh")

# Few, because each compiles the mainloop anew.
BUGS = (
    _epilogue(
        "rows stored before all lanes have handed theirs on",
        "      __syncwarp();\n      block.for_each_vec([&](int row, int column, Vec const& vec) {\n"
        "        float squares",
        "      block.for_each_vec([&](int row, int column, Vec const& vec) {\n"
        "        float squares",
        finds="race",
    ),
    _kernel(
        "parts of a tile under the other CTA's name",
        "params_.workspace, work.partition, kCluster)",
        "params_.workspace, work.partition, 1)",
        finds=WRONG_RESULT,
    ),
    _sm100(
        "tensor memory given back before it has been read",
        "      finish(tile, Product{first + state.index() * Shape::kTokens});\n"
        '      asm volatile("tcgen05.fence::before_thread_sync;");\n'
        "      products_.consumer_release(state);\n",
        "      products_.consumer_release(state);\n"
        "      finish(tile, Product{first + state.index() * Shape::kTokens});\n",
        finds="race",
    ),
)
