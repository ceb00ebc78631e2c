"""Bugs in the row kernels."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_norm = partial(Bug, "rows", file="norm_rows.cu")
_gate = partial(Bug, "rows", file="gate_rows.cu")
_rope = partial(Bug, "rows", file="rope_cache.cu")
_heads = partial(Bug, "rows", file="heads.cuh")
_vector = partial(Bug, "rows", file="vector.cuh")

BUGS = (
    _norm(
        "blocks of a norm without rows leave before the wait",
        "  wait_for_previous_kernel();\n",
        "  if (row >= *input.num_rows) return;\n  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _norm(
        "normed row past the last one",
        "row >= *input.num_rows",
        "row > *input.num_rows",
        finds="memory",
    ),
    _norm(
        "taps of a mask row read",
        "if (source < 0) {",
        "if (source < -1) {",
        finds="memory",
    ),
    _norm(
        "mask rows not written",
        "      Row::store(params.out, first_out + vec, zeros);\n",
        finds=WRONG_RESULT,
    ),
    _norm(
        "rows not gathered",
        "input.source_row ? input.source_row[row] : row",
        "row",
        finds=WRONG_RESULT,
    ),
    _norm(
        "columns of the row in place of those of the tap",
        "(first_vec_ + vec) % tap_vecs_",
        "first_vec_ + vec",
        finds="memory",
    ),
    _norm(
        "first tap's norm for all",
        "first_vec_(group * num_vecs)",
        "first_vec_(0)",
        finds=WRONG_RESULT,
    ),
    _norm(
        "taps stored over one another",
        "row_vecs + blockIdx.y * num_vecs",
        "row_vecs",
        finds="race",
    ),
    _norm(
        "sum of what is kept only",
        "        sum += sum_of_squares<Row>(group.load(vec));\n",
        finds=WRONG_RESULT,
    ),
    _norm(
        "stored only what is kept",
        "    Row::store(params.out, first_out + vec, group.normed(group.load(vec), vec, rstd));\n",
        finds=WRONG_RESULT,
    ),
    _norm(
        "mean over vectors",
        "sum / float(columns)",
        "sum / float(num_vecs)",
        finds=WRONG_RESULT,
    ),
    _norm(
        "sums of squares transposed",
        "int64_t(i) * input.max_rows + source",
        "int64_t(source) * num_sums + i",
        finds=WRONG_RESULT,
    ),
    _norm(
        "one norm over taps that have their own",
        "input.norm_weight && !input.norms_each_tap",
        "input.norm_weight",
        finds=WRONG_RESULT,
    ),
    _norm(
        "taps not asked for their alignment",
        "    is_wide = is_wide && are_wide(input.tap_width, {input.taps[i]});\n",
        finds="align",
    ),
    _vector(
        "width not asked for",
        "width % kWideVector == 0 && ",
        finds=WRONG_RESULT,
    ),
    _gate(
        "blocks of a gate without rows leave before the wait",
        "  wait_for_previous_kernel();\n",
        "  if (*params.num_rows == 0) return;\n  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _gate(
        "gated row past the last one",
        "row >= *params.num_rows",
        "row > *params.num_rows",
        finds="memory",
    ),
    _gate(
        "vector past the last one",
        "vec >= num_vecs",
        "vec > num_vecs",
        finds="race",
    ),
    _gate(
        "gate taken for the up projection",
        "first + num_vecs",
        "first",
        finds=WRONG_RESULT,
    ),
    _gate(
        "rows of the product overlap",
        "int64_t(row) * 2 * num_vecs",
        "int64_t(row) * num_vecs",
        finds=WRONG_RESULT,
    ),
    _gate(
        "sigmoid the wrong way round",
        "__expf(-values[i])",
        "__expf(values[i])",
        finds=WRONG_RESULT,
    ),
    _gate(
        "last block of a row left out",
        " + kGateThreads - 1) / kGateThreads",
        ") / kGateThreads",
        finds=WRONG_RESULT,
    ),
    _rope(
        "blocks of heads without rows leave before the wait",
        "  wait_for_previous_kernel();\n",
        "  if (*params.num_rows == 0) return;\n  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _rope(
        "rotated row past the last one",
        "row >= *params.num_rows",
        "row > *params.num_rows",
        finds="memory",
    ),
    _rope(
        "heads past the last one read",
        "head < num_heads && vec < half_vecs",
        "vec < half_vecs",
        finds="memory",
    ),
    _rope(
        "heads past the last one stored",
        "  if (head >= num_heads) {\n    return;\n  }\n",
        finds="memory",
    ),
    _rope(
        "vectors past a half in the norm",
        "head < num_heads && vec < half_vecs",
        "head < num_heads",
        finds=WRONG_RESULT,
    ),
    _rope(
        "vectors past a half stored",
        "    if (vec >= half_vecs) {\n      break;\n    }\n",
        finds="memory",
    ),
    _rope(
        "half of the lanes left out of the norm",
        "Config::kLanes / 2; offset",
        "Config::kLanes / 4; offset",
        finds=WRONG_RESULT,
    ),
    _rope(
        "one step for heads that have several",
        "Row::kWidth == 1 ? kMaxHeadDim / 2 / kLanes : 1",
        "1",
        finds=WRONG_RESULT,
    ),
    _rope(
        "mean over half a head",
        "sum / float(params.head_dim)",
        "sum / float(half)",
        finds=WRONG_RESULT,
    ),
    _rope(
        "queries of rows without a slot left out",
        "is_query ? 0 : params.slots[row]",
        "params.slots[row]",
        finds=WRONG_RESULT,
    ),
    _rope(
        "rows without a slot stored",
        "if (slot < 0) {",
        "if (slot < -1) {",
        finds="memory",
    ),
    _rope(
        "keys not rotated",
        "if (is_query || is_key) {",
        "if (is_query) {",
        finds=WRONG_RESULT,
    ),
    _rope(
        "values rotated",
        "if (is_query || is_key) {",
        "{",
        finds=WRONG_RESULT,
    ),
    _rope(
        "norm of queries for keys",
        "is_key ? params.k_norm : nullptr",
        "is_key ? params.q_norm : nullptr",
        finds=WRONG_RESULT,
    ),
    _rope(
        "heads of values taken for those of keys",
        "(is_key ? 0 : params.num_kv_heads)",
        "0",
        finds="memory",
    ),
    _rope(
        "strides of a cache not asked for",
        " && strides % kWideVector == 0",
        finds=WRONG_RESULT,
    ),
    _heads(
        "slots of the cache counted from its first block",
        "slot % block_size * cache.slot_stride",
        "slot * cache.slot_stride",
        finds=WRONG_RESULT,
    ),
    _heads(
        "positions past the table",
        "return position < last ? position : last;",
        "return position < last ? position : position;",
        finds="memory",
    ),
    _heads(
        "rotation with a sign wrong",
        "x.x * cosine - x.y * sine",
        "x.x * cosine + x.y * sine",
        finds=WRONG_RESULT,
    ),
    _heads(
        "FP8 without its scale",
        "    values[i] /= scale;\n",
        finds=WRONG_RESULT,
    ),
    _heads(
        "one FP8 format for the other",
        "type == CacheType::kE4M3",
        "type != CacheType::kE4M3",
        finds=WRONG_RESULT,
    ),
)
