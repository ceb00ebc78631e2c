"""A byte-level BPE tokenizer for Python source, in the format of Hugging Face `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ..errors import CheckpointError

VOCAB_SIZE = 512
END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
END_OF_TEXT_ID = VOCAB_SIZE - 2
MASK_ID = VOCAB_SIZE - 1

# A line break keeps the indentation that follows it, so that one token can say "new line, two
# levels deep"; digits stay single; a word or an operator takes the space before it.
_PATTERN = r"\n+ *|[0-9]| ?[A-Za-z_]+| ?[^\sA-Za-z0-9_]+|[^\S\n]+"


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learn 510 byte-level tokens; the last two ids are the end of a text and the drafter's mask.

    Deterministic: byte pairs are counted, not sampled.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT, MASK])
    if tokenizer.token_to_id(MASK) != MASK_ID:
        raise CheckpointError(
            f"tokenizer: expected {VOCAB_SIZE} tokens, found {tokenizer.get_vocab_size()} "
            "because the training text is too short"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` and vLLM read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json` from a folder.

    Raises:
        CheckpointError: There is no such file.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"{path}: no tokenizer there; run the stage `tokenizer` first")
    return Tokenizer.from_file(str(path))


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> torch.Tensor:
    """Encode whole files into one int64 stream; each file starts with the end-of-text token."""
    ids = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids.append(END_OF_TEXT_ID)
        ids.extend(encoding.ids)
    return torch.tensor(ids)
