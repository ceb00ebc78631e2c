"""Prompts for an evaluation, from local files: three well-known sets, or any JSON Lines file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p_eagle_cuda.errors import PromptError
from p_eagle_cuda.text import read_json_lines

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Dataset:
    """Prompts and what to call them.

    Attributes:
        title: Name in a table.
        prompts: Each a text, which an endpoint for chats takes as a user's message, or messages.
    """

    title: str
    prompts: list[Prompt]


@dataclass(frozen=True)
class KnownDataset:
    """A published dataset.

    Attributes:
        title: As the model cards write it.
        files: Names that its file may have.
        origin: Where to get it.
        field: What of an object is the prompt; of several turns it is the first. vLLM's benchmark
            takes the same.
    """

    title: str
    files: tuple[str, ...]
    origin: str
    field: str


KNOWN = {
    "humaneval": KnownDataset(
        "HumanEval",
        ("HumanEval.jsonl.gz", "HumanEval.jsonl"),
        "https://github.com/openai/human-eval/raw/master/data/HumanEval.jsonl.gz",
        "prompt",
    ),
    "mtbench": KnownDataset(
        "MT-Bench",
        ("question.jsonl", "mtbench.jsonl"),
        "https://github.com/lm-sys/FastChat/raw/main/fastchat/llm_judge/data/mt_bench/question.jsonl",
        "turns",
    ),
    "gsm8k": KnownDataset(
        "GSM-8K",
        ("test.jsonl", "gsm8k.jsonl"),
        "https://github.com/openai/grade-school-math/raw/master/grade_school_math/data/test.jsonl",
        "question",
    ),
}


def load_dataset(name: str, data_dir: str | Path, num_prompts: int | None = None) -> Dataset:
    """Read a dataset.

    Args:
        name: A key of `KNOWN`, or a JSON Lines file whose objects have `prompt`, a text, or
            `messages`, a chat. Files that end in .gz are unpacked.
        data_dir: Folder with the files of known datasets.
        num_prompts: At most so many, from the beginning; all if None.

    Raises:
        PromptError: There is no such file, or a line of it is not what it should be.
    """
    known = KNOWN.get(name.lower())
    if known is not None:
        file = _find(known, Path(data_dir))
    elif Path(name).is_file():
        file = Path(name)
    else:
        raise PromptError(f"expected one of {', '.join(KNOWN)} or a JSON Lines file, got {name!r}")
    prompts = [
        _prompt_of(value, place, None if known is None else known.field)
        for place, value in read_json_lines(file)
    ]
    if not prompts:
        raise PromptError(f"{file}: holds no prompts")
    return Dataset(file.name if known is None else known.title, prompts[:num_prompts])


def _find(known: KnownDataset, folder: Path) -> Path:
    for name in known.files:
        if (folder / name).is_file():
            return folder / name
    raise PromptError(
        f"{folder / known.files[0]}: not found; get it from {known.origin} and put it there, or "
        f"name its folder with --data-dir"
    )


def _prompt_of(value: object, place: str, field: str | None) -> Prompt:
    found = value if isinstance(value, dict) else {}
    if field is None:
        field = "messages" if "messages" in found else "prompt"
    prompt = found.get(field)
    if field == "messages":
        if isinstance(prompt, list) and prompt and all(isinstance(x, dict) for x in prompt):
            return prompt
        raise PromptError(
            f'{place}: expected "messages" to be a list of objects, found {prompt!r:.60}'
        )
    if field == "turns" and isinstance(prompt, list) and prompt:
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    raise PromptError(f'{place}: expected an object with a text "{field}", found {value!r:.60}')
