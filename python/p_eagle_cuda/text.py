"""Text in and out: a model folder's tokenizer, and prompts from a file."""

from __future__ import annotations

import json
from pathlib import Path

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
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise PromptError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"{file}: is not UTF-8 (byte {error.start})") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{file}:{number}: is not JSON ({_first_line(error)})") from None
        prompt = value.get("prompt") if isinstance(value, dict) else None
        if not isinstance(prompt, str):
            raise PromptError(f'{file}:{number}: expected {{"prompt": "..."}}, found {line[:60]}')
        prompts.append(prompt)
    if not prompts:
        raise PromptError(f"{file}: holds no prompts")
    return prompts


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
