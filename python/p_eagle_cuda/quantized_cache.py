"""Quantised matrices on disk, so that a checkpoint need not be quantised each time it is loaded.

A cache is a safetensors file whose metadata says of which checkpoint it was made, and how; its name
ends in `.cache`, so that nothing takes it for a part of the checkpoint. Whatever is wrong with it,
the matrices can be made again: then a warning says why, and the file is replaced as a whole.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_FORMAT = "p_eagle_cuda quantised matrices, 1"  # the number changes when their values would


class QuantizedCache:
    """The quantised matrices of one checkpoint, in one precision."""

    def __init__(self, folder: Path, precision: str, source: str) -> None:
        """Name the file; nothing is read or written yet.

        Args:
            folder: Where it is or will be.
            precision: Of the weights, "fp8" or "fp8_head".
            source: Digest of the checkpoint that the matrices are made of.
        """
        self.file = folder / f"p_eagle_cuda-{precision}.cache"
        self._expected = {"format": _FORMAT, "weights": precision, "checkpoint_sha256": source}

    def read(self, device: torch.device | str) -> dict[str, Tensor]:
        """The matrices and their scales by name, in memory of their own on `device`.

        Empty, with a warning unless the file is not there, if they must be made again.
        """
        try:
            with safe_open(self.file, framework="pt", device="cpu") as handle:
                found = handle.metadata() or {}
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, SafetensorError) as reason:
            return self._rejected(f"cannot be read ({reason})")
        for key, expected in self._expected.items():
            if found.get(key) != expected:
                return self._rejected(f"has {key} {found.get(key)!r}, expected {expected!r}")
        if found.get("tensors_sha256") != _digest(tensors):
            return self._rejected("is damaged: its tensors are not those that its checksum is of")
        return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the file; readers see the old one or the new one. A warning if that fails."""
        temporary = self.file.with_name(f"{self.file.name}.{os.getpid()}.tmp")
        on_cpu = {name: tensor.cpu() for name, tensor in tensors.items()}
        metadata = {**self._expected, "tensors_sha256": _digest(on_cpu)}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file(on_cpu, temporary, metadata)
                temporary.replace(self.file)
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, SafetensorError) as reason:
            self._warn(f"cannot be written ({reason}); the next load quantises again")

    def _rejected(self, problem: str) -> dict[str, Tensor]:
        self._warn(f"{problem}; it is made again")
        return {}

    def _warn(self, problem: str) -> None:
        warnings.warn(f"{self.file}: {problem}", stacklevel=2)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
