"""Kernels on the emulator, from Python: settings, sessions, reports, launch records.

emulator = Emulator(build.emulated_library("gemm", [source]))
for settings in FOUR.values():
    with emulator.session(settings) as session:
        x = session.add(Buffer.of_array("x", values))
        emulator.library.launch_gemm(ctypes.c_void_p(x.address), ...)
    # Here the queue has run, and there were no reports; session.launches says what it moved.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import os
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sim.buffers import Buffer


class Order(enum.IntEnum):
    """Which warp runs next."""

    IN_ORDER = 0
    RANDOM = 1
    REVERSE = 2


class AsyncTiming(enum.IntEnum):
    """When an asynchronous operation takes effect: at issue, at its wait, or some time between."""

    EARLY = 0
    LATE = 1
    RANDOM = 2


@dataclass(frozen=True)
class Settings:
    """Mirrors hostsim/src/settings.h, which explains each of them."""

    order: Order = Order.IN_ORDER
    async_timing: AsyncTiming = AsyncTiming.EARLY
    race_detection: bool = False
    seed: int = 0
    check_uninitialized: bool = True
    mma_fraction_bits: int = 0
    resident_threads: int = 1024
    livelock_instructions: int = 4_000_000
    compute_capability: int = 90
    num_sms: int = 4


# What every kernel test runs under. Race detection alone finds most synchronisation errors; the
# other schedules turn those that are left into wrong results.
FOUR = {
    "in-order-race": Settings(race_detection=True),
    "random": Settings(order=Order.RANDOM, async_timing=AsyncTiming.RANDOM, seed=1),
    "late": Settings(order=Order.RANDOM, async_timing=AsyncTiming.LATE, seed=2),
    "reverse": Settings(order=Order.REVERSE, async_timing=AsyncTiming.RANDOM, seed=3),
}


@dataclass(frozen=True)
class Report:
    """An error of a kernel."""

    kind: str
    message: str
    where: str

    def __str__(self) -> str:
        return f"[{self.kind}] {self.message}\n    at {self.where}"


@dataclass(frozen=True)
class Traffic:
    """What moved between a buffer and the SMs."""

    bytes: int = 0  # asked for, by all lanes together
    sectors: int = 0  # of 32 bytes, counted once per warp instruction
    unique_sectors: int = 0  # counted once per launch: what a cold L2 must move


@dataclass(frozen=True)
class BufferTraffic:
    read: Traffic = Traffic()
    written: Traffic = Traffic()


@dataclass(frozen=True)
class Launch:
    """What is left of a launch that ran."""

    kernel: str  # without namespaces and arguments
    signature: str  # with them
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    dynamic_shared: int  # bytes per block
    static_shared: int
    overlaps_previous: bool  # launched with programmatic stream serialisation
    cooperative: bool
    warp_instructions: int
    matrix_instructions: int  # mma and wgmma, per warp
    shared_wavefronts: int
    shared_wavefronts_minimum: int  # without bank conflicts
    traffic: dict[str, BufferTraffic]  # by buffer

    @classmethod
    def from_json(cls, launch: dict[str, Any]) -> Launch:
        sizes = {name: tuple(launch[name]) for name in ("grid", "block", "cluster")}
        traffic = {
            name: BufferTraffic(Traffic(**moved["read"]), Traffic(**moved["written"]))
            for name, moved in launch["traffic"].items()
        }
        return cls(**{**launch, **sizes, "traffic": traffic})


@dataclass(frozen=True)
class Run:
    """A session that has ended, for the table of the slowest."""

    test: str
    seconds: float
    warp_instructions: int


runs: list[Run] = []


@dataclass
class Session:
    """Buffers that kernels may use, and what is known of the kernels that ran."""

    emulator: Emulator
    settings: Settings
    buffers: list[Buffer] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def add(self, buffer: Buffer) -> Buffer:
        """Let kernels use `buffer` until the session ends."""
        self.buffers.append(buffer)
        self.emulator.register(buffer)
        return buffer

    def mark_initialized(self, buffer: Buffer) -> None:
        """Say that the host has written all of `buffer`."""
        self.emulator.library.hostsim_mark_initialized(buffer.address, buffer.size)

    def synchronize(self) -> None:
        """Run what is queued, and update `launches` and `reports`."""
        self.emulator.library.hostsim_synchronize()
        self.launches = [Launch.from_json(x) for x in self.emulator.query("launches")]
        self.reports = [Report(**x) for x in self.emulator.query("reports")]

    @contextlib.contextmanager
    def capture(self) -> Iterator[Graph]:
        """Record what is issued to the library's `hostsim_current_stream()` instead of running it.

        Raises:
            RuntimeError: Something was called that cannot be captured.
        """
        library = self.emulator.library
        graph = Graph(library)
        _check(library, library.hostsim_begin_capture())
        try:
            yield graph
        finally:
            status = library.hostsim_end_capture(
                ctypes.byref(graph.handle), ctypes.byref(graph.size)
            )
        _check(library, status)

    def check(self) -> None:
        """Run what is queued.

        Raises:
            AssertionError: There are reports; the message holds all of them.
        """
        self.synchronize()
        if self.reports:
            total = self.emulator.library.hostsim_num_reports()
            lines = "\n".join(map(str, self.reports))
            raise AssertionError(
                f"{total} errors under {self.settings}, told once a place:\n{lines}"
            )


class Graph:
    """What `Session.capture` has recorded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.handle = ctypes.c_void_p()
        self.size = ctypes.c_size_t()
        weakref.finalize(self, library.hostsim_destroy_graph, self.handle)

    @property
    def num_nodes(self) -> int:
        return self.size.value

    def replay(self) -> None:
        """Issue it again, with the parameters of the capture, on what buffers hold then."""
        _check(self.library, self.library.hostsim_replay(self.handle))


class Emulator:
    """A shared library with the emulator inside it. Each has its own machine and memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # RTLD_NOW: a symbol that is missing is missing here, not in the midst of a test.
        self.library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
        _declare(self.library)

    @contextlib.contextmanager
    def session(self, settings: Settings) -> Iterator[Session]:
        """Run kernels under `settings`, on buffers that the session knows.

        Raises:
            AssertionError: At the end, if there are reports.
        """
        with self.faulty_session(settings) as session:
            try:
                yield session
            except Exception as error:
                # The reports say why, if the error came of what a kernel did.
                try:
                    session.check()
                except AssertionError as reports:
                    raise reports from error
                raise
            session.check()

    @contextlib.contextmanager
    def faulty_session(self, settings: Settings) -> Iterator[Session]:
        """The same for kernels that have errors: reports are left in `Session.reports`."""
        self.apply(settings)
        self.library.hostsim_clear()
        session = Session(self, settings)
        start = time.monotonic()
        try:
            yield session
            session.synchronize()
        finally:
            seconds = time.monotonic() - start
            for buffer in session.buffers:
                self.library.hostsim_unregister_buffer(buffer.address)
            self.library.hostsim_clear()
            instructions = sum(launch.warp_instructions for launch in session.launches)
            test = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
            runs.append(Run(test, seconds, instructions))

    def apply(self, settings: Settings) -> None:
        for name, value in asdict(settings).items():
            known = self.library.hostsim_set(name.encode(), int(value))
            assert known, f"the emulator has no setting `{name}`"

    def register(self, buffer: Buffer) -> None:
        self.library.hostsim_register_buffer(
            buffer.name.encode(), buffer.address, buffer.size, buffer.read_only, buffer.initialized
        )

    def query(self, what: str) -> list[dict[str, Any]]:
        """`launches` or `reports`."""
        return json.loads(getattr(self.library, f"hostsim_{what}")())


def _check(library: ctypes.CDLL, status: int) -> None:
    if status != 0:
        raise RuntimeError(library.hostsim_error_string(status).decode())


def _declare(library: ctypes.CDLL) -> None:
    """The signatures of control.cpp."""
    pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    signatures = {
        "set": (ctypes.c_int, text, ctypes.c_longlong),
        "register_buffer": (None, text, pointer, size, ctypes.c_int, ctypes.c_int),
        "unregister_buffer": (None, pointer),
        "mark_initialized": (None, pointer, size),
        "synchronize": (ctypes.c_int,),
        "num_reports": (ctypes.c_int,),
        "reports": (text,),
        "launches": (text,),
        "clear": (None,),
        "begin_capture": (ctypes.c_int,),
        "end_capture": (ctypes.c_int, pointer, pointer),
        "replay": (ctypes.c_int, pointer),
        "destroy_graph": (None, pointer),
        "current_stream": (pointer,),
        "error_string": (text, ctypes.c_int),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, f"hostsim_{name}")
        function.restype, function.argtypes = result, arguments
