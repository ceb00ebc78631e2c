"""Builds the emulator, and shared libraries of CUDA sources that run on it.

What was compiled is kept in ``build/hostsim`` under a hash of everything that went into it: the
command, the compiler's version, and the contents of the source and of every file it includes. So
an object is compiled once, whichever test or process asks first.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "hostsim"
EMULATOR_SOURCES = Path(__file__).resolve().parent / "src"
JOBS = 2  # at most; CUTLASS needs gigabytes of memory per file


def emulated_flags(architecture: str = "90a") -> tuple[str, ...]:
    """The PTX is all that is wanted of the device code: not assembled, not compressed."""
    return (
        f"-gencode=arch=compute_{architecture},code=compute_{architecture}",
        "-Xfatbin=-compress-mode=none",
        "-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL",  # cuTensorMapEncodeTiled is a plain symbol
    )


# Without the optimizations that take half of the time: the same loads may be repeated, so it is
# not for what counts bytes; nor for wgmma, whose accumulators are then moved while tensor cores
# write to them, which ptxas would mend.
FEWER_OPTIMIZATIONS = "--Ofast-compile=min"
GPU_FLAGS = ("-gencode=arch=compute_90a,code=sm_90a",)


class MissingToolsError(Exception):
    """The machine lacks what it takes to compile CUDA sources; the message says what to install."""


class CompilationError(Exception):
    """A compiler refused; the message is its whole output."""


@dataclass(frozen=True)
class Tools:
    nvcc: Path
    cutlass: Path  # the folder that has `include`
    cxx: str

    @property
    def cuda_include(self) -> Path:
        return self.nvcc.parents[1] / "include"


@dataclass(frozen=True)
class Compilation:
    """One source file and the command that compiles it, without its output."""

    source: Path
    command: tuple[str, ...]
    suffix: str = ".o"  # of the object


@dataclass(frozen=True)
class Compiled:
    """Something this process has compiled, for the table of the slowest."""

    name: str
    seconds: float


compiled: list[Compiled] = []
_compilers = threading.BoundedSemaphore(JOBS)  # that run at the same time
_BACKGROUND = "background compiler"  # the names of its threads start so
# Told of every compilation as it ends. Tests point it to the terminal.
report_progress: Callable[[str], None] = functools.partial(print, file=sys.stderr, flush=True)


@functools.cache
def tools() -> Tools:
    """What compiles CUDA sources here.

    Raises:
        MissingToolsError: Some of it is not there.
    """
    locate = _load_locate()
    nvcc, cutlass = locate.nvcc(), locate.cutlass()
    cxx = os.environ.get("CXX") or shutil.which("g++")
    missing = [
        name
        for name, found in (("nvcc", nvcc), ("CUTLASS headers", cutlass), ("g++", cxx))
        if not found
    ]
    if missing:
        raise MissingToolsError(
            f"the emulator needs {', '.join(missing)}: see CONTRIBUTING.md, or "
            '`pip install --no-deps nvidia-cutlass==4.2.0.0 "cuda-toolkit[nvcc,nvvm,crt,cudart,'
            'cccl]==13.0.2"`'
        )
    return Tools(nvcc, cutlass, cxx)


def has_tools() -> bool:
    with contextlib.suppress(MissingToolsError):
        tools()
        return True
    return False


def emulated_library(
    name: str,
    sources: Sequence[Path],
    *,
    includes: Sequence[Path] = (),
    defines: Sequence[str] = (),
) -> Path:
    """A shared library of CUDA sources, with the emulator inside it.

    Args:
        name: Of the library, for people.
        sources: `.cu` files.
        includes: Folders for `#include`, after CUTLASS's.
        defines: Preprocessor definitions, ``NAME`` or ``NAME=VALUE``.

    Returns:
        The path of the library, which is loaded with `sim.emulator.Emulator`.
    """
    compilations = [
        cuda_compilation(source, includes=includes, defines=defines) for source in sources
    ]
    return link_emulated(name, compile_all(compilations))


def link_emulated(name: str, objects: Sequence[Path], *link_flags: str) -> Path:
    """Links objects and the emulator; a CUDA function that it does not offer is an error here."""
    return link(name, [*objects, *emulator_objects()], "-Wl,-z,defs", *link_flags)


def gpu_library(name: str, sources: Sequence[Path], *, includes: Sequence[Path] = ()) -> Path:
    """The same sources for a real GPU."""
    compilations = [
        cuda_compilation(source, includes=includes, target_flags=GPU_FLAGS) for source in sources
    ]
    toolkit = tools().nvcc.parents[1]
    runtime = next(path for path in toolkit.rglob("libcudart_static.a"))
    return link(name, compile_all(compilations), str(runtime), "-lpthread", "-ldl", "-lrt")


def emulator_objects() -> list[Path]:
    """The compiled emulator."""
    return compile_all(emulator_compilations())


def emulator_compilations() -> list[Compilation]:
    """How g++ compiles the emulator; compiles the headers that most of its files include."""
    command = (
        tools().cxx, "-std=c++20", "-O2", "-fvect-cost-model=dynamic", "-march=native",
        "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
        f"-I{EMULATOR_SOURCES}", f"-isystem{tools().cuda_include}",
    )  # fmt: skip
    header = Compilation(EMULATOR_SOURCES / "precompiled.h", (*command, "-x", "c++-header"), ".gch")
    # g++ takes the compiled one if `-include` names a file that has it beside it.
    command = (*command, "-include", str(compile_object(header).with_suffix("")))
    return [Compilation(source, command) for source in sorted(EMULATOR_SOURCES.glob("*.cpp"))]


def cuda_compilation(
    source: Path,
    *,
    includes: Sequence[Path] = (),
    defines: Sequence[str] = (),
    target_flags: Sequence[str] | None = None,
    is_quick: bool = False,
) -> Compilation:
    """How nvcc compiles `source`, for the emulator's Hopper unless `target_flags` say otherwise.

    Sources that are run for errors alone, without wgmma, may be compiled quickly.
    """
    folders = [tools().cutlass / "include", *includes]
    command = (
        str(tools().nvcc), "-std=c++20", "-O3", "-lineinfo", "--expt-relaxed-constexpr",
        "-cudart=none", "-Xcompiler=-fPIC,-fvisibility=hidden",
        *(emulated_flags() if target_flags is None else target_flags),
        *([FEWER_OPTIMIZATIONS] if is_quick else []),
        *(f"-I{folder}" for folder in folders), *(f"-D{define}" for define in defines),
    )  # fmt: skip
    return Compilation(source.resolve(), command)


def host_compilation(
    source: Path, *, includes: Sequence[Path] = (), defines: Sequence[str] = ()
) -> Compilation:
    """How g++ compiles a C++ source that calls the CUDA runtime; `includes` are system folders."""
    system = (f"-isystem{folder}" for folder in (*includes, tools().cuda_include))
    command = (
        tools().cxx, "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
        *system, *(f"-D{define}" for define in defines),
    )  # fmt: skip
    return Compilation(source.resolve(), command)


def generated_source(name: str, text: str) -> Path:
    """A file of the cache that holds `text`."""
    path = CACHE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        _write(path, text)
    return path


# ---- Compiling and linking, once -----------------------------------------------------------------


def compile_all(compilations: Sequence[Compilation]) -> list[Path]:
    """The objects of `compilations`, in their order.

    Raises:
        CompilationError: A compiler refused.
    """
    with ThreadPoolExecutor(max_workers=JOBS) as pool:
        return list(pool.map(compile_object, compilations))


class BackgroundCompiler:
    """Compiles what will be asked for later, in the order in which it was told, silently.

    Whoever asks sooner compiles it, or waits for the compiler that is at it; whoever asks later
    finds it. An error shows when somebody asks.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=JOBS, thread_name_prefix=_BACKGROUND)

    def add(self, compilations: Sequence[Compilation]) -> None:
        for compilation in compilations:
            self._pool.submit(compile_object, compilation)

    def stop(self) -> None:
        """Drop what has not begun, and wait for the rest."""
        self._pool.shutdown(cancel_futures=True)


def compile_object(compilation: Compilation) -> Path:
    """The object of one source."""
    source, command = compilation.source, compilation.command
    command_hash = _hash(str(source), *command, _version(command[0]))
    # The files that the last compilation of this command read. Those decide which object is wanted;
    # if a change of one of them would have it read others, then that change alone misses.
    manifest = CACHE / f"{source.stem}-{command_hash}.deps"
    with _locked(manifest.with_suffix(".lock")):
        if manifest.is_file():
            found = _object_for(compilation, command_hash, json.loads(manifest.read_text()))
            if found is not None and found.is_file():
                return found
        made, dependencies = _temporary(manifest, compilation.suffix), _temporary(manifest, ".d")
        outputs = ("-c", str(source), "-o", str(made), "-MD", "-MF", str(dependencies))
        with _compilers:
            _run_compiler((*command, *outputs), source.name)
        read = _parse_dependencies(dependencies.read_text())
        dependencies.unlink()
        target = _object_for(compilation, command_hash, read)
        if target is None:
            raise CompilationError(f"{source}: a file was removed while it was compiled")
        made.replace(target)
        _write(manifest, json.dumps(read))
        return target


def link(name: str, objects: Sequence[Path], *flags: str) -> Path:
    """A shared library whose symbols bind to itself, never to another library of the process."""
    command = (tools().cxx, "-shared", "-Wl,-Bsymbolic", *map(str, objects), *flags)
    library = CACHE / f"{name}-{_hash(*command)}.so"
    with _locked(library.with_suffix(".lock")):
        if not library.is_file():
            made = _temporary(library, ".so")
            _run_compiler((*command, "-o", str(made)), library.name)
            made.replace(library)
    return library


def _run_compiler(command: Sequence[str], name: str) -> None:
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        raise CompilationError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    compiled.append(Compiled(name, seconds))
    if not threading.current_thread().name.startswith(_BACKGROUND):
        report_progress(f"hostsim: built {name} in {seconds:.1f} s")


def _object_for(
    compilation: Compilation, command_hash: str, dependencies: list[str]
) -> Path | None:
    """Where the object lies that is made of these files as they are now; None if one is gone."""
    try:
        digests = [_digest(path) for path in dependencies]
    except FileNotFoundError:
        return None
    name = f"{compilation.source.stem}-{_hash(command_hash, *digests)}{compilation.suffix}"
    return CACHE / name


def _digest(path: str) -> str:
    status = Path(path).stat()
    return _digest_of_version(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _digest_of_version(path: str, mtime_ns: int, size: int) -> str:
    """The hash of a file's contents, read once per process while the file does not change."""
    del mtime_ns, size  # they are part of the key
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True
    ).stdout


def _parse_dependencies(rule: str) -> list[str]:
    """The files that a rule of make names after its colon."""
    _, _, names = rule.replace("\\\n", " ").partition(": ")
    return [name.replace("\\ ", " ") for name in re.split(r"(?<!\\)\s+", names) if name]


def _temporary(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.stem}.{os.getpid()}{suffix}")


def _write(path: Path, text: str) -> None:
    temporary = _temporary(path, ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other processes, and other threads of this one, from compiling the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _load_locate():  # noqa: ANN202 - a module
    spec = importlib.util.spec_from_file_location("locate", ROOT / "build_backend" / "locate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
