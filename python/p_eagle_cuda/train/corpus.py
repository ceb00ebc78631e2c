"""The training text: the source of the running interpreter's own standard library."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError

_SKIPPED_FOLDERS = {
    "site-packages", "dist-packages", "test", "tests", "idle_test",
    "encodings", "pydoc_data", "lib2to3", "__pycache__",
}  # fmt: skip
_HELD_OUT_PER_MILLE = 35
_SHINGLE_LINES = 5
_SHARED_FRACTION = 0.1


@dataclass(frozen=True)
class Source:
    """One file: its path relative to the library, its module group and its text."""

    path: str
    group: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The files to train on, the files held out, and the files left out with the reason."""

    training: list[Source]
    held_out: list[Source]
    skipped: dict[str, str] = field(default_factory=dict)

    def sha256(self) -> str:
        """Identifies the text; another interpreter version has another corpus."""
        digest = hashlib.sha256()
        for source in [*self.training, *self.held_out]:
            digest.update(f"{source.path}\0{source.text}\0".encode())
        return digest.hexdigest()


def load_corpus(root: Path | None = None) -> Corpus:
    """Read every source file of the standard library and split it into training and held-out.

    Args:
        root: Folder to read instead of the running interpreter's standard library.

    Raises:
        ConfigError: The folder holds no Python source, as in an interpreter without its library.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    training: list[Source] = []
    held_out: list[Source] = []
    skipped: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        # `_sysconfigdata_*` is generated and full of paths of the machine that built Python.
        if _SKIPPED_FOLDERS & set(relative.parts) or relative.name.startswith("_sysconfigdata"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            skipped[relative.as_posix()] = str(error)
            continue
        source = Source(relative.as_posix(), module_group(relative), text)
        (held_out if is_held_out(source.group) else training).append(source)
    if not training or not held_out:
        raise ConfigError(f"{root}: expected the sources of the standard library, found too few")

    known = set().union(*(shingles(source.text) for source in held_out))
    kept = []
    for source in training:
        own = shingles(source.text)
        if own and len(own & known) > _SHARED_FRACTION * len(own):
            skipped[source.path] = "repeats held-out text"
        else:
            kept.append(source)
    return Corpus(kept, held_out, skipped)


def module_group(relative: Path) -> str:
    """The top-level module that a file belongs to; a private twin counts as its public module.

    `json/decoder.py` belongs to `json`, `_pyio.py` to `io`, `_strptime.py` to `strptime`.
    """
    name = relative.parts[0].removesuffix(".py")
    return name.removeprefix("_py").lstrip("_") if name.startswith("_py") else name.lstrip("_")


def is_held_out(group: str) -> bool:
    """Whether a module is kept from training; a hash of its name, the same for every Python."""
    digest = hashlib.sha256(f"evaluation:{group}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < _HELD_OUT_PER_MILLE


def shingles(text: str) -> set[str]:
    """Every run of five consecutive non-empty lines, stripped: what two copies have in common."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {
        "\n".join(lines[i : i + _SHINGLE_LINES]) for i in range(len(lines) - _SHINGLE_LINES + 1)
    }


def held_out_prompts(corpus: Corpus, limit: int = 64, lines: int = 4) -> list[str]:
    """The opening lines of held-out functions, spread evenly over the held-out files.

    A function is left out when any five lines of it also occur in the training text, or when it
    is not longer than its prompt.

    Args:
        corpus: From `load_corpus`.
        limit: At most so many prompts.
        lines: Lines per prompt, counted from `def`.
    """
    known = set().union(*(shingles(source.text) for source in corpus.training))
    prompts = []
    for source in corpus.held_out:
        source_lines = source.text.splitlines(keepends=True)
        for node in ast.walk(ast.parse(source.text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            body = source_lines[node.lineno - 1 : node.end_lineno]
            if len(body) > lines + 2 and not shingles("".join(body)) & known:
                prompts.append("".join(body[:lines]))
    stride = max(1, len(prompts) // limit)
    return prompts[::stride][:limit]
