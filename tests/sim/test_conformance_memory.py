"""Loads, stores and addresses, and how they are counted."""

from __future__ import annotations

import numpy as np
import pytest

from sim.emulator import Order
from sim.micro_kernels import Conformance

RNG = np.random.default_rng(0)


def test_load_widths(conformance: Conformance) -> None:
    data = RNG.integers(0, 256, (32, 8), dtype=np.uint8)
    data[0] = 0x80
    data[1] = 0xFF
    (got,) = conformance.run(
        "memory.cu", "load_widths", inputs=[data], outputs=[((32, 14), np.int64)]
    )
    low = [data.view(dtype)[:, 0] for dtype in (np.int8, np.uint8, np.int16, np.uint16)]
    high = [data.view(dtype)[:, 1] for dtype in (np.int32, np.uint32)]
    whole = data.view(np.int64)[:, 0]
    columns = (*low, *high, *low, *high, whole, whole)
    expected = np.stack([x.astype(np.int64) for x in columns], axis=1)
    np.testing.assert_array_equal(got, expected)


def test_store_widths(conformance: Conformance) -> None:
    values = RNG.integers(-(2**63), 2**63 - 1, 32)
    start = np.full((32, 32), 0xAB, dtype=np.uint8)
    (got,) = conformance.run("memory.cu", "store_widths", inputs=[values], outputs=[start])
    expected = start.copy()
    raw = values.view(np.uint8).reshape(32, 8)
    for at, width in ((0, 1), (8, 2), (16, 4), (24, 8)):
        expected[:, at : at + width] = raw[:, :width]
    np.testing.assert_array_equal(got, expected)


def test_vectors(conformance: Conformance) -> None:
    data = RNG.integers(0, 2**32, (32, 4), dtype=np.uint32)
    (got,) = conformance.run(
        "memory.cu", "vectors", inputs=[data], outputs=[((32, 2, 4), np.uint32)]
    )
    np.testing.assert_array_equal(got[:, 0], data[:, ::-1])
    np.testing.assert_array_equal(got[:, 1], data[:, [2, 3, 0, 1]])


def test_shared_and_generic(conformance: Conformance) -> None:
    data = RNG.integers(-100, 100, 32, dtype=np.int32)
    values, spaces = conformance.run(
        "memory.cu", "shared_and_generic",
        inputs=[data], outputs=[(32, np.int32), (32, np.int32)], shared=128,
    )  # fmt: skip
    lane = np.arange(32)
    np.testing.assert_array_equal(values, np.where(lane % 2, data[::-1], 3 * (31 - lane)))
    np.testing.assert_array_equal(spaces, 3)


def test_module_variables(conformance: Conformance) -> None:
    values, counter = conformance.run(
        "memory.cu", "module_variables", outputs=[(32, np.int32), (1, np.int32)]
    )
    np.testing.assert_array_equal(values, np.tile([16, -17, 38, -39], 8))
    assert counter[0] == 5


def test_local_array(conformance: Conformance) -> None:
    index = RNG.integers(0, 8, 32, dtype=np.int32)
    (got,) = conformance.run(
        "memory.cu", "local_array", inputs=[index], outputs=[(32, np.int32)], n=[3]
    )
    written_by = {i * 3 % 8: i for i in range(8)}
    expected = [10 * t + written_by[i] for t, i in enumerate(index.tolist())]
    np.testing.assert_array_equal(got, expected)


def test_message_passing(conformance: Conformance) -> None:
    _, _, got = conformance.run(
        "memory.cu", "message_passing",
        outputs=[(64, np.int32), np.zeros(1, np.int32), (64, np.int32)], grid=2, block=64,
    )  # fmt: skip
    np.testing.assert_array_equal(got, 7 * np.arange(64))


# ---- What is counted -----------------------------------------------------------------------------


def emulated(conformance: Conformance) -> None:
    if conformance.settings is None:
        pytest.skip("the emulator's own counters")


def test_traffic(conformance: Conformance) -> None:
    emulated(conformance)
    data = RNG.integers(0, 2**32, (32, 4), dtype=np.uint32)
    conformance.run("memory.cu", "vectors", inputs=[data], outputs=[((32, 2, 4), np.uint32)])
    (launch,) = conformance.launches
    read, written = launch.traffic["in0"].read, launch.traffic["out0"].written
    assert (read.bytes, read.unique_sectors) == (2 * 512, 16)  # two loads of 16 bytes per lane
    if conformance.settings.order == Order.IN_ORDER:  # otherwise lanes part, into more requests
        assert read.sectors == 2 * 16
        # Each store leaves out every other 16 bytes, so it touches all 32 sectors.
        assert (written.bytes, written.sectors, written.unique_sectors) == (1024, 64, 32)
    assert launch.traffic["out0"].read.bytes == 0
