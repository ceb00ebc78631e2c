"""Bugs in the attention kernels."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_kernel = partial(Bug, "paged_attention", file="paged_attention.cuh")
_arrival = partial(Bug, "paged_attention", file="arrival.cuh")
_pieces = partial(Bug, "paged_attention", file="paged_attention_pieces.cuh")
_softmax = partial(Bug, "paged_attention", file="attention_softmax.cuh")
_tiles = partial(Bug, "paged_attention", file="attention_tiles.cuh")
_bf16_tiles = partial(Bug, "paged_attention_bf16", file="attention_tiles.cuh")
_launch = partial(Bug, "paged_attention", file="launch.h")
_plan = partial(Bug, "plan_attention", file="attention_work.cuh")

_SYNCHRONISATION = (
    _kernel(
        "tiles used without a barrier after their copies",
        "__syncthreads();  // the tile is there, and the one before it has been read",
        "if (tile % 4 != 1) __syncthreads();",
        finds="race",
    ),
    _kernel(
        "one group of copies too many left in flight",
        "cute::cp_async_wait<kAhead - 1>();",
        "cute::cp_async_wait<kAhead>();",
        finds="race",
    ),
    _kernel(
        "no group for tiles without copies",
        "    cute::cp_async_fence();\n    if (looks_up",
        "    if (tile + kAhead < piece.num_tiles) cute::cp_async_fence();\n    if (looks_up",
        finds="race",
    ),
    _kernel(
        "next tile copied over the one that is used",
        "stage == 0 ? kAhead : stage - 1;",
        "stage;",
        finds="race",
    ),
    _kernel(
        "pages used without a barrier", "__syncthreads();  // the pages are known", finds="race"
    ),
    _kernel(
        "page looked up where another is still needed",
        "pages.at(tile + kAhead + 1, thread) = found;",
        "pages.at(tile + kAhead, thread) = found;",
        finds="race",
    ),
    _kernel(
        "warps' states written over tiles that are read",
        "__syncthreads();  // the tiles have been read",
        finds="race",
    ),
    _kernel(
        "warps' states read without a barrier",
        "__syncthreads();  // the states are written",
        finds="race",
    ),
    _kernel(
        "arrival before all threads have written",
        "__syncthreads();  // the partial result is written",
        finds="race",
    ),
    _arrival(
        "arrival without a fence",
        "  fence_device();  // what the CTA has stored comes before its arrival\n",
        finds="race",
    ),
    _arrival(
        "merge without a fence",
        "  fence_device();  // what the others have stored before theirs comes before what is read "
        "now\n",
        finds="race",
    ),
    _kernel(
        "who is last read without a barrier", "__syncthreads();  // is_last is known", finds="race"
    ),
    _kernel(
        "next piece over what is read", "__syncthreads();  // shared memory has been read",
        finds="race",
    ),
    _kernel(
        "next piece read without a barrier", "__syncthreads();  // the next piece is known",
        finds="race",
    ),
    _kernel(
        "first piece read without a barrier", "__syncthreads();  // the first piece is known",
        finds="race",
    ),
    _arrival(
        "counter not reset", "    *counter = 0;  // for the next kernel\n", finds=WRONG_RESULT
    ),
    _kernel(
        "merge by the last but one",
        "piece.last_block - piece.first_block + 1;",
        "piece.last_block - piece.first_block;",
        finds="race",
    ),
    _kernel(
        "a block's two partial results in one place",
        " + (block == first_block);",
        ";",
        finds="race",
    ),
    _launch("no wait for the previous kernel", "  cudaGridDependencySynchronize();\n", finds="pdl"),
    _kernel(
        "blocks without work leave before the wait",
        "  wait_for_previous_kernel();\n",
        "  if (params.work[1] == 0) return;\n  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
)  # fmt: skip

_WORK = (
    _kernel(
        "fewer warps for the rows than there are rows",
        "piece.packed_rows > 32 ? 4 : 2",
        "piece.packed_rows > 48 ? 4 : 2",
        finds=WRONG_RESULT,
    ),
    _kernel("warps that share rows take the same keys", "32 * key_warp", "0", finds=WRONG_RESULT),
    _kernel(
        "only one of the warps that share rows merged",
        "other < Config::kWarps - row_warps;",
        "other < row_warps;",
        finds=WRONG_RESULT,
    ),
    _kernel(
        "the first piece's partial result left out",
        "for (int block = piece.first_block; block <= piece.last_block; ++block) {\n"
        "      float* const",
        "for (int block = piece.first_block + 1; block <= piece.last_block; ++block) {\n"
        "      float* const",
        finds=WRONG_RESULT,
    ),
    _kernel(
        "value scale forgotten", "scale = *params.v_scale *", "scale = 1.0f *", finds=WRONG_RESULT
    ),
    _kernel(
        "sink of another head",
        "params.sinks[query_head]",
        "params.sinks[query_head ^ 1]",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "page index off by one",
        "table[key >> (__ffs(params_.block_size) - 1)]",
        "table[(key >> (__ffs(params_.block_size) - 1)) + 1]",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "page of the next request",
        "int64_t(segment.request) *",
        "int64_t(segment.request + 1) *",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "key past the last one read",
        "key < piece_.segment.key_end;",
        "key <= piece_.segment.key_end;",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "page before the window not looked up",
        "key + PageWindow::kKeysPerPage <= segment.key_begin",
        "key < segment.key_begin",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "key before the window read",
        "piece_.segment.key_begin <= key &&",
        "piece_.segment.key_begin <= key + 1 &&",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "pieces overlap by a tile",
        "min(current.num_tiles - piece.tile, end_place - place);",
        "min(current.num_tiles - piece.tile, end_place - place + 1);",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "a block's last tile left out",
        "end = begin + tiles_per_block;",
        "end = begin + tiles_per_block - 1;",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "first block counted from the piece",
        "piece.first_block = (place - piece.tile) /",
        "piece.first_block = place /",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "one block too many awaited",
        "(place - piece.tile + current.num_tiles - 1) /",
        "(place - piece.tile + current.num_tiles) /",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "next segment a tile too late",
        "place == current.line_start + current.num_tiles * params.num_kv_heads",
        "place > current.line_start + current.num_tiles * params.num_kv_heads",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "head of the values forgotten",
        " + piece.head * params.v_head_stride",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "query's power of two forgotten", "scale[half] *= to_half(half);", "to_half(half);",
        finds=WRONG_RESULT,
    ),
    _pieces("key scale forgotten", "*params.k_scale *", "", finds=WRONG_RESULT),
    _pieces(
        "row sees the key after its own",
        "min(position + 1, segment.key_end)",
        "min(position + 2, segment.key_end)",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "window one too wide",
        "position - params.window + 1;",
        "position - params.window;",
        finds=WRONG_RESULT,
    ),
    _pieces(
        "tree from the row's own position",
        "clamp_position(params.positions[piece.row_begin])",
        "clamp_position(params.positions[row])",
        finds=WRONG_RESULT,
    ),
)  # fmt: skip

_ARITHMETIC = (
    _softmax(
        "mask only where the second row needs one",
        "first + count <= min(end[0], end[1])",
        "first + count <= end[1]",
        finds=WRONG_RESULT,
    ),
    _softmax(
        "mask from a key too late on",
        "first + count <= min(end[0], end[1])",
        "first + count <= min(end[0], end[1]) + 1",
        finds=WRONG_RESULT,
    ),
    _softmax("mask off by one", "key < end[half];", "key <= end[half];", finds=WRONG_RESULT),
    _softmax("window off by one", "key >= begin[half]", "key > begin[half]", finds=WRONG_RESULT),
    _softmax(
        "bit of the next row", "(key - end[half]) & 63", "(key - end[half] + 1) & 63",
        finds=WRONG_RESULT,
    ),
    _softmax(
        "bits of rows without a key", "key < tree_end &&", "", finds=WRONG_RESULT
    ),
    _softmax(
        "-inf minus -inf", "maximum == negative_infinity() ? 0.0f : maximum", "maximum",
        finds=WRONG_RESULT,
    ),
    _softmax(
        "values not rescaled",
        "        out[n][2 * half] *= factor;\n        out[n][2 * half + 1] *= factor;\n",
        finds=WRONG_RESULT,
    ),
    _softmax("sum not rescaled", "      sum[half] *= factor;\n", finds=WRONG_RESULT),
    _softmax(
        "maximum not kept", "      maximum[half] = new_maximum[half];\n", finds=WRONG_RESULT
    ),
    _softmax(
        "rescaled for the first row only",
        "new_maximum[0] > maximum[0] || new_maximum[1] > maximum[1]",
        "new_maximum[0] > maximum[0]",
        benign="weights above 1 of the older maximum are as right",
    ),
    _softmax(
        "maximum of half a quad",
        "return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));",
        "return x;",
        finds=WRONG_RESULT,
    ),
    _softmax("sum of a lane, not a row", "    sum[0] = quad_sum(sum[0]);\n", finds=WRONG_RESULT),
    _softmax(
        "other warp's sum forgotten",
        "sum[half] += factor[half] * memory",
        "sum[half] += 0.0f * memory",
        finds=WRONG_RESULT,
    ),
    _tiles(
        "read without the swizzle", "(Swizzle::apply(row) ^ row)", "0", finds=WRONG_RESULT
    ),
    _bf16_tiles(
        "halves of a fragment swapped",
        "q[pair], k[0], k[2]);",
        "q[pair], k[2], k[0]);",
        finds=WRONG_RESULT,
    ),
    _bf16_tiles(
        "columns of the values swapped",
        "multiply_add<Element>(out[2 * pair], a, v[0], v[1]);",
        "multiply_add<Element>(out[2 * pair], a, v[2], v[3]);",
        finds=WRONG_RESULT,
    ),
    _tiles("values not transposed", "SM75_U16x8_LDSM_T", "SM75_U32x4_LDSM_N", finds=WRONG_RESULT),
    _tiles("bytes of FP8 pairs in another order", "0x3120", "0x3210", finds=WRONG_RESULT),
    _tiles(
        "columns of FP8 results in another order",
        "visit(16 * step + 4 * quad, a[2 * half], b[2 * half]);",
        "visit(16 * step + 4 * quad, a[2 * half], a[2 * half + 1]);",
        finds=WRONG_RESULT,
    ),
)  # fmt: skip

_PLAN = (
    _plan(
        "requests' segments read without a barrier",
        "__syncthreads();  // request_segment is written, the sums have been read",
        finds="race",
    ),
    _plan(
        "segments read without a barrier",
        "__syncthreads();  // the segments are written, the sums have been read",
        finds="race",
    ),
    _plan(
        "running sums used without a barrier", "    __syncthreads();\n", finds="race",
        file="scan.cuh",
    ),
    _plan("search for the one before", "at(middle) <= value", "at(middle) < value", finds="memory"),
    _plan(
        "segments of earlier rounds forgotten",
        "all_segments + sums.before;",
        "sums.before;",
        finds=WRONG_RESULT,
    ),
    _plan(
        "tiles of earlier rounds forgotten",
        "num_tiles + int(sums.before)",
        "int(sums.before)",
        finds=WRONG_RESULT,
    ),
    _plan(
        "rows past the buffers",
        "min(row_start[request + 1], num_rows)",
        "row_start[request + 1]",
        finds="memory",
    ),
    _plan(
        "last row past the request's", "rows.count - 1);", "rows.count);", finds=WRONG_RESULT
    ),
    _plan("keys past the block table", "in.max_keys);", "1 << 30);", finds=WRONG_RESULT),
    _plan("row's own key left out", "max(newest + 1, 0)", "max(newest, 0)", finds=WRONG_RESULT),
    _plan(
        "window one too wide", "oldest - in.window + 1", "oldest - in.window", finds=WRONG_RESULT
    ),
    _plan(
        "segments without keys get no tile",
        "- first_tile, 1);",
        "- first_tile, 0);",
        finds=WRONG_RESULT,
    ),
    _plan("share rounded down", "a / b + (a % b != 0)", "a / b", finds=WRONG_RESULT),
    _plan(
        "no wait for the previous kernel", "  wait_for_previous_kernel();\n", finds="pdl",
        file="plan_attention.cu",
    ),
)  # fmt: skip

BUGS = (*_SYNCHRONISATION, *_WORK, *_ARITHMETIC, *_PLAN)
