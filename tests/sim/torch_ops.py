"""The project's ops on the emulator: the real host layer and the real kernels, as p_eagle_sim.

``torch.ops.p_eagle_sim.<op>`` has the schema of ``torch.ops.p_eagle.<op>``. It takes CPU tensors
whose memory the emulator must know: use `guarded`, or `call`, which does all of it.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hostsim import build
from p_eagle_cuda import ops
from sim.buffers import VECTOR_BYTES, Buffer, span_bytes
from sim.emulator import Emulator, Launch, Session, Settings

CSRC = build.ROOT / "csrc"
_TORCH = Path(torch.__file__).parent
NAMESPACE = "p_eagle_sim"

_SCHEMAS = torch.library.Library(NAMESPACE, "DEF")

Arguments = dict[str, Any]


def compilations() -> list[build.Compilation]:
    """The host layer and all kernels of csrc."""
    includes = [CSRC, _TORCH / "include", build.tools().cutlass / "include"]
    defines = [
        "P_EAGLE_EMULATED",
        'P_EAGLE_ARCHS="the emulator"',
        "TORCH_TARGET_VERSION=0x020b000000000000",
    ]
    kernels = _units()
    bindings = sorted((CSRC / "bindings").glob("*.cpp"))
    return [
        *(build.cuda_compilation(source, includes=[CSRC]) for source in kernels),
        *(build.host_compilation(x, includes=includes, defines=defines) for x in bindings),
    ]


def _units() -> list[Path]:
    """Files that include the kernels, which are together where they share a folder of headers.

    nvcc takes longer for CUTLASS's headers than for most kernels, and so reads them less often.
    """
    units: dict[str, list[Path]] = {}
    for kernel in sorted((CSRC / "kernels").glob("*.cu")):
        shared = re.search(r'^#include "(?!common|kernels)(\w+)/', kernel.read_text(), re.MULTILINE)
        units.setdefault(shared[1] if shared else kernel.stem, []).append(kernel)
    return [
        build.generated_source(f"kernels/{name}.cu", "".join(f'#include "{x}"\n' for x in kernels))
        for name, kernels in units.items()
    ]


@functools.cache
def emulator() -> Emulator:
    """The host layer and all kernels of csrc, compiled for the emulator."""
    objects = build.compile_all(compilations())
    flags = f"-L{_TORCH / 'lib'}", "-ltorch_cpu"
    library = build.link_emulated("p_eagle_sim", objects, *flags)
    for name in ops.implementations():
        schema = str(getattr(torch.ops.p_eagle, name).default._schema)
        _SCHEMAS.define(schema.removeprefix("p_eagle::"))
    return Emulator(library)


def has_kernel(name: str) -> bool:
    """Whether the library implements this op."""
    emulator()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CPU")


def op(name: str) -> Callable[..., None]:
    """``torch.ops.p_eagle_sim.<name>``; it launches on the emulator's stream and does not wait."""
    emulator()
    return getattr(getattr(torch.ops, NAMESPACE), name)


def call(name: str, arguments: Arguments, settings: Settings) -> list[Launch]:
    """Run an op under `settings`, on guarded copies of its arguments.

    What the op writes is copied back. The buffers have the names of the arguments; those that the
    schema does not call written are read-only. All contents count as initialised.

    Raises:
        AssertionError: There are reports.
    """
    with emulator().session(settings) as session:
        copies = guarded(session, name, arguments)
        op(name)(*copies.values())
    for argument in written_arguments(name):
        if arguments[argument] is not None:
            arguments[argument].copy_(copies[argument])
    return session.launches


def written_arguments(name: str) -> list[str]:
    """The arguments that an op writes, by its schema."""
    schema = getattr(torch.ops.p_eagle, name).default._schema
    return [x.name for x in schema.arguments if x.alias_info and x.alias_info.is_write]


def guarded(
    session: Session, name: str, arguments: Arguments, also_written: Sequence[str] = ()
) -> Arguments:
    """The arguments of an op with every tensor copied into a buffer of `session`.

    Tensors that share memory, such as the two halves of a cache, still do. Other ops may write the
    buffers named in `also_written`.
    """
    written = [*written_arguments(name), *also_written]
    groups: dict[int, list[tuple[str, Tensor]]] = {}
    for label, tensor in _tensors(arguments):
        groups.setdefault(tensor.untyped_storage().data_ptr(), []).append((label, tensor))
    copies = {}
    for group in groups.values():
        read_only = not any(label in written for label, _ in group)
        copies |= _copy_group(session, group, read_only)

    def replace(label: str, value: Any) -> Any:
        if isinstance(value, list):
            return [replace(f"{label}[{i}]", x) for i, x in enumerate(value)]
        return copies.get(label, value)

    return {label: replace(label, value) for label, value in arguments.items()}


def _tensors(arguments: Arguments) -> list[tuple[str, Tensor]]:
    """Every tensor that holds something, also of lists, with its name."""
    found = []
    for name, value in arguments.items():
        values = {name: value}
        if isinstance(value, list):
            values = {f"{name}[{i}]": x for i, x in enumerate(value)}
        found += [(k, x) for k, x in values.items() if isinstance(x, Tensor) and x.numel() > 0]
    return found


def _copy_group(
    session: Session, group: list[tuple[str, Tensor]], read_only: bool
) -> dict[str, Tensor]:
    """Copies tensors of one storage into one buffer; keeps their place in a 16-byte vector."""
    start = min(tensor.data_ptr() for _, tensor in group) // VECTOR_BYTES * VECTOR_BYTES
    end = max(tensor.data_ptr() + span_bytes(tensor) for _, tensor in group)
    name = " and ".join(label for label, _ in group)
    buffer = Buffer(name, end - start, read_only=read_only, initialized=True)
    ctypes.memmove(buffer.address, start, end - start)
    session.add(buffer)
    return {
        label: buffer.tensor(
            tensor.shape, tensor.dtype, tensor.stride(), offset=tensor.data_ptr() - start
        )
        for label, tensor in group
    }
