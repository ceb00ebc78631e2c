"""The cache of compiled objects: never stale, never twice."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hostsim.build


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module with an empty cache; a copy, because the session's own may be at work."""
    spec = importlib.util.spec_from_file_location("build_under_test", hostsim.build.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    module.CACHE = tmp_path / "cache"
    module.report_progress = lambda _: None
    return module


@pytest.fixture
def compilation(tmp_path: Path, build: ModuleType) -> Any:
    """A source that includes a header."""
    (tmp_path / "value.h").write_text("#define VALUE 1\n")
    source = tmp_path / "a b.cpp"
    source.write_text('#include "value.h"\nint value() { return VALUE; }\n')
    return build.Compilation(source, (build.tools().cxx, f"-I{tmp_path}"))


def test_compiles_once(build: ModuleType, compilation: Any) -> None:
    objects = {build.compile_object(compilation) for _ in range(2)}
    assert len(objects) == 1
    assert [x.name for x in build.compiled] == ["a b.cpp"]
    assert objects.pop().is_file()


def test_follows_the_contents_of_headers(build: ModuleType, compilation: Any) -> None:
    header = compilation.source.parent / "value.h"
    first = build.compile_object(compilation)
    header.write_text("#define VALUE 2\n")
    second = build.compile_object(compilation)
    assert second != first
    header.write_text("#define VALUE 1\n")
    assert build.compile_object(compilation) == first
    assert len(build.compiled) == 2


def test_does_not_compile_for_a_new_date(build: ModuleType, compilation: Any) -> None:
    first = build.compile_object(compilation)
    os.utime(compilation.source, (1, 1))
    assert build.compile_object(compilation) == first
    assert len(build.compiled) == 1


def test_flags_and_sources_are_part_of_the_key(build: ModuleType, compilation: Any) -> None:
    objects = {build.compile_object(compilation)}
    other_flags = build.Compilation(compilation.source, (*compilation.command, "-O1"))
    objects.add(build.compile_object(other_flags))
    compilation.source.write_text("int value() { return 3; }\n")
    objects.add(build.compile_object(compilation))
    assert len(objects) == 3


def test_simultaneous_builds_share_the_work(build: ModuleType, compilation: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        objects = set(pool.map(build.compile_object, [compilation] * 4))
    assert len(objects) == len(build.compiled) == 1


def test_what_was_compiled_in_the_background_is_found(build: ModuleType, compilation: Any) -> None:
    lines: list[str] = []
    background = build.BackgroundCompiler()
    build.report_progress = lines.append
    background.add([compilation])
    while not build.compiled:
        time.sleep(0.01)
    background.stop()
    assert build.compile_object(compilation).is_file()
    assert len(build.compiled) == 1
    assert lines == [], "expected a background compiler to be silent"


def test_an_error_in_the_background_shows_to_who_asks(build: ModuleType, compilation: Any) -> None:
    compilation.source.write_text("int value() { return missing_name; }\n")
    background = build.BackgroundCompiler()
    background.add([compilation])
    background.stop()
    with pytest.raises(build.CompilationError, match="missing_name"):
        build.compile_object(compilation)


def test_stopping_drops_what_has_not_begun(build: ModuleType, compilation: Any) -> None:
    background = build.BackgroundCompiler()
    many = [
        build.Compilation(compilation.source, (*compilation.command, f"-DN={i}")) for i in range(50)
    ]
    background.add(many)
    background.stop()
    assert len(build.compiled) < len(many)


def test_a_precompiled_header_is_part_of_the_key(build: ModuleType, compilation: Any) -> None:
    """As the emulator has one; what is compiled with it must follow its contents."""
    header = compilation.source.parent / "value.h"
    compilation.source.write_text("int value() { return VALUE; }\n")

    def compiled() -> Path:
        flags = "-x", "c++-header"
        precompiled = build.Compilation(header, (*compilation.command, *flags), ".gch")
        include = build.compile_object(precompiled).with_suffix("")
        command = (*compilation.command, "-include", str(include))
        return build.compile_object(build.Compilation(compilation.source, command))

    first = compiled()
    assert compiled() == first
    header.write_text("#define VALUE 2\n")
    assert compiled() != first


def test_an_error_is_shown_whole_and_leaves_nothing(build: ModuleType, compilation: Any) -> None:
    compilation.source.write_text("int value() { return missing_name; }\n" * 30)
    with pytest.raises(build.CompilationError) as caught:
        build.compile_object(compilation)
    assert str(caught.value).count("missing_name") >= 30
    assert not list(build.CACHE.glob("*.o"))


def test_a_missing_function_is_an_error_of_the_linker(build: ModuleType, compilation: Any) -> None:
    compilation.source.write_text("int missing(); int value() { return missing(); }\n")
    made = build.compile_object(compilation)
    with pytest.raises(build.CompilationError, match="missing"):
        build.link("a", [made], "-Wl,-z,defs")
