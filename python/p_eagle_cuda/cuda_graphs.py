"""Passes recorded once and replayed: a CUDA graph per batch size and number of drafts."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from tqdm import tqdm

from p_eagle_cuda.drafter_pass import Drafts


class PassShape(NamedTuple):
    """What a graph is for."""

    batch_size: int  # requests, with those that only pad
    k: int  # tokens drafted for each


class Recorder(Protocol):
    """Records what a function launches."""

    def __call__(self, launch: Callable[[], Drafts]) -> tuple[Callable[[], None], Drafts]:
        """What replays the launches, and what `launch` has returned."""


class CudaRecorder:
    """Records CUDA graphs of one device."""

    def __init__(self, device: torch.device, pool: Any = None) -> None:  # noqa: ANN401
        """Record with the memory `pool` of another's graphs, or one of its own.

        Nothing of ours allocates in a graph, but cuBLAS may.
        """
        self._device = device
        self._pool = torch.cuda.graph_pool_handle() if pool is None else pool

    def __call__(self, launch: Callable[[], Drafts]) -> tuple[Callable[[], None], Drafts]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads of a serving process may go on calling CUDA.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            drafts = launch()
        return graph.replay, drafts


class GraphCache:
    """The graphs of a drafter, recorded when they are first needed, or up front."""

    def __init__(
        self,
        launch: Callable[[PassShape], Drafts],
        warm_up: Callable[[PassShape], object],
        record: Recorder,
        max_graphs: int,
    ) -> None:
        """Start without a graph.

        Args:
            launch: Launches a pass of a shape over the static inputs.
            warm_up: Launches the same kernels for requests without rows, so that whatever is set
                up lazily exists before a graph is recorded. May wait for the device.
            record: Records a graph.
            max_graphs: When there are so many, the least recently used is dropped for a new one.
        """
        self._launch, self._warm_up, self._record = launch, warm_up, record
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[PassShape, tuple[Callable[[], None], Drafts]] = OrderedDict()
        self._without_memory: set[PassShape] = set()

    @property
    def shapes(self) -> list[PassShape]:
        """Of the graphs that there are, the least recently used first."""
        return list(self._graphs)

    def find(self, shape: PassShape) -> PassShape | None:
        """The shape of the graph to replay for a pass of this shape, which is recorded if need be.

        That is this shape; or, where there was no memory for it, the next larger one that has a
        graph; None if there is no such, and the pass must be launched kernel by kernel.
        """
        if shape not in self._graphs and shape not in self._without_memory:
            self._capture(shape)
        if shape in self._graphs:
            return shape
        larger = [x for x in self._graphs if x.k == shape.k and x.batch_size > shape.batch_size]
        return min(larger, default=None)

    def replay(self, shape: PassShape) -> Drafts:
        """Replay the graph of a shape that `find` has returned."""
        self._graphs.move_to_end(shape)
        replay, drafts = self._graphs[shape]
        replay()
        return drafts

    def capture(self, shapes: Sequence[PassShape], progress: bool) -> None:
        """Record graphs up front; the first share their memory with the later."""
        for shape in tqdm(
            list(shapes), "capturing CUDA graphs", disable=not progress, unit="graph"
        ):
            self.find(shape)

    def _capture(self, shape: PassShape) -> None:
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        try:
            self._warm_up(shape)
            self._graphs[shape] = self._record(lambda: self._launch(shape))
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            self._without_memory.add(shape)
            sizes = sorted(x.batch_size for x in self._graphs if x.k == shape.k)
            kept = ", ".join(map(str, sizes)) or "none"
            warnings.warn(
                f"no memory for a CUDA graph of {shape.batch_size} requests and {shape.k} drafts "
                f"each; going on with those of {kept}, and kernel by kernel where none is large "
                "enough",
                RuntimeWarning,
                stacklevel=2,
            )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch's allocator or the CUDA runtime ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
