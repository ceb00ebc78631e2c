"""Reads what tests ask of a compiled library: its symbols, its dependencies, its CUDA binaries.

Facts: ELF-64 little endian, as in elf.h; a CUDA binary ("cubin") is an ELF file of machine 190
inside the host library, whose section ``.nv.info`` lists register counts and stack
frames by symbol.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_MACHINE_CUDA = 190
_SECTION_SYMTAB, _SECTION_DYNAMIC, _SECTION_DYNSYM = 2, 6, 11
_TAG_NEEDED = 1
_BIND_GLOBAL = 1
_ATTRIBUTE_REGISTERS, _ATTRIBUTE_FRAME_SIZE = 0x2F, 0x11
_FORMAT_SIZED = 4
_SHARED = ".nv.shared."


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    content: bytes
    link: int  # index of the section that holds its strings
    size: int  # of what it is loaded to, which the file need not hold


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of an SM, as it was compiled."""

    registers: int  # of a thread
    stack_bytes: int  # of a thread: local memory, spills included
    shared_bytes: int  # of a block: static; launches ask for more


class Elf:
    """One ELF file, which may lie inside a larger one and then ends before it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.machine: int
        (self.machine,) = struct.unpack_from("<H", data, 18)
        (section_table,) = struct.unpack_from("<Q", data, 40)
        self.flags: int
        (self.flags,) = struct.unpack_from("<I", data, 48)
        entry_size, count, names = struct.unpack_from("<HHH", data, 58)
        headers = [
            struct.unpack_from("<IIQQQQIIQQ", data, section_table + i * entry_size)
            for i in range(count)
        ]
        # The tables lie at the end; what follows belongs to something else.
        (segments,) = struct.unpack_from("<Q", data, 32)
        segment_size, num_segments = struct.unpack_from("<HH", data, 54)
        self._size = max(section_table + count * entry_size, segments + num_segments * segment_size)
        strings = headers[names][4]
        self.sections = [
            Section(self._string(strings + name), kind, data[offset : offset + size], link, size)
            for name, kind, _, _, offset, size, link, *_ in headers
        ]

    def contents(self) -> bytes:
        """The file by itself."""
        return self._data[: self._size]

    def needed(self) -> list[str]:
        """The libraries that the loader must find."""
        dynamic = next(x for x in self.sections if x.kind == _SECTION_DYNAMIC)
        strings = self.sections[dynamic.link].content
        entries = struct.iter_unpack("<qQ", dynamic.content)
        return [_string(strings, value) for tag, value in entries if tag == _TAG_NEEDED]

    def undefined(self) -> list[str]:
        """The symbols that the loader must find, weak ones excepted."""
        return [name for name, section in self._global_symbols() if not section]

    def defined(self) -> list[str]:
        """The symbols that this library gives to others, weak ones excepted."""
        return [name for name, section in self._global_symbols() if section]

    def cubins(self) -> list[Elf]:
        """The CUDA binaries in this library, one per source file and architecture."""
        starts = [match.start() for match in re.finditer(b"\x7fELF", self._data)]
        files = [Elf(self._data[start:]) for start in starts if start > 0]
        return [file for file in files if file.machine == _MACHINE_CUDA]

    def cuda_arch(self) -> int:
        """The architecture of a CUDA binary, such as 90."""
        return self.flags >> 8 & 0xFF

    def resources(self) -> dict[str, Resources]:
        """By mangled name, what each kernel of a CUDA binary takes."""
        registers = self._cuda_attribute(_ATTRIBUTE_REGISTERS)
        frames = self._cuda_attribute(_ATTRIBUTE_FRAME_SIZE)
        shared = {
            x.name.removeprefix(_SHARED): x.size
            for x in self.sections
            if x.name.startswith(_SHARED)
        }
        return {
            name: Resources(registers[name], frames[name], shared.get(name, 0))
            for name in self.opcodes()
        }

    def stack_frames(self) -> list[int]:
        """Bytes of local memory per thread of each function of a CUDA binary, spills included."""
        return list(self._cuda_attribute(_ATTRIBUTE_FRAME_SIZE).values())

    def opcodes(self) -> dict[str, set[int]]:
        """By kernel, which instructions a CUDA binary has: the low 12 bits of their 16 bytes."""
        return {
            x.name.removeprefix(".text."): {
                low & 0xFFF for low, _ in struct.iter_unpack("<QQ", x.content)
            }
            for x in self.sections
            if x.name.startswith(".text.")
        }

    def _global_symbols(self) -> list[tuple[str, int]]:
        return [
            (name, section)
            for name, info, section in self._symbols(_SECTION_DYNSYM)
            if info >> 4 == _BIND_GLOBAL
        ]

    def _symbols(self, kind: int) -> list[tuple[str, int, int]]:
        """Name, info and section of each symbol of a table."""
        table = next(x for x in self.sections if x.kind == kind)
        strings = self.sections[table.link].content
        return [
            (_string(strings, name), info, section)
            for name, info, _, section, _, _ in struct.iter_unpack("<IBBHQQ", table.content)
        ]

    def _cuda_attribute(self, wanted: int) -> dict[str, int]:
        """By function."""
        content = next(x.content for x in self.sections if x.name == ".nv.info")
        names = [name for name, _, _ in self._symbols(_SECTION_SYMTAB)]
        values, at = {}, 0
        while at < len(content):
            form, attribute, size = struct.unpack_from("<BBH", content, at)
            if attribute == wanted:
                symbol, value = struct.unpack_from("<II", content, at + 4)
                values[names[symbol]] = value
            at += 4 + (size if form == _FORMAT_SIZED else 0)
        return values

    def _string(self, start: int) -> str:
        return _string(self._data, start)


def _string(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()
