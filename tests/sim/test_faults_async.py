"""Kernels with errors in barriers and asynchronous copies: each is reported for what it is."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from sim.emulator import AsyncTiming, Settings
from sim.micro_kernels import Conformance

INT = np.int32
INPUT = np.arange(128, dtype=INT)

RACE = "needs race detection"
EARLY = "needs operations that end at once"
LATE = "needs operations that end late"


@dataclass(frozen=True)
class Fault:
    kernel: str
    kind: str
    message: str  # a regular expression
    arguments: dict[str, Any]
    needs: str

    def is_seen_under(self, settings: Settings) -> bool:
        if self.needs == RACE:
            return settings.race_detection
        timing = {EARLY: AsyncTiming.EARLY, LATE: AsyncTiming.LATE}.get(self.needs)
        return timing in (None, settings.async_timing)


def fault(kernel: str, kind: str, message: str, *, needs: str = "", **arguments: Any) -> Any:
    threads = arguments.get("grid", 1) * arguments.get("block", 32)
    arguments = {"outputs": [(threads, INT)], "inputs": [INPUT], **arguments}
    name = f"{kernel}-{kind}" + "".join(f"-{n}" for n in arguments.get("n", ()))
    return pytest.param(Fault(kernel, kind, message, arguments, needs), id=name)


FAULTS = [
    # Barriers
    fault("no_barrier", "race", "a read of shared memory", needs=RACE, block=64),
    fault("different_counts", "barrier", "barrier 1: (96|64) threads .* (96|64) by", block=96),
    fault("count_in_n", "barrier", "thread count 48 is no positive multiple", block=64, n=[48]),
    fault("count_in_n", "barrier", "thread count 0 is no positive multiple", block=64, n=[0]),
    fault("count_in_n", "barrier", "count is 96, and the block has 64", block=64, n=[96]),
    fault("barrier_in_n", "barrier", "there are barriers 0 to 15, not 16", block=64, n=[16]),
    fault("arrives_twice", "barrier", "lanes 0-31 arrive again .*32 of 64 threads", block=64),
    fault("only_one_warp_comes", "deadlock", "32 of 64 threads", block=64),
    fault("half_a_warp_comes", "deadlock", "16 threads wait for other lanes of their warp"),
    fault("not_in_its_mask", "warp", "mask of lanes 0-15"),
    # Clusters
    fault("waits_without_arriving", "cluster", "where it has not arrived"),
    fault("arrives_without_waiting", "cluster", "arrive again without a wait", grid=2, cluster=2),
    fault("no_such_rank", "cluster", "2 blocks, there is none of rank 2", grid=2, cluster=2),
    fault("owner_has_left", "cluster", "block 0, which has exited|block 0 exits while block 1",
          needs=RACE, grid=2, cluster=2),
    fault("unordered_remote_write", "race", "of shared memory", needs=RACE, grid=2, cluster=2),
    # mbarriers
    fault("not_initialized", "mbarrier", "holds no initialised mbarrier"),
    fault("initialized_with_n", "mbarrier", "a count of 0 arrivals", n=[0]),
    fault("initialized_with_n", "mbarrier", "a count of 1048576 arrivals", n=[1 << 20]),
    fault("written_over", "mbarrier", "has been written over", n=[2]),
    fault("misaligned_mbarrier", "align", "aligned to 8 bytes"),
    fault("no_sync_after_init", "race", "mbarrier.arrive", needs=RACE),
    fault("too_many_arrivals", "mbarrier", "3 arrivals, but only 2 of the phase's 2"),
    fault("too_few_arrivals", "deadlock", "misses 1 of 33 arrivals and 0 bytes"),
    fault("stale_state", "mbarrier", "phase 0 of an mbarrier in phase 3"),
    fault("too_many_bytes", "mbarrier", "1048576 bytes now"),
    # cp.async
    fault("no_wait_for_copies", "race", "asynchronous copy issued by thread", needs=RACE),
    fault("waits_for_too_few_groups", "race", "asynchronous copy issued by", needs=RACE),
    fault("copies_of_two_groups_to_one_place", "race", "a write of shared", needs=RACE),
    fault("no_barrier_after_copies", "race", "asynchronous copy issued by", needs=RACE, block=64,
          inputs=[np.arange(256, dtype=INT)]),
    fault("misaligned_copy", "align", "cp.async of 16 bytes", n=[1]),
    fault("copy_past_the_end", "memory", "offset 512 of 'in0'", n=[4]),
    # Bulk copies
    fault("no_wait_for_bulk_load", "race", "asynchronous copy issued by thread 0", needs=RACE),
    fault("expects_too_many_bytes", "deadlock", "misses 0 of 1 arrivals and 16 bytes"),
    fault("expects_too_few_bytes", "deadlock", "misses 0 of 1 arrivals and -16 bytes"),
    fault("misaligned_source", "align", "512 bytes from 0x"),
    fault("misaligned_target", "align", "512 bytes from 0x"),
    fault("misaligned_size", "align", "500 bytes from 0x"),
    fault("bulk_source_past_the_end", "memory", "512 bytes at offset 16 of 'in0'"),
    fault("bulk_target_past_the_end", "memory", r"out-of-bounds write of 512 .*\(1024 bytes\)"),
    fault("prefetch_past_the_end", "memory", "1024 bytes .* are not all inside"),
    fault("no_proxy_fence", "proxy", "without a fence.proxy.async", needs=RACE),
    fault("no_wait_for_bulk_store", "async", "without waiting for its bulk copies"),
    fault("no_sync_before_bulk_store", "race", "a read of shared memory", needs=RACE),
    fault("no_wait_before_reuse", "race", "a write of shared memory", needs=RACE),
    fault("bulk_stores_to_one_place", "race", "a write of out0", needs=RACE, grid=2),
    fault("reads_result_after_wait_read", "race", "a read of out0", needs=RACE,
          outputs=[(4, INT)]),
    fault("leaves_with_bytes_pending", "mbarrier", "128 bytes (have )?come to the", n=[128]),
    fault("leaves_with_bytes_pending", "mbarrier", "waits for 16 more bytes", n=[272],
          needs=EARLY),
    fault("leaves_with_bytes_pending", "mbarrier", "waits for 256 more bytes", n=[256],
          needs=LATE),
    fault("mbarrier_of_another_block", "mbarrier", "which is not there", grid=2, cluster=2),
    fault("invalidated_too_early", "mbarrier", "128 bytes are pending", needs=LATE),
    fault("multicast_to_nobody", "cluster", "a multicast to blocks 0x0 of", grid=2, cluster=2,
          n=[0]),
    fault("multicast_to_nobody", "cluster", "blocks 0x4 of a cluster of 2", grid=2, cluster=2,
          n=[4]),
    # Tensor copies
    fault("no_tensor_map", "tma", "there is no tensor map", n=[0]),
    fault("no_tensor_map", "align", "not aligned to 64 bytes", n=[16]),
]  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_fault(conformance: Conformance, case: Fault) -> None:
    start = time.process_time()
    reports = conformance.run_faulty("faults_async.cu", case.kernel, **case.arguments)
    assert time.process_time() - start < 20
    if not case.is_seen_under(conformance.settings):
        return
    assert [r for r in reports if r.kind == case.kind and re.search(case.message, r.message)], (
        f"expected [{case.kind}] {case.message}, got {[str(r) for r in reports]}"
    )
    assert {r.kind for r in reports} == {case.kind}
    assert any("faults_async.cu:" in r.where + r.message for r in reports)


def test_late_copies_are_late() -> None:
    """Without a wait a copy that ends late is not there yet: the poison shows."""
    settings = Settings(async_timing=AsyncTiming.LATE, check_uninitialized=False)
    conformance = Conformance(settings)
    for kernel in (
        "no_wait_for_copies", "waits_for_too_few_groups", "no_wait_for_bulk_load",
        "waits_for_the_second_load",
    ):  # fmt: skip
        (got,) = conformance.run("faults_async.cu", kernel, inputs=[INPUT], outputs=[(32, INT)])
        np.testing.assert_array_equal(got, -1, err_msg=kernel)
