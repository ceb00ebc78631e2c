"""The CUDA runtime as host code sees it, on the emulator and on a GPU."""

from __future__ import annotations

import re

import pytest

from sim.micro_kernels import Conformance

SOURCE = "runtime.cu"

INVALID_VALUE = 1
INVALID_CONFIGURATION = 9
INVALID_PITCH = 12
INVALID_DEVICE = 101
LAUNCH_FAILURE = 719
COOPERATIVE_TOO_LARGE = 720
NOT_SUPPORTED = 801
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901
CAPTURE_IMPLICIT = 906
CAPTURED_EVENT = 907

# What each function of runtime.cu sees.
SEEN = {
    "symbols": [11, 22, 13, 24, 11],
    "copies_in_two_dimensions": [1, 0, 3, 4, 0, 6],
    "order_in_a_stream": [2, 1],
    "bad_arguments_of_memory_functions": [INVALID_PITCH, INVALID_VALUE, 0],
    "function_attributes_and_occupancy": [999, 4000, 1024, 2, 5, 32],
    "cooperative_launch": [1, 1],
    "device_and_driver": [1, 227 * 1024, 9, 227 * 1024, 1, INVALID_DEVICE],
    "replays_a_captured_stream": [1, 0, 3, 14, 14, 0],
    "what_a_relaxed_capture_allows": [0, 0, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED],
    "what_no_capture_allows": [
        *(CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED) * 3,
        *(CAPTURE_IMPLICIT, CAPTURE_INVALIDATED),
        *(CAPTURED_EVENT, CAPTURE_INVALIDATED),
        CAPTURE_UNSUPPORTED,
    ],
}

REFUSED = {
    "dynamic_shared_memory_must_be_asked_for": [
        INVALID_VALUE, INVALID_VALUE, 0, INVALID_VALUE, 0, 0, 5,
    ],
    "what_no_gpu_launches": [
        INVALID_CONFIGURATION, INVALID_CONFIGURATION, COOPERATIVE_TOO_LARGE, 0,
    ],
}  # fmt: skip

# And the report: its kind, and a pattern of its message.
REPORTED = {
    "writes_past_an_allocation": (
        [LAUNCH_FAILURE] * 3,
        "memory",
        r"4 bytes at offset 256 of 'cudaMalloc#\d+' \(256 bytes\)",
    ),
    "copies_past_an_allocation": (
        [INVALID_VALUE],
        "memory",
        r"copy to: 260 bytes at offset 0 of 'cudaMalloc#\d+', which has 256",
    ),
    # The second half, and not the first, which was copied from what had been written.
    "reads_what_nobody_wrote": ([], "uninit", r"offset (256|384) of 'cudaMalloc#\d+'"),
    "asks_for_what_is_not_emulated": ([NOT_SUPPORTED], "api", "launch attribute 12 is not"),
}


@pytest.mark.parametrize("function", SEEN)
def test_host_code(function: str, conformance: Conformance) -> None:
    expected = SEEN[function]
    assert conformance.run_host(SOURCE, function, num_results=len(expected)) == expected


def test_dependent_launches_overlap(conformance: Conformance) -> None:
    """A GPU may do so and need not; the emulator does, because that is what finds errors.

    The two use a word without order, and say so with atomics; only the race detector's report of
    one launch using what the other writes before its wait remains, as it must.
    """
    conformance.needs_emulator()
    seen = conformance.run_host(SOURCE, "dependent_launches_overlap", num_results=3, kinds={"pdl"})
    assert seen == [1, 1, 2]


@pytest.mark.parametrize("function", REFUSED)
def test_refused_launches(function: str, conformance: Conformance) -> None:
    """The emulator reports them, too."""
    expected = REFUSED[function]
    seen = conformance.run_host(SOURCE, function, num_results=len(expected), kinds={"launch"})
    assert seen == expected


@pytest.mark.parametrize("function", REPORTED)
def test_reported_errors(function: str, conformance: Conformance) -> None:
    conformance.needs_emulator()
    expected, kind, message = REPORTED[function]
    seen = conformance.run_host(SOURCE, function, num_results=len(expected), kinds={kind})
    assert seen == expected
    (report,) = conformance.reports
    assert re.search(message, report.message)
