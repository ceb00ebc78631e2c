"""Reading safetensors checkpoints: one file or many, checked tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from p_eagle_cuda.errors import CheckpointError
from p_eagle_cuda.fields import read_json_object

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_PROGRESS_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**22

_FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_INTEGERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies, and what it is."""

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: tensor `{self.stored_name}` {problem}")


class Checkpoint:
    """The tensors of a safetensors checkpoint, memory-mapped and read one at a time.

    Use it as a context manager; tensors that were read stay valid, they own their memory. Every
    method raises `CheckpointError` with one sentence that names the file and the tensor.
    """

    def __init__(self, path: Path, files: dict[Path, Any], entries: dict[str, _Entry]) -> None:
        self.path = path
        self._files = files
        self._entries = entries
        self._read: set[str] = set()
        self._progress: tqdm[Any] | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        rename: Callable[[str], str] | None = None,
        progress: bool = True,
    ) -> Checkpoint:
        """Open a checkpoint without reading any tensor.

        Args:
            path: a `.safetensors` file, or a folder with `model.safetensors`, a sharded
                `model.safetensors.index.json`, or else any number of `.safetensors` files.
            rename: from the name of a tensor in the file to the name it is asked for by.
            progress: whether to show a progress bar while reading more than 256 MiB.
        """
        path = Path(path)
        shards = _shards(path)
        files = {file: _open_file(file) for file in shards}
        entries: dict[str, _Entry] = {}
        total_bytes = 0
        for file, handle in files.items():
            total_bytes += file.stat().st_size
            for stored_name in handle.keys():  # noqa: SIM118, a handle is not iterable
                part = handle.get_slice(stored_name)
                entry = _Entry(file, stored_name, tuple(part.get_shape()), part.get_dtype())
                name = rename(stored_name) if rename else stored_name
                if name in entries:
                    other = entries[name]
                    raise entry.error(
                        f"is there twice, also as `{other.stored_name}` in {other.file.name}, "
                        "expected one definition"
                    )
                entries[name] = entry
        _check_index(shards, entries)
        checkpoint = cls(path, files, entries)
        if progress and total_bytes > _PROGRESS_BYTES:
            checkpoint._progress = tqdm(
                desc=f"reading {path.name}", total=total_bytes, unit="B", unit_scale=True
            )
        return checkpoint

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the files and finish the progress bar."""
        self._files.clear()
        if self._progress is not None:
            self._progress.close()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the file's header."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a weight, from the file's header: bfloat16, float16 or float32."""
        return _FLOATS[self._checked(name, None, _FLOATS).dtype]

    def read(
        self,
        name: str,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        meaning: str = "",
    ) -> Tensor:
        """Read a weight of exactly that shape, converted to `dtype` on `device`.

        `meaning` explains the expected shape to a user who has another one.
        """
        self._checked(name, shape, _FLOATS, meaning)
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor, *, meaning: str = "") -> None:
        """Read a weight of exactly `out`'s shape into `out`, converted to its dtype and device.

        A value that is not finite, in the file or after conversion, is an error.
        """
        entry = self._checked(name, tuple(out.shape), _FLOATS, meaning)
        stored = self._get(name)
        out.copy_(stored)
        self._advance(stored.nbytes)
        if not _is_finite(out):
            where = (~stored.isfinite()).nonzero()
            if len(where) == 0:
                raise entry.error(f"holds values beyond {out.dtype}, expected ones that fit")
            index = tuple(where[0].tolist())
            raise entry.error(
                f"is {stored[index].item()} at {list(index)}, expected finite values only"
            )

    def skip(self, name: str, shape: Sequence[int], *, meaning: str = "") -> None:
        """Check that there is a weight of that shape, and count it as read."""
        self._checked(name, shape, _FLOATS, meaning)
        self._read.add(name)
        self._advance(math.prod(shape) * self.dtype(name).itemsize)

    def sha256(self) -> str:
        """A digest of all files, which are read for it."""
        digest = hashlib.sha256()
        for file in sorted(self._files):
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    def read_integers(self, name: str, shape: Sequence[int]) -> Tensor:
        """Read an integer or boolean tensor of exactly that shape, as int64 on the CPU."""
        self._checked(name, shape, _INTEGERS)
        stored = self._get(name)
        self._advance(stored.nbytes)
        return stored.to(torch.int64, copy=True)

    def check_all_read(self, ignore: Callable[[str], bool]) -> None:
        """Raise if there is a tensor that was neither read nor is to be ignored."""
        extra = [
            entry
            for name, entry in sorted(self._entries.items())
            if name not in self._read and not ignore(name)
        ]
        if extra:
            others = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise extra[0].error(
                f"of shape {list(extra[0].shape)}{others} found, expected only what the "
                "configuration calls for"
            )

    def _entry(self, name: str, shape: Sequence[int] | None = None) -> _Entry:
        if name not in self._entries:
            expected = f" with shape {list(shape)}" if shape is not None else ""
            raise CheckpointError(
                f"{self.path}: tensor `{name}` is missing, expected one{expected}"
            )
        return self._entries[name]

    def _checked(
        self,
        name: str,
        shape: Sequence[int] | None,
        dtypes: Collection[str],
        meaning: str = "",
    ) -> _Entry:
        """The entry of a tensor that has that shape and one of these dtypes."""
        entry = self._entry(name, shape)
        if entry.dtype not in dtypes:
            hint = ", quantised checkpoints are not supported" if dtypes is _FLOATS else ""
            raise entry.error(f"has dtype {entry.dtype}, expected one of {', '.join(dtypes)}{hint}")
        if shape is not None and entry.shape != tuple(shape):
            because = f" ({meaning})" if meaning else ""
            raise entry.error(f"has shape {list(entry.shape)}, expected {list(shape)}{because}")
        return entry

    def _get(self, name: str) -> Tensor:
        entry = self._entries[name]
        tensor: Tensor = self._files[entry.file].get_tensor(entry.stored_name)
        self._read.add(name)
        return tensor

    def _advance(self, num_bytes: int) -> None:
        if self._progress is not None:
            self._progress.update(num_bytes)


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    low, high = tensor.aminmax()  # one pass, no temporary; NaN propagates
    return bool((low.isfinite() & high.isfinite()).item())


def _shards(path: Path) -> dict[Path, set[str] | None]:
    """The files of a checkpoint, each with the tensors its index promises (None: no index)."""
    if path.is_file():
        return {path: None}
    if not path.is_dir():
        raise CheckpointError(f"{path}: not found, expected a checkpoint folder or file")
    if (path / _SINGLE_FILE).is_file():
        return {path / _SINGLE_FILE: None}
    index = path / _INDEX_FILE
    if index.is_file():
        weight_map = read_json_object(index, CheckpointError).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: expected an object `weight_map` from tensor to file")
        shards: dict[Path, set[str] | None] = {}
        promised: dict[Path, set[str]] = {}
        for name, file in weight_map.items():
            if not isinstance(file, str):
                raise CheckpointError(f"{index}: expected the file name of tensor `{name}`")
            promised.setdefault(path / file, set()).add(name)
        for shard in sorted(promised):
            if not shard.is_file():
                raise CheckpointError(f"{shard}: not found, expected a shard named by {index.name}")
            shards[shard] = promised[shard]
        return shards
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
        found = f", found {pickles[0].name}, which is not supported" if pickles else ""
        raise CheckpointError(f"{path}: no .safetensors file, expected {_SINGLE_FILE}{found}")
    return dict.fromkeys(files)


def _open_file(file: Path) -> Any:  # noqa: ANN401, safetensors has no type for it
    """Map a file and read its header."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except OSError as reason:
        raise CheckpointError(f"{file}: cannot be read ({reason})") from None
    except SafetensorError as reason:
        expected, found = _expected_bytes(file), file.stat().st_size
        if expected is not None and found != expected:
            raise CheckpointError(
                f"{file}: truncated or damaged, expected {expected} bytes, found {found}"
            ) from None
        raise CheckpointError(f"{file}: not a safetensors file ({reason})") from None


def _expected_bytes(file: Path) -> int | None:
    """The size a safetensors file should have by its own header, None if that is unreadable."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            return None
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > 100 * 2**20:  # the format's own limit
            return None
        header = stream.read(header_bytes)
    if len(header) < header_bytes:
        return 8 + int(header_bytes)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        return 8 + int(header_bytes) + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _check_index(shards: dict[Path, set[str] | None], entries: dict[str, _Entry]) -> None:
    """Every tensor must be in the shard in which the index says it is."""
    stored = {(entry.file, entry.stored_name) for entry in entries.values()}
    for file, promised in shards.items():
        missing: Iterable[str] = sorted(
            name for name in promised or () if (file, name) not in stored
        )
        for name in missing:
            raise CheckpointError(
                f"{file}: tensor `{name}` is missing, expected it here by {_INDEX_FILE}"
            )
