"""Compiles sample kernels, as they are and with bugs in them, all variants of one at a time.

Most of what nvcc does for a kernel is reading headers, so all variants of a kernel go into one
source file. Each has the kernel's files, one of them changed, in a namespace of its own; whatever
else they include comes once, before. Launch functions get the number of their variant as a suffix.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from hostsim import build
from sim.emulator import Emulator
from sim.planted import Bug
from sim.sample import INCLUDES, Sample
from sim.sample_kernels import SAMPLES

_INCLUDE = re.compile(r'^#include ["<](.+)[">].*\n', re.MULTILINE)
_PRAGMA = re.compile(r"^#pragma once\n", re.MULTILINE)
# CUTLASS's, by itself or in a collective, or the instruction itself.
_WGMMA = re.compile(r"GMMA::|gemm::collective::|wgmma\.mma_async")
_LAUNCHER = re.compile(r"^SAMPLE_LAUNCHER (\w+)\(", re.MULTILINE)


Variant = Bug | None  # None is the kernel as it is


class NoPlaceError(Exception):
    """The text that a bug replaces is not in its kernel, or more than once."""


class Variants:
    """The variants of each kernel that a run needs.

    Args:
        wanted: By kernel. The variant at place `i` has the suffix `i`.
    """

    def __init__(self, wanted: Mapping[str, Sequence[Variant]]) -> None:
        self._wanted = wanted
        self._emulators: dict[str, Emulator] = {}

    @classmethod
    def of_tests(cls, items: Iterable[pytest.Item]) -> Variants:
        """Those that tests ask for, which have a parameter `bug` or `kernel`."""
        wanted: dict[str, list[Variant]] = {}
        for item in items:
            if isinstance(item, pytest.Function) and "variants" in item.fixturenames:
                parameters = item.callspec.params
                bug = parameters.get("bug")
                of_kernel = wanted.setdefault(bug.kernel if bug else parameters["kernel"], [])
                if bug not in of_kernel:
                    of_kernel.append(bug)
        return cls(wanted)

    def compilations(self) -> list[build.Compilation]:
        """Of kernels in which all their bugs have a place; the tests of others name the bug."""
        found = []
        for kernel in self._wanted:
            with contextlib.suppress(NoPlaceError):
                found.append(self._compilation(kernel))
        return found

    def load(self, kernel: str, bug: Bug | None = None) -> tuple[Emulator, str]:
        """The library that has the variant, and the suffix of its launch functions."""
        if kernel not in self._emulators:
            made = build.compile_object(self._compilation(kernel))
            self._emulators[kernel] = Emulator(build.link_emulated(f"{kernel}-variants", [made]))
        return self._emulators[kernel], _suffix(self._wanted[kernel].index(bug))

    def _compilation(self, kernel: str) -> build.Compilation:
        """How all variants of a kernel are compiled together."""
        sample = SAMPLES[kernel]
        text = _amalgamate(sample, self._wanted[kernel])
        path = build.generated_source(f"variants/{kernel}.cu", text)
        return build.cuda_compilation(path, includes=INCLUDES, is_quick=not _WGMMA.search(text))


def _suffix(variant: int) -> str:
    return f"_{variant}"


def _amalgamate(sample: Sample, variants: Sequence[Variant]) -> str:
    texts = {path: path.read_text() for path in sample.files}
    launchers = _LAUNCHER.findall(texts[sample.source])
    parts = _outer_includes(texts)
    for variant, bug in enumerate(variants):
        parts += [f"#define {name} {name}{_suffix(variant)}" for name in launchers]
        parts.append(f"namespace variant{_suffix(variant)} {{")
        for path, text in (plant(texts, bug) if bug else texts).items():
            parts += [f'#line 1 "{path}"', _blank_includes(text)]
        parts.append("}")
        parts += [f"#undef {name}" for name in launchers]
    return "\n".join(parts) + "\n"


def plant(texts: dict[Path, str], bug: Bug) -> dict[Path, str]:
    """The files of a kernel with the bug in one of them."""
    (path,) = (path for path in texts if path.name == (bug.file or f"{bug.kernel}.cu"))
    count = texts[path].count(bug.old)
    if count != 1:
        raise NoPlaceError(f"{path.name}: expected {bug.old!r} once, found {count} times")
    return {**texts, path: texts[path].replace(bug.old, bug.new)}


def _outer_includes(texts: dict[Path, str]) -> list[str]:
    """The directives that do not include one of the files themselves."""
    includes: dict[str, None] = {}
    for text in texts.values():
        for match in _INCLUDE.finditer(text):
            if not any(path.match(match[1]) for path in texts):
                includes[match[0].rstrip()] = None
    return list(includes)


def _blank_includes(text: str) -> str:
    """Line numbers stay as they are."""
    return _PRAGMA.sub("\n", _INCLUDE.sub("\n", text))
