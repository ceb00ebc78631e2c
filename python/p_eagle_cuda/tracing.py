"""Names for what a pass launches: NVTX ranges for profilers, and the culprit of a CUDA error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

Namespace = TypeVar("Namespace")


class Tracer:
    """Follows the ops of a pass; does nothing unless asked to."""

    def __init__(self, device: torch.device, *, nvtx: bool = False, debug: bool = False) -> None:
        """Choose what to do.

        Args:
            device: Where the ops run. There are no NVTX ranges and no waiting but on CUDA.
            nvtx: Push an NVTX range around each part of a pass and each op.
            debug: Wait for each op, and say which one an error belongs to.
        """
        self._is_cuda, self._device = device.type == "cuda", device
        self._nvtx, self._debug = nvtx and self._is_cuda, debug
        self._where: list[str] = []

    def name(self, namespace: Namespace) -> Namespace:
        """The same functions, each followed when it is called."""
        if not (self._nvtx or self._debug):
            return namespace
        return cast(Namespace, _Named(namespace, self))

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is called inside belongs to this part of the pass."""
        self._where.append(name)
        if self._nvtx:
            torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            self._where.pop()
            if self._nvtx:
                torch.cuda.nvtx.range_pop()

    def call(self, name: str, function: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Call an op of this name."""
        with self.part(name):
            if not self._debug:
                return function()
            try:
                result = function()
                if self._is_cuda:
                    torch.cuda.synchronize(self._device)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise RuntimeError(f"Drafter: {', '.join(self._where)}: {reason}") from error
            return result


class _Named:
    """Functions of a module or an object, which a tracer follows."""

    def __init__(self, namespace: object, tracer: Tracer) -> None:
        self._namespace, self._tracer = namespace, tracer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function, tracer = getattr(self._namespace, name), self._tracer

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return tracer.call(name, lambda: function(*args, **kwargs))

        return call
