"""Bugs in matrix multiplications with a ring of stages."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_mma = partial(Bug, "cp_async_gemm")
_wgmma = partial(Bug, "wgmma_gemm")

BUGS = (
    _mma(
        "stage read, and refilled, without a barrier",
        "__syncthreads();  // everybody's copies of the step; and the slot to refill has been read",
        finds="race",
    ),
    _mma(
        "one cp.async group too few waited for",
        "cp_async_wait<kStages - 2>();",
        "cp_async_wait<kStages - 1>();",
        finds="race",
    ),
    _mma(
        "no wait for cp.async",
        "cp_async_wait<kStages - 2>();  // this thread's copies of the step\n",
        finds="race",
    ),
    _mma(
        "wait behind the barrier, so that it covers the thread's own copies only",
        "cp_async_wait<kStages - 2>();  // this thread's copies of the step\n    __syncthreads();",
        "__syncthreads();\n    cp_async_wait<kStages - 2>();",
        finds="race",
    ),
    _mma(
        "no commit in the loop, so that groups are fewer than counted",
        "cp_async_commit();  // also an empty group counts",
        finds="race",
    ),
    _mma(
        "commit only where there are copies, so that the last waits count wrong",
        "cp_async_commit();  // also an empty group counts",
        "if (next < num_steps) cp_async_commit();",
        finds="race",
    ),
    _mma(
        "no commit in the prologue",
        "cp_async_commit();  // prologue",
        finds="race",
    ),
    _mma(
        "refills the slot that is being read",
        "shared.stages[next % kStages]",
        "shared.stages[step % kStages]",
        finds="race",
    ),
    _mma(
        "ring shorter than the copies ahead",
        "shared.stages[next % kStages]",
        "shared.stages[next % (kStages - 1)]",
        finds="race",
    ),
    _mma(
        "tile of a written unswizzled",
        "cp_async_16(chunk_address(stage.a, row, chunk),",
        "cp_async_16(shared_address(stage.a) + row * kRowBytes + chunk * 16,",
        finds=WRONG_RESULT,
    ),
    _mma(
        "tile of b read with another swizzle",
        "chunk_address(stage.b, b_row, 2 * k + lane / 8 % 2)",
        "shared_address(stage.b) + b_row * kRowBytes + ((2 * k + lane / 8 % 2) ^ (b_row & 3)) * 16",
        finds=WRONG_RESULT,
    ),
    _mma(
        "row of a past the last one loaded",
        "m_begin + row < p.m;",
        "m_begin + row <= p.m;",
        finds="memory",
    ),
    _mma(
        "row of c past the last one stored",
        "if (m_begin + row < p.m) {",
        "if (m_begin + row <= p.m) {",
        finds="memory",
    ),
    _mma(
        "ldmatrix between two rows' chunks",
        "chunk_address(stage.a, a_row, 2 * k + lane / 16)",
        "chunk_address(stage.a, a_row, 2 * k + lane / 16) + 8",
        finds="align",
    ),
    _mma(
        "ldmatrix with the rows of another lane",
        "int const a_row = warp / 2 * 16 + lane % 16;",
        "int const a_row = warp / 2 * 16 + lane % 8;",
        finds=WRONG_RESULT,
    ),
    _mma(
        "fragments of b in the wrong order",
        "mma_m16n8k16(accum[0], a, b[0], b[1]);",
        "mma_m16n8k16(accum[0], a, b[0], b[2]);",
        finds=WRONG_RESULT,
    ),
    _mma(
        "k of a and of b one chunk apart",
        "chunk_address(stage.b, b_row, 2 * k + lane / 8 % 2)",
        "chunk_address(stage.b, b_row, (2 * k + 1 + lane / 8 % 2) % kChunksPerRow)",
        finds=WRONG_RESULT,
    ),
    _mma(
        "accumulators start uninitialised",
        "float accum[2][4] = {};",
        "float accum[2][4];",
        finds=WRONG_RESULT,
    ),
    _mma(
        "last step left out",
        "for (int step = 0; step < num_steps; ++step) {\n    cp_async_wait",
        "for (int step = 0; step < num_steps - 1; ++step) {\n    cp_async_wait",
        finds=WRONG_RESULT,
    ),
    _mma(
        "output written over stages that others still read",
        "__syncthreads();  // stages have been read",
        finds="race",
    ),
    _mma(
        "output read without a barrier",
        "__syncthreads();  // out is complete",
        finds="race",
    ),
    _mma(
        "less shared memory asked for than used",
        "sizeof(Shared)>>>",
        "sizeof(Shared) - sizeof(Stage)>>>",
        finds="memory",
    ),
    _mma(
        "half of a warp at a collective of all of it",
        "    ldmatrix_x4(b,",
        "    if (lane < 16) ldmatrix_x4(b,",
        finds="deadlock",
    ),
    _mma(
        "rows past m not zero-filled",
        "exists ? 16 : 0);",
        "16);",
        benign="they are copies of row 0, and their products are never stored",
    ),
    _wgmma(
        "no wait for the full stage",
        "mbarrier_wait(&shared.full[stage], step / kStages % 2);\n",
        finds="race",
    ),
    _wgmma(
        "no wait for the empty stage",
        "mbarrier_wait(&shared.empty[stage], step / kStages % 2 ^ 1);",
        finds="mbarrier",
    ),
    _wgmma(
        "stage given back while wgmmas may read it",
        "if (step > 0 && threadIdx.x % kWarpSize == 0) {\n"
        "      mbarrier_arrive(&shared.empty[(step - 1) % kStages]);",
        "if (threadIdx.x % kWarpSize == 0) {\n      mbarrier_arrive(&shared.empty[stage]);",
        finds="race",
    ),
    _wgmma(
        "no wait for the wgmmas of the step before",
        "wgmma_wait<1>(accum);",
        finds="race",
    ),
    _wgmma(
        "accumulators read without a wait",
        "wgmma_wait<0>(accum);",
        finds="async",
    ),
    _wgmma(
        "accumulators read one group too early",
        "wgmma_wait<0>(accum);",
        "wgmma_wait<1>(accum);",
        finds="async",
    ),
    _wgmma(
        "no commit, so that the waits wait for nothing",
        "    wgmma_commit();\n",
        finds="race",
    ),
    _wgmma(
        "no wgmma.fence after the accumulators were set",
        "    wgmma_fence();\n",
        finds="wgmma",
    ),
    _wgmma(
        "descriptor without the swizzle",
        "kSwizzle128B << 62 | (kGroupBytes",
        "(kGroupBytes",
        finds=WRONG_RESULT,
    ),
    _wgmma(
        "descriptor with the wrong distance of row groups",
        "kGroupBytes = 8 * kRowBytes",
        "kGroupBytes = 4 * kRowBytes",
        finds=WRONG_RESULT,
    ),
    _wgmma(
        "tensor map without the swizzle",
        "encode_matrix(b_map, b, n, k, kTileN, kTileK, CU_TENSOR_MAP_SWIZZLE_128B)",
        "encode_matrix(b_map, b, n, k, kTileN, kTileK, CU_TENSOR_MAP_SWIZZLE_NONE)",
        finds=WRONG_RESULT,
    ),
    _wgmma(
        "k advances by bytes where the descriptor counts 16 of them",
        "kAdvance = 16 * 2 >> 4",
        "kAdvance = 16 * 2 >> 3",
        finds=WRONG_RESULT,
    ),
    _wgmma(
        "expect_tx forgets one of two tiles",
        "kStageBytes = (kTileM + kTileN) * kRowBytes",
        "kStageBytes = kTileM * kRowBytes",
        finds="race",
    ),
    _wgmma(
        "accumulators start uninitialised",
        "float accum[8] = {};",
        "float accum[8];",
        finds=WRONG_RESULT,
    ),
    _wgmma(
        "row of c past the last one stored",
        "if (row < m && column < n) {",
        "if (row <= m && column < n) {",
        finds="memory",
    ),
    _wgmma(
        "waits for all wgmmas in every step",
        "wgmma_wait<1>(accum);",
        "wgmma_wait<0>(accum);",
        benign="slower only: the tensor cores idle between steps",
    ),
)
