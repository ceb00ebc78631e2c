"""A pass moves the bytes, in the launches, that the committed simulation says."""

from __future__ import annotations

import json

from test_benchmarks import BENCHMARKS, load

SLACK = 1.02


def test_no_kernel_moves_more_than_before() -> None:
    """Less is welcome: then run benchmarks/simulate_traffic.py again and commit what it finds."""
    committed = json.loads((BENCHMARKS / "results" / "traffic-bundled.json").read_text())
    simulate_traffic = load("simulate_traffic")
    found = simulate_traffic.simulate(simulate_traffic._parser().parse_args([]))
    assert found["launches"] <= committed["launches"]
    for now, before in zip(found["kernels"], committed["kernels"], strict=True):
        assert now["kernel"] == before["kernel"]
        for way in ("read_bytes", "written_bytes"):
            assert now[way] <= SLACK * before[way], f"{now['kernel']}: {way}"
