"""Compiles kernels with bugs in them, many at a time.

Most of what nvcc does for a kernel is reading headers, so all variants of a kernel go into one
source file. Each has the kernel's files, one of them changed, in a namespace of its own; whatever
else they include comes once, before. Launch functions get the number of their variant as a suffix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hostsim import build
from sim.planted import Bug
from sim.sample import Sample
from sim.sample_kernels import SAMPLES

_INCLUDE = re.compile(r'^#include ["<](.+)[">].*\n', re.MULTILINE)
_PRAGMA = re.compile(r"^#pragma once\n", re.MULTILINE)
_LAUNCHER = re.compile(r"^SAMPLE_LAUNCHER (\w+)\(", re.MULTILINE)


def suffix(variant: int) -> str:
    """Of the names of launch functions in the library of `planted_library`."""
    return f"_{variant}"


def planted_compilation(kernel: str, bugs: Sequence[Bug]) -> build.Compilation:
    """How all variants of a kernel are compiled together; bug `i` is in variant `i`."""
    sample = SAMPLES[kernel]
    path = build.CACHE / "planted" / f"{kernel}.cu"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_amalgamate(sample, bugs))
    return build.cuda_compilation(path, includes=sample.includes)


def _amalgamate(sample: Sample, bugs: Sequence[Bug]) -> str:
    texts = {path: path.read_text() for path in sample.files}
    launchers = _LAUNCHER.findall(texts[sample.source])
    parts = _outer_includes(texts)
    for variant, bug in enumerate(bugs):
        parts += [f"#define {name} {name}{suffix(variant)}" for name in launchers]
        parts.append(f"namespace variant{suffix(variant)} {{")
        for path, text in plant(texts, bug).items():
            parts += [f'#line 1 "{path}"', _blank_includes(text)]
        parts.append("}")
        parts += [f"#undef {name}" for name in launchers]
    return "\n".join(parts) + "\n"


def plant(texts: dict[Path, str], bug: Bug) -> dict[Path, str]:
    """The files of a kernel with the bug in one of them."""
    (path,) = (path for path in texts if path.name == (bug.file or f"{bug.kernel}.cu"))
    count = texts[path].count(bug.old)
    assert count == 1, f"{path.name}: expected {bug.old!r} once, found {count} times"
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
