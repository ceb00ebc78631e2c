"""Bugs in kernels whose blocks add up what others computed."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_split = partial(Bug, "split_reduce")
_attention = partial(Bug, "attention_decode")
_cluster = partial(Bug, "cluster_sum")

BUGS = (
    _split(
        "warps' sums read without a barrier",
        "__syncthreads();  // warp_sums is complete",
        finds="race",
    ),
    _split(
        "counter raised without a barrier after the partial sums",
        "__syncthreads();  // partial is written",
        finds="race",
    ),
    _split(
        "no release fence before the counter",
        "__threadfence();  // release",
        finds="race",
    ),
    _split(
        "no acquire fence after the counter",
        "__threadfence();  // acquire",
        finds="race",
    ),
    _split(
        "release fence of block scope only",
        "__threadfence();  // release",
        "__threadfence_block();",
        finds="race",
    ),
    _split(
        "counter raised with block scope only",
        "atomicAdd(",
        "atomicAdd_block(",
        finds="race",
    ),
    _split(
        "counter raised by a plain load and store",
        "atomicAdd(&p.counters[tile], 1u)",
        "p.counters[tile]++",
        finds="race",
    ),
    _split(
        "is_last read without a barrier",
        "__syncthreads();  // is_last is known",
        finds="race",
    ),
    _split(
        "last arriver off by one, so that there is none",
        "== unsigned(num_splits) - 1",
        "== unsigned(num_splits)",
        finds=WRONG_RESULT,
    ),
    _split(
        "last arriver off by one, so that it does not wait for the last split",
        "== unsigned(num_splits) - 1",
        "== unsigned(num_splits) - 2",
        finds="race",
    ),
    _split(
        "counter not reset for the next launch",
        "p.counters[tile] = 0;",
        finds=WRONG_RESULT,
    ),
    _split(
        "last split reads past the end of a row",
        "min(k_begin + k_per_split, p.k)",
        "k_begin + k_per_split + 1",
        finds="memory",
    ),
    _split(
        "merge reads one split too many",
        "s < num_splits",
        "s <= num_splits",
        finds="memory",
    ),
    _split(
        "block leaves before the barrier if its tile is ragged",
        "__syncthreads();  // partial is written",
        "if (tile * kRows + thread >= p.m) return;\n  __syncthreads();",
        benign="the rows of these threads do not exist, and a barrier does not wait for the exited",
    ),
    _split(
        "release fence of system scope",
        "__threadfence();  // release",
        "__threadfence_system();",
        benign="a stronger fence than needed",
    ),
    _attention(
        "query used without a barrier after it is staged",
        "__syncthreads();  // q is staged",
        finds="race",
    ),
    _attention(
        "warps' results merged without a barrier",
        "__syncthreads();  // the warps' results are staged",
        finds="race",
    ),
    _attention(
        "counter raised without a barrier after the partial result",
        "__syncthreads();  // partial is written",
        finds="race",
    ),
    _attention(
        "all threads fence, then the barrier, then thread 0's atomic",
        "  __syncthreads();  // partial is written\n  if (thread == 0) {\n"
        "    __threadfence();  // release",
        "  __threadfence();\n  __syncthreads();\n  if (thread == 0) {",
        finds="race",
    ),
    _attention(
        "no acquire fence before the splits are merged",
        "__threadfence();  // acquire",
        finds="race",
    ),
    _attention(
        "one token too many",
        "min(begin + per_split, length)",
        "min(begin + per_split, length) + 1",
        finds=WRONG_RESULT,
    ),
    _attention(
        "last split not cut at the end of the sequence",
        "min(begin + per_split, length)",
        "begin + per_split",
        finds=WRONG_RESULT,
    ),
    _attention(
        "entry of the page table past the sequence's last page",
        "token / kPageTokens];",
        "token / kPageTokens + 1];",
        finds="memory",
    ),
    _attention(
        "page table of the neighbour",
        "sequence * p.max_pages +",
        "(sequence + 1) * p.max_pages +",
        finds="memory",
    ),
    _attention(
        "heads of a token taken for tokens of a head",
        "(slot * p.heads + head) * kHeadDim",
        "(slot + head * kPageTokens) * kHeadDim",
        finds=WRONG_RESULT,
    ),
    _attention(
        "old output not rescaled to the new maximum",
        "out[d] = out[d] * correction + weight * v[d];",
        "out[d] = out[d] + weight * v[d];",
        finds=WRONG_RESULT,
    ),
    _attention(
        "empty split gives exp(-inf + inf)",
        "old_maximum == -INFINITY ? 0.0f : __expf",
        "__expf",
        finds=WRONG_RESULT,
    ),
    _attention(
        "warp's result staged with too large a stride",
        "shared.out[warp][lane + d * kWarpSize] = softmax.out[d];",
        "shared.out[warp][lane + d * (kWarpSize + 1)] = softmax.out[d];",
        finds="race",
    ),
    _attention(
        "warp sum by half of the warp only",
        "softmax.add(warp_sum(score), v);",
        "if (lane < 16) softmax.add(warp_sum(score), v);",
        finds="deadlock",
    ),
    _attention(
        "counter not reset for the next launch",
        "p.counters[sequence_head] = 0;",
        finds=WRONG_RESULT,
    ),
    _attention(
        "lengths written by the kernel",
        "p.counters[sequence_head] = 0;",
        "p.counters[sequence_head] = 0;\n    const_cast<int*>(p.lengths)[sequence] = 0;",
        finds="memory",
    ),
    _cluster(
        "blocks' sums read behind a barrier of the block only",
        "  cluster_arrive();\n"
        "  float* const y_row = y + int64_t(row) * columns;\n"
        "  cluster_wait();",
        "  float* const y_row = y + int64_t(row) * columns;\n  __syncthreads();",
        finds="race",
    ),
    _cluster(
        "cluster barrier arrived at twice without a wait",
        "cluster_wait();  // all block_sums are written",
        finds="cluster",
    ),
    _cluster(
        "cluster barrier arrived at without release",
        "barrier.cluster.arrive.release;",
        "barrier.cluster.arrive.relaxed;",
        finds="race",
    ),
    _cluster(
        "block exits while others may read its shared memory",
        "cluster_wait();  // the others have, so its shared memory may go",
        finds="cluster",
    ),
    _cluster(
        "no cluster barrier before the exit at all",
        "cluster_arrive();  // this block has read",
        "return;",
        finds="cluster",
    ),
    _cluster(
        "rank past the cluster",
        "load_remote(&block_sum, rank)",
        "load_remote(&block_sum, rank + 1)",
        finds="cluster",
    ),
    _cluster(
        "arrival before block_sum is written",
        "  if (thread == 0) {\n    block_sum = warp_sums[0] + warp_sums[1];\n  }\n\n"
        "  cluster_arrive();\n",
        "  cluster_arrive();\n  if (thread == 0) {\n"
        "    block_sum = warp_sums[0] + warp_sums[1];\n  }\n",
        finds="race",
    ),
    _cluster(
        "half of the block skips the arrival",
        "  cluster_arrive();\n  float* const y_row",
        "  if (thread < kWarpSize) cluster_arrive();\n  float* const y_row",
        finds="cluster",
    ),
)
