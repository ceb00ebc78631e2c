"""Instructions that compute each element of their result from those of their sources.

What they compute is defined on Python's integers, so that expected results are exact.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sim.micro_kernels import Conformance

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


@dataclass(frozen=True)
class Source:
    """An operand: how many bits it has, and whether they are a signed number."""

    bits: int
    signed: bool = False
    edges: tuple[int, ...] = ()  # if not those of the type

    def values(self) -> tuple[int, ...]:
        """The bit patterns to try."""
        if self.edges:
            return self.edges
        ones, top = (1 << self.bits) - 1, 1 << (self.bits - 1)
        return (0, 1, 2, 7, ones, ones - 1, top, top - 1, top + 1, 0x5A5A5A5A5A5A5A5A & ones)

    def number(self, bits: int) -> int:
        """The number that a bit pattern means."""
        return bits - (1 << self.bits) if self.signed and bits >> (self.bits - 1) else bits


@dataclass(frozen=True)
class Instruction:
    """A kernel, and what it computes from numbers; the result is cut to its width."""

    kernel: str
    result_bits: int
    sources: tuple[Source, ...]
    function: Callable[..., int]

    @functools.cached_property
    def inputs(self) -> list[np.ndarray]:
        """Bit patterns of the sources, all of one length."""
        rng = np.random.default_rng(len(self.kernel))
        count = len(self.sources)
        choices = [source.values() for source in self.sources]
        if count > 2:  # all combinations would be too many
            elements = [
                [values[i] for i in rng.integers(len(values), size=400)] for values in choices
            ]
        else:
            elements = [list(x) for x in zip(*itertools.product(*choices), strict=True)]
        for values, source in zip(elements, self.sources, strict=True):
            random = rng.integers(0, 2**64, 150, np.uint64, endpoint=False)
            if source.edges:
                random = rng.choice(np.array(source.edges, np.uint64), 150)
            values.extend(int(x) & ((1 << source.bits) - 1) for x in random)
        return [
            np.array(values, UNSIGNED[source.bits])
            for values, source in zip(elements, self.sources, strict=True)
        ]

    @functools.cached_property
    def expected(self) -> np.ndarray:
        mask = (1 << self.result_bits) - 1
        numbers = [
            [source.number(int(x)) for x in values]
            for source, values in zip(self.sources, self.inputs, strict=True)
        ]
        results = [self.function(*x) & mask for x in zip(*numbers, strict=True)]
        return np.array(results, UNSIGNED[self.result_bits])


U32, S32 = Source(32), Source(32, signed=True)
# Shift amounts, positions and lengths of fields, of which a whole register counts, or 8 or 5 bits.
AMOUNT = Source(
    32,
    edges=(0, 1, 5, 8, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 128, 255, 256, 257, 0xFFFFFFFF),
)


def source_of(type_name: str) -> Source:
    return Source(int(type_name[1:]), signed=type_name[0] == "s")


def check(conformance: Conformance, source: str, instruction: Instruction) -> None:
    """Run the kernel of an instruction, and compare."""
    count = len(instruction.expected)
    (got,) = conformance.run(
        source,
        instruction.kernel,
        inputs=instruction.inputs,
        outputs=[(count, UNSIGNED[instruction.result_bits])],
        n=[count],
    )
    np.testing.assert_array_equal(got, instruction.expected)
