"""A pass moves the bytes, in the launches, that the committed simulation says."""

from __future__ import annotations

import pytest

from p_eagle_cuda.planning.gpus import GPUS
from p_eagle_cuda.planning.phases import Batch
from p_eagle_cuda.planning.prediction import PassModel
from p_eagle_cuda.planning.traffic import PassTraffic
from sim import summary
from test_benchmarks import load

SLACK = 1.02
UPDATE = "run: python benchmarks/simulate_traffic.py --json python/p_eagle_cuda/data/{}"


@pytest.fixture(scope="module")
def counted() -> PassTraffic:
    simulate_traffic = load("simulate_traffic")
    report = simulate_traffic.simulate(simulate_traffic._parser().parse_args([]))
    found = PassTraffic.of(report)
    summary.notes += ["simulated, a pass of the bundled drafter: bytes moved / bytes needed"]
    summary.notes += simulate_traffic.table(report).splitlines()
    return found


def test_no_kernel_moves_more_than_before(counted: PassTraffic) -> None:
    before = PassTraffic.read()
    update = UPDATE.format("pass_traffic.json")
    assert counted.kernels.keys() == before.kernels.keys()
    fell = []
    for name, now in counted.kernels.items():
        known = before.kernels[name]
        assert now.launches <= known.launches, name
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
    for name, now in counted.kernels.items():
        if now.needed_bytes > 1 << 15:
            assert 1 <= now.moved_over_needed <= 1.01, name
        if name in ("project_taps", "o", "norm_swiglu", "down"):
            assert 1 <= now.partial_over_planned <= SLACK, name


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
