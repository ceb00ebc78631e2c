"""Memory for kernels to work on: guarded, named, and NaN until someone writes it."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Sequence

import numpy as np
import torch

FILL = 0xFF  # NaN in every floating-point format, -1 in every integer
VECTOR_BYTES = 16  # the widest access of a thread, so the least alignment that kernels ask for
ALLOCATION_BYTES = 256  # what cudaMalloc aligns to; TMA asks for 128

_PAGE = mmap.PAGESIZE
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
)  # fmt: skip
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Buffer:
    """Bytes between two pages that nobody may touch.

    The emulator checks every access of a kernel against the buffers it knows. The pages catch the
    others: the host layer's, and the emulator's own.

    The end of the bytes lies at the second page, up to `alignment`. The memory lives as long as
    anything that refers to it: this object, or an array or a tensor made by it.

    Args:
        name: What reports call it.
        size: In bytes.
        read_only: A kernel that writes there is reported.
        initialized: Whether a kernel may read what it has not written.
        alignment: Of the first byte; a power of two.
    """

    def __init__(
        self,
        name: str,
        size: int,
        *,
        read_only: bool = False,
        initialized: bool = False,
        alignment: int = VECTOR_BYTES,
    ) -> None:
        self.name = name
        self.size = size
        self.read_only = read_only
        self.initialized = initialized
        usable = -(-max(size, 1) // _PAGE) * _PAGE
        start = _map_between_guards(usable)
        self.address = (start + usable - size) // alignment * alignment
        # Views keep this object alive, and with it the pages.
        self._memory = (ctypes.c_char * size).from_address(self.address)
        weakref.finalize(self._memory, _libc.munmap, start - _PAGE, usable + 2 * _PAGE)
        ctypes.memset(start, FILL, usable)

    @classmethod
    def of_array(cls, name: str, array: np.ndarray, *, read_only: bool = True) -> Buffer:
        """A buffer with the contents of `array`."""
        buffer = cls(name, array.nbytes, read_only=read_only, initialized=True)
        buffer.array(array.shape, array.dtype)[...] = array
        return buffer

    @classmethod
    def of_tensor(cls, name: str, tensor: torch.Tensor, *, read_only: bool = True) -> Buffer:
        """A buffer with the contents of a CPU tensor, and the gaps that its strides leave."""
        buffer = cls(name, span_bytes(tensor), read_only=read_only, initialized=True)
        buffer.tensor(tensor.shape, tensor.dtype, tensor.stride()).copy_(tensor)
        return buffer

    def array(self, shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
        """The bytes as an array, which may be written."""
        count = int(np.prod(shape, dtype=np.int64))
        if count == 0:
            return np.empty(shape, dtype)
        return np.frombuffer(self._memory, dtype=dtype, count=count).reshape(shape)

    def tensor(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        strides: Sequence[int] | None = None,
        *,
        offset: int = 0,
    ) -> torch.Tensor:
        """The bytes from `offset` on as a tensor, which may be written.

        It is contiguous unless `strides` are given.
        """
        if self.size == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        # Through bytes, because not every dtype is known to torch.frombuffer.
        data = torch.frombuffer(self._memory, dtype=torch.uint8, offset=offset)
        flat = data[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype)
        if strides is None:
            return flat[: int(np.prod(shape, dtype=np.int64))].view(tuple(shape))
        return flat.as_strided(tuple(shape), tuple(strides))


def _map_between_guards(usable: int) -> int:
    """The address of `usable` bytes of whole pages with an inaccessible page on either side."""
    prot_none = 0
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    base = _libc.mmap(None, usable + 2 * _PAGE, prot_none, flags, -1, 0)
    if base is None or base == _FAILED:
        raise MemoryError(f"expected to map {usable + 2 * _PAGE} bytes, mmap failed")
    start = int(base) + _PAGE
    if _libc.mprotect(start, usable, mmap.PROT_READ | mmap.PROT_WRITE) != 0:
        raise MemoryError(f"expected to make {usable} bytes writable, mprotect failed")
    return start


def span_bytes(tensor: torch.Tensor) -> int:
    """From the first to past the last element."""
    if tensor.numel() == 0:
        return 0
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return (last + 1) * tensor.element_size()
