"""Bugs between the warps of a block, and between launches."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_named = partial(Bug, "named_barriers")
_chain = partial(Bug, "pdl_chain")

BUGS = (
    _named(
        "no wait until the slot is full",
        "barrier_sync(kFull + slot);",
        "barrier_arrive(kFull + slot);",
        finds="race",
    ),
    _named(
        "no wait until the slot is empty",
        "barrier_sync(kEmpty + slot);",
        "barrier_arrive(kEmpty + slot);",
        finds="barrier",
    ),
    _named(
        "producer skips the empty barrier",
        "if (t >= kSlots) {",
        "if (t > kSlots) {",
        finds="barrier",
    ),
    _named(
        "consumer does not give the slot back",
        "      barrier_arrive(kEmpty + slot);\n",
        finds="deadlock",
    ),
    _named(
        "consumer gives the slot back before it reads",
        "barrier_sync(kFull + slot);\n"
        "    float value = shared.slots[slot][kTile - 1 - thread];\n"
        "    if (t + kSlots < tiles) {\n"
        "      barrier_arrive(kEmpty + slot);\n"
        "    }\n",
        "barrier_sync(kFull + slot);\n"
        "    if (t + kSlots < tiles) {\n"
        "      barrier_arrive(kEmpty + slot);\n"
        "    }\n"
        "    float value = shared.slots[slot][kTile - 1 - thread];\n",
        finds="race",
    ),
    _named(
        "ids of the two kinds overlap",
        "kEmpty = kFull + kSlots;",
        "kEmpty = kFull + kSlots - 1;",
        finds="barrier",
    ),
    _named(
        "id past the last barrier",
        "kEmpty = kFull + kSlots;",
        "kEmpty = 15;",
        finds="barrier",
    ),
    _named(
        "count of one warp too many at the full barrier",
        'asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");',
        'asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads + 32) : "memory");',
        finds="barrier",
    ),
    _named(
        "count of the waiting threads only",
        'asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");',
        'asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kTile) : "memory");',
        finds="barrier",
    ),
    _named(
        "both counts one warp too few",
        '"bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");\n'
        "}\n"
        "__device__ void barrier_arrive(int barrier) {\n"
        '  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");',
        '"bar.sync %0, 96;" ::"r"(barrier) : "memory");\n'
        "}\n"
        "__device__ void barrier_arrive(int barrier) {\n"
        '  asm volatile("bar.arrive %0, 96;" ::"r"(barrier) : "memory");',
        finds="barrier",
    ),
    _named(
        "warp's staging read without __syncwarp",
        "__syncwarp();  // staging is written",
        finds="race",
    ),
    _named(
        "warp's staging rewritten without __syncwarp",
        "__syncwarp();  // staging has been read",
        finds="race",
    ),
    _named(
        "full mask in half of a warp",
        "__shfl_xor_sync(0x0000ffffu, value, offset)",
        "__shfl_xor_sync(kFullMask, value, offset)",
        finds="deadlock",
    ),
    _named(
        "mask without the lanes that shuffle",
        "__shfl_xor_sync(0xffff0000u, value, offset)",
        "__shfl_xor_sync(0x0000ffffu, value, offset)",
        finds="warp",
    ),
    _named(
        "shuffle from the other half, which is not in the mask",
        "for (int offset = kHalf / 2; offset > 0; offset /= 2) {\n      value += ",
        "for (int offset = kHalf; offset > 0; offset /= 2) {\n      value += ",
        finds="warp",
    ),
    _named(
        "both warps share the staging of one",
        "shared.staging[thread / kWarpSize];",
        "shared.staging[0];",
        finds="race",
    ),
    _named(
        "slots one element short",
        "float slots[kSlots][kTile];",
        "float slots[kSlots][kTile - 1];",
        finds="race",
    ),
    _chain(
        "first kernel does not wait",
        "p_eagle::wait_for_previous_kernel();  // scale",
        finds="pdl",
    ),
    _chain(
        "second kernel does not wait",
        "p_eagle::wait_for_previous_kernel();  // mean",
        finds="pdl",
    ),
    _chain(
        "third kernel does not wait",
        "p_eagle::wait_for_previous_kernel();  // center",
        finds="pdl",
    ),
    _chain(
        "surplus blocks of the second kernel leave before the wait",
        "  p_eagle::wait_for_previous_kernel();  // mean",
        "  if (row >= *p.num_rows) return;\n  p_eagle::wait_for_previous_kernel();",
        finds="pdl",
    ),
    _chain(
        "prologue reads what an earlier kernel writes",
        "    bias[i] = p.bias[threadIdx.x + i * kWarpSize];",
        "    bias[i] = p.bias[threadIdx.x + i * kWarpSize] - p.mean[row];",
        finds="pdl",
    ),
    _chain(
        "prologue overwrites what an earlier kernel reads",
        "  p_eagle::wait_for_previous_kernel();  // center",
        "  p.state[row * kColumns + threadIdx.x] = 0.0f;\n  p_eagle::wait_for_previous_kernel();",
        finds="pdl",
    ),
    _chain(
        "only one thread of a block waits",
        "p_eagle::wait_for_previous_kernel();  // mean",
        "if (threadIdx.x == 0) p_eagle::wait_for_previous_kernel();",
        finds="pdl",
    ),
    _chain(
        "stores behind the block's trigger, which the next kernel does not wait out",
        "p_eagle::wait_for_previous_kernel();  // center\n  p_eagle::let_next_kernel_start();",
        "p_eagle::let_next_kernel_start();",
        finds="pdl",
    ),
    _chain(
        "blocks past the last row work",
        "  p_eagle::wait_for_previous_kernel();  // center\n"
        "  p_eagle::let_next_kernel_start();\n"
        "  if (row >= *p.num_rows) {",
        "  p_eagle::wait_for_previous_kernel();\n"
        "  p_eagle::let_next_kernel_start();\n"
        "  if (row > *p.num_rows) {",
        finds="uninit",
    ),
    _chain(
        "one thread waits, and the others meet it at a barrier",
        "p_eagle::wait_for_previous_kernel();  // mean",
        "if (threadIdx.x == 0) p_eagle::wait_for_previous_kernel();\n  __syncthreads();",
        benign="the barrier passes on what the thread has seen",
    ),
    _chain(
        "next kernel never let go early",
        "  p_eagle::wait_for_previous_kernel();  // mean\n  p_eagle::let_next_kernel_start();\n",
        "  p_eagle::wait_for_previous_kernel();\n",
        benign="slower only: the next kernel's prologue does not overlap",
    ),
    _chain(
        "mean taken from the row's sum of one column less",
        "for (int i = 0; i < kColumnsPerLane; ++i) {\n    sum +=",
        "for (int i = 1; i < kColumnsPerLane; ++i) {\n    sum +=",
        finds=WRONG_RESULT,
    ),
)
