"""Passes move the bytes, in the launches, that the committed simulation says."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from p_eagle_cuda.planning.gpus import GPUS
from p_eagle_cuda.planning.phases import Batch
from p_eagle_cuda.planning.prediction import PassModel
from p_eagle_cuda.planning.traffic import KernelTraffic, PassTraffic
from sim import summary
from test_benchmarks import load

SLACK = 1.02
UPDATE = "run: python benchmarks/simulate_traffic.py --json python/p_eagle_cuda/data/{}"
# Whose tiles may be cut, so that thread blocks leave partial sums as `planning.tiles` says.
CUT = ("project_taps", "qkv_rope_cache", "o", "norm_swiglu", "down")


@pytest.fixture(scope="module")
def counted() -> PassTraffic:
    simulate_traffic = load("simulate_traffic")
    report = simulate_traffic.simulate(simulate_traffic._parser().parse_args([]))
    found = PassTraffic.of(report)
    summary.notes += ["simulated, passes of the bundled drafter: bytes moved / bytes needed"]
    summary.notes += simulate_traffic.table(report).splitlines()
    return found


@dataclass(frozen=True)
class Change:
    """A kernel of a pass, as it is and as the committed counts say."""

    name: str
    now: KernelTraffic
    before: KernelTraffic


@pytest.fixture
def changes(counted: PassTraffic) -> list[Change]:
    committed = PassTraffic.read()
    assert counted.passes.keys() == committed.passes.keys()
    for kind, kernels in counted.passes.items():
        assert kernels.keys() == committed.passes[kind].keys(), kind
    return [
        Change(f"{name} of {kind}", now, committed.find(kind, name))
        for kind, kernels in counted.passes.items()
        for name, now in kernels.items()
    ]


def test_no_kernel_moves_more_than_before(changes: list[Change]) -> None:
    update = UPDATE.format("pass_traffic.json")
    fell = []
    for name, now, known in ((x.name, x.now, x.before) for x in changes):
        assert now.launches <= known.launches, name
        assert now.shared_bytes == known.shared_bytes, f"{name}: shared memory; if meant, {update}"
        assert now.needed_bytes == known.needed_bytes, f"{name} is counted in another way: {update}"
        for what in ("moved_bytes", "partial_bytes"):
            new, old = getattr(now, what), getattr(known, what)
            assert new <= SLACK * old, f"{name}: {what} {old} -> {new}"
            if SLACK * new < old or now.launches < known.launches:
                fell.append(f"{name}: {what} {old} -> {new} in {now.launches} launches")
    if fell:
        summary.notes += [f"kernels move less than the committed counts say, {update}", *fell]


def test_a_kernel_moves_what_must_move(counted: PassTraffic) -> None:
    """So the count that predicts other drafters is one of these kernels."""
    for kind, kernels in counted.passes.items():
        for name, now in kernels.items():
            if now.needed_bytes > 1 << 15:
                assert 1 <= now.moved_over_needed <= 1.04, (kind, name)
            if name in CUT:
                assert 1 <= now.partial_over_planned <= SLACK, (kind, name)


def test_no_pass_is_predicted_to_take_longer_than_before(counted: PassTraffic) -> None:
    """Of the gpt-oss-20b drafter on an H200; all times are predicted."""
    shapes = load("shapes")
    config = shapes.config_of(shapes.DRAFTERS["gpt-oss-20b"])
    for linear in ("auto", "fused"):
        for size in (1, 8, 32, 128):
            batch = Batch.of_equal(size, 7, 3, 4096)
            now, before = (
                PassModel(config, GPUS["h200"], linear=linear, traffic=traffic).predict(batch)
                for traffic in (counted, PassTraffic.read())
            )
            most_launches, most_us = before.launches, SLACK * before.predicted_us
            launches, us = now.launches, now.predicted_us
            assert launches <= most_launches
            assert us <= most_us
            assert us > now.floor_us
            summary.notes.append(
                f"predicted, gpt-oss-20b on an H200, K = 7, batch {size}, linear {linear}: "
                f"{launches} launches, {now.moved_bytes / 1e6:.0f} MB moved for "
                f"{now.bytes / 1e6:.0f} MB, {us:.0f} us, floor {now.floor_us:.0f} us"
            )
