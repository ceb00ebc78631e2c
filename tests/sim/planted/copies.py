"""Bugs in kernels that move memory by bulk copies and TMA."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import LAUNCH_ERROR, WRONG_RESULT, Bug

_pipeline = partial(Bug, "tma_pipeline")
_tensor = partial(Bug, "tma_tensor")

BUGS = (
    _pipeline(
        "mbarriers used without a barrier after they are made",
        "__syncthreads();  // the mbarriers exist",
        finds="mbarrier",
    ),
    _pipeline(
        "no wait for the empty stage",
        "mbarrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);",
        finds="mbarrier",
    ),
    _pipeline(
        "wait for the empty stage with the wrong parity",
        "mbarrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);",
        "mbarrier_wait(&shared.empty[ring.stage], ring.parity);",
        finds="deadlock",
    ),
    _pipeline(
        "no wait for the full stage",
        "mbarrier_wait(&shared.full[ring.stage], ring.parity);",
        finds="race",
    ),
    _pipeline(
        "wait for the full stage with the wrong parity",
        "mbarrier_wait(&shared.full[ring.stage], ring.parity);",
        "mbarrier_wait(&shared.full[ring.stage], ring.parity ^ 1);",
        finds="deadlock",
    ),
    _pipeline(
        "parity never flips",
        "parity ^= 1;",
        finds="deadlock",
    ),
    _pipeline(
        "expect_tx forgets one of two copies",
        "mbarrier_arrive_expect_tx(&shared.full[ring.stage], 2 * bytes);",
        "mbarrier_arrive_expect_tx(&shared.full[ring.stage], bytes);",
        finds="race",
    ),
    _pipeline(
        "expect_tx counts a whole stage where rows are fewer",
        "mbarrier_arrive_expect_tx(&shared.full[ring.stage], 2 * bytes);",
        "mbarrier_arrive_expect_tx(&shared.full[ring.stage], 2 * kStageRows * kRowBytes);",
        finds="deadlock",
    ),
    _pipeline(
        "arrives without expecting the bytes",
        "mbarrier_arrive_expect_tx(&shared.full[ring.stage], 2 * bytes);",
        "mbarrier_arrive(&shared.full[ring.stage]);",
        finds="race",
    ),
    _pipeline(
        "bytes counted on the next stage's mbarrier",
        "p.b + int64_t(row) * kColumns, bytes, &shared.full[ring.stage]",
        "p.b + int64_t(row) * kColumns, bytes, &shared.full[(ring.stage + 1) % kStages]",
        finds="deadlock",
    ),
    _pipeline(
        "bulk copy past the last row",
        "int const bytes = min(kStageRows, end - row) * kRowBytes;",
        "int const bytes = kStageRows * kRowBytes;",
        finds="memory",
    ),
    _pipeline(
        "bulk copy from an address that is no multiple of 16",
        "p.a + int64_t(row) * kColumns, bytes",
        "p.a + int64_t(row) * kColumns + 1, bytes",
        finds="align",
    ),
    _pipeline(
        "bulk copy of a size that is no multiple of 16",
        "p.a + int64_t(row) * kColumns, bytes",
        "p.a + int64_t(row) * kColumns, bytes - 4",
        finds="align",
    ),
    _pipeline(
        "all lanes of the producer copy",
        "if (threadIdx.x % kWarpSize == 0) {\n      produce(",
        "{\n      produce(",
        finds="mbarrier",
    ),
    _pipeline(
        "stage given back before it is read",
        "    __syncwarp();  // all lanes have read\n"
        "    if (threadIdx.x % kWarpSize == 0) {\n"
        "      mbarrier_arrive(&shared.empty[ring.stage]);\n    }\n",
        finds="deadlock",
    ),
    _pipeline(
        "lane 0 gives the stage back without __syncwarp",
        "__syncwarp();  // all lanes have read",
        finds="race",
    ),
    _pipeline(
        "empty mbarrier counts threads, though warps arrive",
        "mbarrier_init(&shared.empty[stage], kConsumerWarps);",
        "mbarrier_init(&shared.empty[stage], kConsumers);",
        finds="deadlock",
    ),
    _pipeline(
        "empty mbarrier counts one warp too few",
        "mbarrier_init(&shared.empty[stage], kConsumerWarps);",
        "mbarrier_init(&shared.empty[stage], kConsumerWarps - 1);",
        finds="race",
    ),
    _pipeline(
        "ring of stages one too long",
        "if (++stage == kStages) {",
        "if (++stage == kStages + 1) {",
        finds="mbarrier",
    ),
    _pipeline(
        "sums start uninitialised",
        "float sums[kColumnsPerThread] = {};",
        "float sums[kColumnsPerThread];",
        finds=WRONG_RESULT,
    ),
    _pipeline(
        "no proxy fence before the bulk store",
        "fence_proxy_async();  // by the writers, before they meet the thread that stores",
        finds="proxy",
    ),
    _pipeline(
        "proxy fence by the storing thread, before the barrier",
        "fence_proxy_async();  // by the writers, before they meet the thread that stores",
        "if (threadIdx.x == 0) fence_proxy_async();",
        finds="proxy",
    ),
    _pipeline(
        "no barrier before the bulk store",
        'asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");',
        finds="race",
    ),
    _pipeline(
        "barrier of the whole block, of which the producer never comes",
        'asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");',
        'asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");',
        finds="deadlock",
    ),
    _pipeline(
        "bulk store not committed",
        "    bulk_commit();\n",
        finds="async",
    ),
    _pipeline(
        "exit without a wait for the bulk store",
        "    bulk_wait();\n",
        finds="async",
    ),
    _pipeline(
        "result overwritten while the bulk store may read it",
        "    bulk_commit();\n",
        "    bulk_commit();\n    shared.result[0] = 0.0f;\n",
        finds="race",
    ),
    _pipeline(
        "proxy fence by all threads, also after the barrier",
        '"n"(kConsumers) : "memory");\n',
        '"n"(kConsumers) : "memory");\n  fence_proxy_async();\n',
        benign="a fence more than needed",
    ),
    _tensor(
        "swizzle not undone",
        "in + swizzle_128b(i * 2)",
        "in + i * 2",
        finds=WRONG_RESULT,
    ),
    _tensor(
        "swizzle of half the pattern",
        "(offset >> 7 & 7) << 4",
        "(offset >> 7 & 3) << 4",
        finds=WRONG_RESULT,
    ),
    _tensor(
        "result swizzled, though its map is plain",
        "reinterpret_cast<uint16_t*>(out + i * 2)",
        "reinterpret_cast<uint16_t*>(out + swizzle_128b(i * 2))",
        finds=WRONG_RESULT,
    ),
    _tensor(
        "map with another swizzle than the tile is wide",
        "kTileColumns, CU_TENSOR_MAP_SWIZZLE_128B)",
        "kTileColumns, CU_TENSOR_MAP_SWIZZLE_64B)",
        finds=LAUNCH_ERROR,
    ),
    _tensor(
        "coordinates of the load in the wrong order",
        "tensor_load_2d(in, &x_map, first_column, first_row, &full);",
        "tensor_load_2d(in, &x_map, first_row, first_column, &full);",
        finds=WRONG_RESULT,
    ),
    _tensor(
        "expect_tx counts only what is inside of the matrix",
        "mbarrier_arrive_expect_tx(&full, kTileBytes);",
        "mbarrier_arrive_expect_tx(&full, kTileRows * min(kTileColumns, columns - first_column)"
        " * 2);",
        finds="deadlock",
    ),
    _tensor(
        "map of one row too many",
        "encode_matrix(x_map, x, rows, columns,",
        "encode_matrix(x_map, x, rows + 1, columns,",
        finds="memory",
    ),
    _tensor(
        "map of one row too many, stored to",
        "encode_matrix(y_map, y, rows, columns,",
        "encode_matrix(y_map, y, rows + 1, columns,",
        finds="memory",
    ),
    _tensor(
        "no wait for the load",
        "mbarrier_wait(&full, parity);",
        finds="race",
    ),
    _tensor(
        "parity starts with the phase that is complete from the start",
        "int parity = 0;",
        "int parity = 1;",
        finds="deadlock",
    ),
    _tensor(
        "parity never flips",
        "    parity ^= 1;\n",
        finds="deadlock",
    ),
    _tensor(
        "result overwritten while the store before may read it",
        "      bulk_wait_read();\n",
        finds="race",
    ),
    _tensor(
        "only one thread knows that the store before has read the result",
        "__syncthreads();  // the store of the tile before has read out",
        finds="race",
    ),
    _tensor(
        "no barrier between mbarrier.init and its use by others",
        "__syncthreads();  // the mbarrier exists",
        benign="the barrier in the loop comes before the others' first use",
    ),
    _tensor(
        "no proxy fence before the store",
        "  fence_proxy_async();\n",
        finds="proxy",
    ),
    _tensor(
        "no barrier before the store, and before the next load",
        "__syncthreads();  // out is complete, and in has been read",
        finds="race",
    ),
    _tensor(
        "tile where TMA cannot put it",
        "__shared__ alignas(1024) uint8_t in[kTileBytes];",
        "__shared__ alignas(1024) uint8_t in_and_more[kTileBytes + 64];\n"
        "  uint8_t* const in = in_and_more + 64;",
        finds="align",
    ),
    _tensor(
        "exit without a wait for the store",
        "    bulk_wait();\n",
        finds="async",
    ),
)
