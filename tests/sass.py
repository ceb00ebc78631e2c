"""What a compiled kernel consists of: its instructions, by nvdisasm."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from elf import Elf

_FUNCTION = re.compile(r"^\.text\.(\S+):$")
_INSTRUCTION = re.compile(
    r"^\s+(?:/\*[0-9a-f]+\*/\s+)?(?:\{\s+)?(?:@!?\w+\s+)?([A-Z][A-Za-z0-9_.]+)[ ;]"
)


@dataclass
class Kernel:
    """A function of a CUDA binary."""

    name: str  # mangled
    arch: int  # 90 for sm_90a
    opcodes: list[str] = field(default_factory=list)  # with their modifiers, such as LDG.E.128

    def count(self, pattern: str) -> int:
        """Instructions of an opcode with all these modifiers and any others: "LDG.128"."""
        opcode, *modifiers = pattern.split(".")
        return sum(
            parts[0] == opcode and set(modifiers) <= set(parts[1:])
            for parts in (x.split(".") for x in self.opcodes)
        )


def find_nvdisasm() -> str | None:
    """The program, of a CUDA toolkit or of a Python package."""
    candidates = [shutil.which("nvdisasm")]
    nvidia = find_spec("nvidia")
    folders = list(nvidia.submodule_search_locations or []) if nvidia else []
    folders.append(sysconfig.get_path("scripts"))
    candidates += [str(path) for folder in folders for path in Path(folder).rglob("nvdisasm")]
    return next((path for path in candidates if path), None)


def kernels(cubin: Elf, nvdisasm: str, folder: Path) -> list[Kernel]:
    """The functions of a CUDA binary; `folder` takes a copy of it."""
    path = folder / "kernels.cubin"
    path.write_bytes(cubin.contents())
    text = subprocess.run(
        [nvdisasm, "--print-code", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found: list[Kernel] = []
    for line in text.splitlines():
        if function := _FUNCTION.match(line):
            found.append(Kernel(function[1], cubin.cuda_arch()))
        elif found and (instruction := _INSTRUCTION.match(line)):
            found[-1].opcodes.append(instruction[1])
    return found
