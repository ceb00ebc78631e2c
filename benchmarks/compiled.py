"""The reference under torch.compile, as a baseline of an op: what inductor makes of the same lines.

It is checked against the op before it is timed, and left out with a reason where it cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from p_eagle_cuda.errors import PEagleError
from timing import Call


class Baseline(NamedTuple):
    """A function of tensors that does what an op does, and its arguments for each copy."""

    function: Callable[..., Any]  # returns a tensor, or several
    arguments: Sequence[tuple[Any, ...]]

    def compiled(self, expected: Tensor, tolerance: float) -> list[Call]:
        """Calls of the compiled function, which allocate what they return.

        Args:
            expected: What the op has written for the first arguments, the first result.
            tolerance: Largest difference from it.

        Raises:
            PEagleError: torch.compile cannot run here, or computes something else.
        """
        if not expected.is_cuda:
            raise PEagleError("torch.compile: a dry run compiles nothing")
        return self.checked(torch.compile(self.function, dynamic=False), expected, tolerance)

    def checked(
        self, function: Callable[..., Any], expected: Tensor, tolerance: float
    ) -> list[Call]:
        """Calls of a form of the function that computes the same."""
        try:
            found = function(*self.arguments[0])
        except Exception as error:  # whatever a compiler raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise PEagleError(f"torch.compile: {reason}") from error
        first = found if isinstance(found, Tensor) else found[0]
        if first.shape != expected.shape:
            raise PEagleError(
                f"torch.compile: expected shape {list(expected.shape)}, got {list(first.shape)}"
            )
        off = (first.float() - expected.float()).abs().max().item()
        if not off <= tolerance:
            raise PEagleError(f"torch.compile: is {off:.3g} off, not worth timing")
        return [partial(function, *arguments) for arguments in self.arguments]
