"""Tokens to text as they come."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from p_eagle_cuda.text import TextStream


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, so that characters come in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_characters_are_held_back_until_they_are_whole() -> None:
    tokenizer = byte_tokenizer()
    text = "a\u00e9\u2603\U0001f600b"
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    stream = TextStream(tokenizer)
    pieces = [stream.add([token]) for token in ids]
    assert "".join(pieces) == text
    assert [p for p in pieces if p] == list(text)
    assert stream.finish() == ""


def test_what_never_became_whole_is_shown_at_the_end() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("x\u2603").ids
    stream = TextStream(tokenizer)
    assert stream.add(ids[:-1]) == "x"
    assert stream.finish() == "\ufffd"
