"""The committed table of what compiled kernels take of an SM: registers, stack, shared memory.

It is for one compiler, which decides the registers. After a change that is meant, this writes it
anew from the installed library, and says what differs:

    python tests/kernel_resources.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from elf import Elf
from p_eagle_cuda._registry import compiled

LIBRARY = Path(str(files("p_eagle_cuda") / "libp_eagle_ops.so"))
TABLE = Path(__file__).with_name("kernel_resources.json")
FIELDS = ("registers", "stack_bytes", "shared_bytes")
Table = dict[str, dict[str, list[int]]]  # by architecture and kernel, in the order of FIELDS

_BUILT_IN = {"f": "float", "h": "uint8", "t": "uint16"}
_TOKEN = re.compile(r"S[0-9A-Z]*_|L[a-z](\d+)E|(\d+)|(Ev)|I([fht])(?=[EL])|.")


def measured(library: Path = LIBRARY) -> Table:
    """Of every kernel of a library."""
    table: Table = {}
    for cubin in Elf(library.read_bytes()).cubins():
        kernels = table.setdefault(f"sm_{cubin.cuda_arch()}", {})
        for mangled, found in cubin.resources().items():
            name = readable(mangled)
            assert name not in kernels, f"{mangled}: another kernel is called {name}, too"
            kernels[name] = [getattr(found, field) for field in FIELDS]
    return {arch: dict(sorted(kernels.items())) for arch, kernels in sorted(table.items())}


def readable(mangled: str) -> str:
    """A kernel's name and the template arguments that tell it from others.

    A mangled name holds names behind their lengths, numbers as ``Li64E``, and for what is in a file
    alone a hash of that file, which is left out.
    """
    found: list[str] = []
    at = len("_Z")
    while at < len(mangled):
        token = _TOKEN.match(mangled, at)
        assert token is not None
        number, length, end, built_in = token.groups()
        at = token.end()
        if end:
            break  # of the template arguments: parameters follow
        if number:
            found.append(number)
        elif built_in:
            found.append(_BUILT_IN[built_in])
        elif length:
            name = mangled[at : at + int(length)]
            at += int(length)
            if name.endswith("Params"):
                break
            if name not in ("p_eagle", "cutlass") and "_GLOBAL__N_" not in name:
                found.append(name)
    return " ".join(found)


def differences(
    before: Mapping[str, list[int]], now: Mapping[str, list[int]]
) -> tuple[list[str], list[str]]:
    """Between kernels of one architecture: what takes more, or is not in both; what takes less."""
    worse = [f"{name}: is no longer there" for name in before if name not in now]
    worse += [f"{name}: is not in the table" for name in now if name not in before]
    better = []
    for name in sorted(before.keys() & now.keys()):
        for field, old, new in zip(FIELDS, before[name], now[name], strict=True):
            if old != new:
                (worse if new > old else better).append(f"{name}: {field} {old} -> {new}")
    return worse, better


def read_table() -> dict[str, Any]:
    """The committed one: `nvcc`, the compiler's version, and `kernels`."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def main() -> None:
    """Write the table anew; architectures that this library has not stay as they are."""
    known = read_table() if TABLE.exists() else {"kernels": {}}
    now = measured()
    for arch, kernels in now.items():
        for lines in differences(known["kernels"].get(arch, {}), kernels):
            print("\n".join(f"{arch} {line}" for line in lines))
    of_this = known.get("nvcc") == compiled().nvcc_version
    kernels = {**(known["kernels"] if of_this else {}), **now}
    lines = [f' "nvcc": {json.dumps(compiled().nvcc_version)},', ' "kernels": {']
    for arch in sorted(kernels):
        lines.append(f"  {json.dumps(arch)}: {{")
        rows = [f"   {json.dumps(name)}: {row}" for name, row in kernels[arch].items()]
        lines += [*(f"{row}," for row in rows[:-1]), rows[-1]]
        lines.append("  }," if arch != max(kernels) else "  }")
    TABLE.write_text("\n".join(["{", *lines, " }", "}"]) + "\n", encoding="utf-8")
    print(f"{sum(map(len, now.values()))} kernels in {TABLE.name}")


if __name__ == "__main__":
    main()
