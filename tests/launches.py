"""Which PyTorch ops would launch a kernel on a GPU, seen on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Names of the ops that are called, but for views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if not (func.is_view or "empty" in name):
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    def without(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose ops are not counted."""

        def uncounted(*args: Any, **kwargs: Any) -> Any:
            before = len(self.names)
            result = function(*args, **kwargs)
            del self.names[before:]
            return result

        return uncounted
