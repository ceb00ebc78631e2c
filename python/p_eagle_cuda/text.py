"""Text in and out: a model folder's tokenizer, and prompts from a file."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from p_eagle_cuda.errors import CheckpointError, PromptError

_INCOMPLETE = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a Hugging Face model folder.

    Raises:
        CheckpointError: There is no tokenizer.json, or it is not one.
    """
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{file}: not found, expected the target's tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{file}: is not a tokenizer ({_first_line(error)})") from None
    tokenizer.no_truncation()  # settings of the training that such a file may carry
    tokenizer.no_padding()
    return tokenizer


def encode_prompt(tokenizer: Tokenizer, text: str, bos_token_id: int | None) -> list[int]:
    """Token ids of a prompt; an empty one becomes the token that starts a text.

    Raises:
        PromptError: The prompt is not Unicode text, or is empty and the model has no such token.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, or a byte that was not UTF-8
        raise PromptError(
            f"the prompt is not Unicode text: character {error.start} is {text[error.start]!r}"
        ) from None
    ids: list[int] = tokenizer.encode(text).ids
    if ids:
        return ids
    if bos_token_id is None:
        raise PromptError("the prompt is empty and the target has no token that starts a text")
    return [bos_token_id]


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a JSON Lines file, ``{"prompt": "..."}`` a line; blank lines are skipped.

    Raises:
        PromptError: The file cannot be read, is not UTF-8, or a line is not such an object.
    """
    prompts = []
    for place, value in read_json_lines(path):
        prompt = value.get("prompt") if isinstance(value, dict) else None
        if not isinstance(prompt, str):
            raise PromptError(f'{place}: expected {{"prompt": "..."}}, found {value!r:.60}')
        prompts.append(prompt)
    if not prompts:
        raise PromptError(f"{path}: holds no prompts")
    return prompts


def read_json_lines(path: str | Path) -> list[tuple[str, Any]]:
    """The values of a JSON Lines file, each with its place; blank lines are skipped.

    A file that ends in .gz is unpacked.

    Raises:
        PromptError: The file cannot be read, is not UTF-8, or a line is not JSON.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
        lines = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{file}: is not UTF-8 (byte {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise PromptError(f"{file}: cannot be read ({reason})") from None
    values = []
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append((f"{file}:{number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{file}:{number}: is not JSON ({_first_line(error)})") from None
    return values


class TextStream:
    """Turns tokens into text as they come, holding back characters that are not complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # characters handed out

    def add(self, token_ids: list[int]) -> str:
        """The text that these tokens complete."""
        self._ids += token_ids
        text = self._tokenizer.decode(self._ids)
        return self._advance(text.rstrip(_INCOMPLETE))

    def finish(self) -> str:
        """What was held back."""
        return self._advance(self._tokenizer.decode(self._ids))

    def _advance(self, text: str) -> str:
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return new


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
