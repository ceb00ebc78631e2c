"""The tolerance policy: three rungs, and no test chooses a number of its own.

1. `torch.equal`: whatever only moves or counts (ids, positions, slots, copies).
2. `assert_rounded_once`: ops that promise float32 arithmetic and one rounding per element.
3. `assert_as_accurate_as_torch`: sums whose terms are rounded; the error may be twice that of the
   reference in the same dtype.

FP8 has no rung of its own. Quantised weights are what the drafter's weights are: both references
multiply by ``value * scale``, exactly, so quantising is never part of an error. Caches and FP8
activations round in both references as in the op, so only values that lie at a tie may round
otherwise, which the reference in the working dtype does as often. What quantising costs is measured
in accepted drafts (`benchmarks/bench_precision.py`), not in tolerances.
"""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 1.01  # float32 arithmetic in another order, seen through a rounding to 16 bits
FLOAT32_ROUNDINGS = 4  # of a float32 result, where the rounding to the output is no coarser


def assert_rounded_once(name: str, actual: Tensor, exact: Tensor) -> None:
    """Every element is within half a unit in the last place of the exact value."""
    info = torch.finfo(actual.dtype)
    magnitude = exact.abs().clamp(min=info.smallest_normal)  # subnormals are evenly spaced
    slack = SLACK if info.bits == 16 else 2 * FLOAT32_ROUNDINGS
    _assert_within(name, actual, exact, slack * info.eps / 2 * magnitude)


def assert_as_accurate_as_torch(name: str, actual: Tensor, exact: Tensor, unfused: Tensor) -> None:
    """The largest error is at most twice that of `unfused`, the reference in the working dtype.

    One unit in the last place of the largest value is added, so that an unfused result that happens
    to be exact does not demand exactness.
    """
    ulp = torch.finfo(actual.dtype).eps * _largest(exact)
    budget = 2 * _largest(unfused.double() - exact) + ulp
    _assert_within(name, actual, exact, torch.full_like(exact, budget))


def double(x: object) -> object:
    """Floating-point tensors in float64, alone or in a list; anything else as it is."""
    if isinstance(x, list | tuple):
        return [double(item) for item in x]
    is_wide = isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize > 1
    return x.double() if is_wide else x


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _assert_within(name: str, actual: Tensor, exact: Tensor, budget: Tensor) -> None:
    assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, expected {exact.shape}"
    assert actual.isfinite().all(), f"{name}: {int((~actual.isfinite()).sum())} non-finite values"
    if actual.numel() == 0:
        return
    excess = (actual.double() - exact).abs() - budget
    worst = torch.unravel_index(excess.argmax(), excess.shape)
    assert excess[worst] <= 0, (
        f"{name}: {int((excess > 0).sum())} of {excess.numel()} elements out of tolerance; worst "
        f"at {[int(i) for i in worst]}: got {float(actual[worst]):.6g}, exact "
        f"{float(exact[worst]):.6g}, allowed error {float(budget[worst]):.2g}"
    )
