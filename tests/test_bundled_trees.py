"""Draft trees on the bundled pair: lossless at every batch size, and longer than a chain."""

from __future__ import annotations

import pytest

from p_eagle_cuda.bundled import bundled_drafter, bundled_target
from p_eagle_cuda.draft_tree import DraftTree
from p_eagle_cuda.generation import Decoded, Generator
from p_eagle_cuda.train.corpus import held_out_prompts, load_corpus

K, TOKENS = 5, 10
NUM_PROMPTS = {1: 2, 3: 5, 16: 16, 64: 64}  # by batch size: some wait for a lane


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(bundled_target(), bundled_drafter(), num_speculative_tokens=K)


@pytest.fixture(scope="module")
def prompts(generator: Generator) -> list[list[int]]:
    """Of different lengths, and short, to be quick."""
    ids = generator.encode(held_out_prompts(load_corpus(), limit=64), TOKENS)
    return [own[: 8 + i % 16] for i, own in enumerate(ids)]


@pytest.fixture(scope="module")
def plain(generator: Generator, prompts: list[list[int]]) -> list[list[int]]:
    return texts(generator.decode(prompts, TOKENS, tree=None, batch_size=64))


@pytest.fixture(scope="module")
def trees(generator: Generator, prompts: list[list[int]]) -> dict[str, DraftTree]:
    chain = DraftTree.chain(K)
    calibration = generator.decode(prompts[:8], 20, tree=chain)
    shape = DraftTree.static(generator.accuracies(calibration), 16)
    return {"chain": chain, "static": shape, "dynamic": DraftTree.dynamic(16)}


def texts(decoded: Decoded) -> list[list[int]]:
    return [c.token_ids for c in decoded.completions]


@pytest.mark.parametrize("batch_size", NUM_PROMPTS)
def test_greedy_text_is_the_targets_own(
    batch_size: int,
    generator: Generator,
    prompts: list[list[int]],
    plain: list[list[int]],
    trees: dict[str, DraftTree],
) -> None:
    """And over the same text a tree accepts more than a chain."""
    n, length = NUM_PROMPTS[batch_size], {}
    for kind, tree in trees.items():
        drafted = generator.decode(prompts[:n], TOKENS, tree=tree, batch_size=batch_size)
        assert texts(drafted) == plain[:n], kind
        accepted = {s.num_accepted for c in drafted.completions for s in c.steps}
        assert len(accepted) > 2, "acceptance is not ragged"
        length[kind] = drafted.acceptance(K).length
    if n >= 16:
        assert min(length["static"], length["dynamic"]) > length["chain"] + 0.1


def test_a_seed_gives_the_same_text_alone_and_in_a_batch(
    generator: Generator, prompts: list[list[int]], trees: dict[str, DraftTree]
) -> None:
    """And that of the target alone: at a temperature too, whatever is drafted."""
    few, sampling = prompts[:3], {"temperature": 0.8, "seed": 7}
    plain = texts(generator.decode(few, TOKENS, tree=None, batch_size=3, **sampling))
    greedy = texts(generator.decode(few, TOKENS, tree=None, batch_size=3))
    assert plain != greedy
    for tree in trees.values():
        for batch_size in (1, 3):
            drafted = generator.decode(few, TOKENS, tree=tree, batch_size=batch_size, **sampling)
            assert texts(drafted) == plain
