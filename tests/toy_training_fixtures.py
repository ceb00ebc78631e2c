"""The toy training, run once for all tests: a pytest plugin of the modules that need it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from p_eagle_cuda.train import continuations, corpus, drafter, export
from p_eagle_cuda.train import target as target_module
from p_eagle_cuda.train.tokenizer import save_tokenizer, train_tokenizer
from toy_training import CONTINUATIONS, DRAFTER, SHAPE, TARGET


@pytest.fixture(scope="session")
def library() -> corpus.Corpus:
    return corpus.load_corpus()


@pytest.fixture(scope="session")
def small_corpus(library: corpus.Corpus) -> corpus.Corpus:
    few = [source for source in library.held_out if source.path.startswith("re/__init__")]
    return replace(library, training=library.training[:20], held_out=few)


@pytest.fixture(scope="session")
def trained(small_corpus: corpus.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage has run, at toy size."""
    folder = tmp_path_factory.mktemp("trained")
    save_tokenizer(train_tokenizer(s.text for s in small_corpus.training), folder / "tokenizer")
    target = target_module.train_target(folder, small_corpus, TARGET, SHAPE, save_every=3)
    export.export_target(folder / "target", target, folder / "tokenizer")
    continuations.write_continuations(folder, small_corpus, CONTINUATIONS, SHAPE)
    trained = drafter.train_drafter(folder, small_corpus, DRAFTER, SHAPE, save_every=6)
    export.export_drafter(folder / "drafter", trained, folder / "target", DRAFTER.depths)
    return folder
