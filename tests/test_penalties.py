"""Penalties: their definition, the lists of what has occurred, and that they lose nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p_eagle_cuda import ops
from p_eagle_cuda.penalties import Occurrences, Penalties, add_tokens, apply_penalties, count_tokens
from p_eagle_cuda.tree import build_tree, topology

NAN, INF = float("nan"), float("inf")


def penalties_of(repetition: float, frequency: float, presence: float, B: int = 1) -> Penalties:
    return Penalties(*(torch.full((B,), float(x)) for x in (repetition, frequency, presence)))


def penalised(
    logits: Tensor, prompt: list[int], output: list[int], penalties: Penalties, drafts: list[int]
) -> Tensor:
    """Of a chain of drafts after the output's last token."""
    nodes = [output[-1] if output else prompt[-1], *drafts]
    occurrences = count_tokens([torch.tensor(prompt)], [torch.tensor(output, dtype=torch.int64)], 9)
    rows = torch.tensor([0, len(nodes)], dtype=torch.int32)
    return apply_penalties(logits, rows, torch.tensor([nodes]), occurrences, penalties)


def by_definition(row: Tensor, prompt: list[int], output: list[int], p: Penalties) -> Tensor:
    """Token by token, in Python's floats."""
    r, f, presence = (float(x) for x in p)
    expected = row.double()
    for token in {*prompt, *output}:
        x = float(row[token])
        x = x / r if x > 0 else x * r
        expected[token] = x - f * output.count(token) - presence * (token in output)
    return expected


@pytest.mark.parametrize("values", [(1.3, 0.25, 0.5), (0.7, 0, 0), (1, -0.5, 0), (1, 0, 1.5)])
def test_each_row_is_as_if_its_drafts_had_been_emitted(values: tuple[float, float, float]) -> None:
    prompt, output, drafts = [3, 3, 5, 0], [5, 1, 1], [1, 7, 3, 7]
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = logits.float().double()
    penalties = Penalties(*(torch.tensor([x], dtype=torch.float64) for x in values))
    out = penalised(logits, prompt, output, penalties, drafts)
    for i in range(5):
        expected = by_definition(logits[i], prompt, [*output, *drafts[:i]], penalties)
        torch.testing.assert_close(out[i], expected, rtol=1e-15, atol=1e-15)


def test_rows_of_a_tree_have_the_tokens_of_their_path() -> None:
    logits = torch.zeros(4, 5)
    candidates = torch.tensor([[0, 1, 2, 3]])
    occurrences = Occurrences(torch.tensor([[0]]), torch.tensor([[1]], dtype=torch.int32))
    for parents, paths in (
        ([-1, 0, 0, 2], ["0", "01", "02", "023"]),
        ([-1, 0, 1, 1], ["0", "01", "012", "013"]),
        ([7, 1, -9, 9], ["0", "01", "02", "03"]),  # no nodes before their children
    ):
        links = torch.tensor([parents], dtype=torch.int32)
        out = apply_penalties(
            logits, torch.tensor([0, 4], dtype=torch.int32), candidates, occurrences,
            penalties_of(1, 1, 0), links,
        )  # fmt: skip
        found = ["".join(str(t) for t in range(5) if row[t] < 0) for row in out]
        assert found == paths


@pytest.mark.parametrize("repetition", [0.0, -2.0, NAN, INF])
def test_numbers_that_are_no_penalties(repetition: float) -> None:
    logits = torch.randn(1, 9)
    for penalties in (penalties_of(repetition, NAN, INF), penalties_of(1, -INF, NAN)):
        assert torch.equal(penalised(logits, [1, 2], [3], penalties, []), logits)


def test_logits_that_are_no_numbers() -> None:
    logits = torch.tensor([[NAN, -INF, INF, 1.0]])
    out = penalised(logits, [0, 1], [1, 2], penalties_of(2, 1, 1), [])
    assert torch.equal(out.nan_to_num(nan=77), logits.nan_to_num(nan=77))


def test_lists_count_the_prompt_and_the_output_apart() -> None:
    lists = count_tokens([torch.tensor([4, 4, 2])], [torch.tensor([2, 2, 9])], 5)
    assert lists.ids.tolist() == [[2, 4, 9, -1, -1]]
    assert lists.counts.tolist() == [[2, 0, 1, 0, 0]]
    with pytest.raises(ValueError, match="at most max_tokens = 2 different tokens, got 3"):
        count_tokens([torch.tensor([4, 4, 2])], [torch.tensor([2, 2, 9])], 2)


def test_lists_that_grow_are_those_of_the_whole_output() -> None:
    g = torch.Generator().manual_seed(0)
    prompts = [torch.randint(8, (n,), generator=g) for n in (3, 1, 5)]
    outputs = [torch.randint(8, (1,), generator=g) for _ in range(3)]
    lists = count_tokens(prompts, outputs, 8)
    for _ in range(6):
        emitted = torch.full((3, 4), -1)
        for b in range(3):
            new = torch.randint(8, (int(torch.randint(5, (), generator=g)),), generator=g)
            emitted[b, : len(new)] = new
            outputs[b] = torch.cat([outputs[b], new])
        add_tokens(lists, emitted)
    expected = count_tokens(prompts, outputs, 8)
    for b in range(3):
        found, wanted = (
            {i: c for i, c in zip(x.ids[b].tolist(), x.counts[b].tolist(), strict=True) if i >= 0}
            for x in (lists, expected)
        )
        assert found == wanted
        assert sum(wanted.values()) == len(outputs[b])


def test_a_list_that_is_full_does_not_count_new_tokens() -> None:
    lists = Occurrences(torch.tensor([[1, 2]]), torch.tensor([[0, 3]], dtype=torch.int32))
    add_tokens(lists, torch.tensor([[7, 2, 1, -1, 7]]))
    assert lists.ids.tolist() == [[1, 2]]
    assert lists.counts.tolist() == [[1, 4]]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("is_tree", [False, True], ids=["chain", "tree"])
def test_nothing_is_lost(is_tree: bool, temperature: float) -> None:
    """Step by step with drafts, the penalised tokens that come without any."""
    V, length, key, t = 6, 25, torch.tensor([99]), torch.tensor([temperature])
    g = torch.Generator().manual_seed(0)
    table = 2 * torch.randn(V, V, generator=g)
    shape = topology([(0,), (1,), (0, 0), (1, 0), (0, 0, 0)] if is_tree else [(0,), (0, 0)])

    def generate(drafts: bool, penalties: Penalties) -> tuple[list[int], int]:
        text, steps = [0], 0
        lists = count_tokens([torch.tensor([2])], [torch.tensor(text)], V)
        while len(text) < length:
            entries = torch.stack([torch.randperm(V, generator=g)[:3] for _ in range(3)])
            root, position = torch.tensor([text[-1]]), torch.tensor([len(text)])
            tree = build_tree(
                entries, torch.zeros(3, 3), torch.zeros(3), root, position,
                len(shape.parents) if drafts else 1, V, shape if drafts else None,
            )  # fmt: skip
            logits = table[tree.candidates[0].clamp(min=0)].clone()
            rows = torch.tensor([0, len(logits)], dtype=torch.int32)
            ops.apply_penalties(logits, rows, tree.candidates, lists, penalties, tree)
            sampling = ops.Sampling(t, key, position)
            out = ops.verify(logits, rows, tree.candidates, root, sampling, tree=tree)
            add_tokens(lists, out.tokens)
            text += [x for x in out.tokens[0].tolist() if x >= 0]
            steps += 1
        return text[:length], steps

    some, none = penalties_of(1.4, 0.3, 0.4), penalties_of(1, 0, 0)
    plain, steps = generate(False, some)
    speculative, fewer_steps = generate(True, some)
    assert speculative == plain
    assert fewer_steps < steps
    assert generate(False, none)[0] != plain
