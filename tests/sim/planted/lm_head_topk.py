"""Bugs in the head."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_kernel = partial(Bug, "lm_head_topk", file="kernel.cuh")
_column = partial(Bug, "lm_head_topk", file="column.cuh")
_merge = partial(Bug, "lm_head_topk", file="merge.cuh")
_order = partial(Bug, "lm_head_topk", file="order.cuh")
_noise = partial(Bug, "lm_head_topk", file="noise.cuh")
_arrival = partial(Bug, "lm_head_topk", file="arrival.cuh")

BUGS = (
    _kernel(
        "no wait for the previous kernel",
        "    wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _kernel(
        "weights used one stage before they have come",
        "cute::cp_async_wait<Config::kStages - 2>();",
        "cute::cp_async_wait<Config::kStages - 1>();",
        finds="race",
    ),
    _kernel(
        "no barrier before a unit is multiplied",
        "        __syncthreads();  // this unit is in shared memory, and all have done with the one"
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
        "next rows stored over the ones that are multiplied",
        "typename Config::Rows& next = shared_.rows[rows_stage ^ 1];",
        "typename Config::Rows& next = shared_.rows[rows_stage];",
        finds="race",
    ),
    _kernel(
        "no barrier between storing columns and taking them",
        "      store_columns(first, acc);\n      __syncthreads();\n",
        "      store_columns(first, acc);\n",
        finds="race",
    ),
    _kernel(
        "rows of the weight past the end of the run",
        "    if (row >= end_row_) {\n      return -1;\n    }\n",
        finds="memory",
    ),
    _kernel(
        "row of the weight instead of the subset's",
        "return params_.vocab_subset ? params_.vocab_subset[row] : row;",
        "return row;",
        finds=WRONG_RESULT,
    ),
    _kernel(
        "findings not all stored when the CTA arrives",
        "    }\n    __syncthreads();\n    if (threadIdx.x == 0) {\n      shared_.is_last",
        "    }\n    if (threadIdx.x == 0) {\n      shared_.is_last",
        finds="race",
    ),
    _kernel(
        "a launch without rows leaves before it arrives",
        "      to_load = 0;\n",
        "      to_load = 0;\n      cute::cp_async_wait<0>();\n      return;\n",
        finds=WRONG_RESULT,
    ),
    _column(
        "the state written while others read it",
        "    __syncwarp();  // all have read the state\n",
        finds="race",
    ),
    _column(
        "NaN logits kept",
        "fmaxf(values[i] * rows.scales[i] * noise.scale, -INFINITY)",
        "values[i] * rows.scales[i] * noise.scale",
        finds=WRONG_RESULT,
    ),
    _column(
        "rows that do not exist count as zeros in the sum",
        "logits[c][i] = rows.ids[i] >= 0 ? logit : -INFINITY;",
        "logits[c][i] = logit;",
        finds=WRONG_RESULT,
    ),
    _column(
        "sum not rescaled to the new maximum",
        "    log_sums[c].sum *= __expf(log_sums[c].max - max);\n",
        finds=WRONG_RESULT,
    ),
    _column(
        "noise in a row of temperature zero",
        "    if (temperature > 0.0f) {\n      scale = 1.0f / temperature;\n",
        "    if (params.temperature) {\n"
        "      scale = temperature > 0.0f ? 1.0f / temperature : 1.0f;\n",
        finds=WRONG_RESULT,
    ),
    _column(
        "noise in the logits that are returned",
        "best.insert(candidates, params.top_k);",
        "for (int i = 0; i < kLaneRows; ++i) candidates.values[i] = scores[i];\n"
        "      best.insert(candidates, params.top_k);",
        finds=WRONG_RESULT,
    ),
    _order(
        "of equals the higher id first",
        "| ~uint32_t(id);\n}\n\n"
        "CUTLASS_DEVICE int candidate_id(uint64_t key) { return int(~uint32_t(key)); }",
        "| uint32_t(id);\n}\n\n"
        "CUTLASS_DEVICE int candidate_id(uint64_t key) { return int(uint32_t(key)); }",
        finds=WRONG_RESULT,
    ),
    _order(
        "negative scores in the order of their magnitudes",
        "bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);",
        "bits ^ 0x80000000u;",
        finds=WRONG_RESULT,
    ),
    _order(
        "a candidate is taken again and again",
        "        keys[i] = kNoCandidate;\n",
        "        keys[i] = keys[i] - 0;\n",
        finds=WRONG_RESULT,
    ),
    _noise(
        "one word for four ids",
        "block.word(ids[i] % kPhiloxWords)",
        "block.word(0)",
        finds=WRONG_RESULT,
    ),
    _noise(
        "upper half of the position left out",
        "uint32_t(position >> 32)",
        "0u",
        finds=WRONG_RESULT,
    ),
    _merge(
        "only the first entries merged",
        "findings.key(sample, entry % top_k, list)",
        "findings.key(sample, 0, list)",
        finds=WRONG_RESULT,
    ),
    _merge(
        "maxima of CTAs not taken into account",
        "part.sum * __expf(part.max - merged[c].max)",
        "part.sum",
        finds=WRONG_RESULT,
    ),
    _arrival(
        "one arrival too few",
        "atomicAdd(counter, 1) == num_ctas - 1",
        "atomicAdd(counter, 1) >= num_ctas - 2",
        finds="race",
    ),
    _arrival(
        "counter not reset",
        "    *counter = 0;  // for the next kernel\n",
        finds=WRONG_RESULT,
    ),
)
