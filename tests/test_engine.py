"""Speculative decoding from end to end on toy models: the output is the target's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from checkpoints import write_drafter, write_target
from p_eagle_cuda.draft_length import DraftLengthPolicy
from p_eagle_cuda.drafter import Drafter, Drafts
from p_eagle_cuda.engine import PREFILL_CHUNK, SpeculativeEngine, max_target_rows, num_blocks
from p_eagle_cuda.errors import PromptError
from p_eagle_cuda.statistics import acceptance
from p_eagle_cuda.target import Target
from toy_engine import LENGTH, PROMPTS, TAPS, K, make_drafter, plain

pytest_plugins = ["toy_engine_fixtures"]


class Oracle(Drafter):
    """Drafts what the target will say to one request, except at positions where it is told to err.

    A random drafter is nearly always wrong; this one takes every acceptance path.
    """

    text: list[int]
    wrong: set[int]
    most_rows: int = 0

    @classmethod
    def of(cls, drafter: Drafter, text: list[int], wrong: set[int]) -> Oracle:
        drafter.__class__ = cls
        assert isinstance(drafter, cls)
        drafter.text, drafter.wrong = text, wrong
        return drafter

    def propose(
        self,
        target_tokens: Tensor,
        target_positions: Tensor,
        taps: Sequence[Tensor],
        query_start: Tensor,
        num_rejected: Tensor,
        next_tokens: Tensor,
        block_table: Tensor,
        *,
        k: int | None = None,
    ) -> Drafts:
        assert k is None
        drafts = super().propose(
            target_tokens, target_positions, taps, query_start, num_rejected, next_tokens,
            block_table,
        )  # fmt: skip
        self.most_rows = max(self.most_rows, len(target_tokens))
        num_valid = len(target_tokens) - int(num_rejected)
        start = int(target_positions[0])
        assert target_tokens[:num_valid].tolist() == self.text[start : start + num_valid]
        assert int(next_tokens) == self.text[start + num_valid]
        first = start + num_valid + 1
        right = [self.text[p] if p < len(self.text) else 0 for p in range(first, first + K)]
        said = [t + (first + i in self.wrong) for i, t in enumerate(right)]
        ids = torch.tensor([said])
        return Drafts(ids, ids[..., None], *drafts[2:])


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("lanes", [1, 3, 5])
def test_output_is_the_targets_own(
    target: Target, folders: tuple[Path, Path], temperature: float, lanes: int
) -> None:
    """Requests join and leave lanes, prompts of all lengths mix with verification."""
    engine = SpeculativeEngine(
        target, make_drafter(folders[1], lanes), max_requests=lanes, max_length=LENGTH
    )
    drafted = engine.generate(PROMPTS, 40, temperature=temperature, seed=4)
    expected = plain(target, PROMPTS, 40, temperature=temperature, seed=4)
    assert [c.token_ids for c in drafted] == expected
    assert all(len(ids) == 40 for ids in expected)


def test_a_policy_decides_how_many_tokens_are_drafted(
    target: Target, folders: tuple[Path, Path]
) -> None:
    """It hears of every verification; the output does not change."""

    class OneThenTwo(DraftLengthPolicy):
        def __init__(self) -> None:
            super().__init__(K)
            self.asked: list[int] = []
            self.heard: list[tuple[int, int]] = []

        def choose(self, batch_size: int) -> int:
            self.asked.append(batch_size)
            return 1 + len(self.asked) % 2

        def observe(self, num_drafts: int, num_accepted: int) -> None:
            self.heard.append((num_drafts, num_accepted))

    policy = OneThenTwo()
    engine = SpeculativeEngine(
        target, make_drafter(folders[1], 2), max_requests=2, max_length=LENGTH,
        draft_length=policy,
    )  # fmt: skip
    completions = engine.generate(PROMPTS, 40)
    assert [c.token_ids for c in completions] == plain(target, PROMPTS, 40)
    assert set(policy.asked) == {1, 2}
    steps = [(s.num_drafts, s.num_accepted) for c in completions for s in c.steps]
    assert sorted(policy.heard) == sorted(steps)
    assert {drafts for drafts, _ in steps} == {0, 1, 2}


def test_seed_changes_the_sample(target: Target) -> None:
    one, same, other = (
        plain(target, PROMPTS[:1], 30, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize("share_wrong", [0.0, 0.3, 1.0])
def test_each_step_accepts_up_to_the_first_wrong_draft(
    target: Target, folders: tuple[Path, Path], share_wrong: float
) -> None:
    prompt = PROMPTS[2]
    text = prompt + plain(target, [prompt], 70)[0]
    wrong = {p for p in range(len(text)) if float(torch.rand(())) < share_wrong}
    drafter = Oracle.of(make_drafter(folders[1], 1), text, wrong)
    engine = SpeculativeEngine(target, drafter, max_requests=1, max_length=LENGTH)
    (completion,) = engine.generate([prompt], 60)
    assert completion.token_ids == text[len(prompt) : len(prompt) + 60]

    accepted, position = [], len(prompt) + 1
    while position < len(prompt) + 60:
        drafts = range(position, position + K)
        accepted.append(next((i for i, p in enumerate(drafts) if p in wrong), K))
        position += accepted[-1] + 1
    assert [step.num_accepted for step in completion.steps[1:]] == accepted
    if share_wrong == 0:
        assert acceptance(completion.steps, K).length == K + 1


def test_long_prompts_come_in_chunks(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """A prompt longer than a chunk, beside a short one that is already being verified."""
    length = PREFILL_CHUNK + 100
    write_target(tmp_path / "target", max_position_embeddings=1024)
    write_drafter(tmp_path / "drafter", max_position_embeddings=1024)
    long_target = Target.from_pretrained(tmp_path / "target", tap_layer_ids=TAPS)
    prompts = [[4, 5], torch.randint(50, (PREFILL_CHUNK + 60,)).tolist()]
    outputs = [
        [c.token_ids for c in engine.generate(prompts, 20)]
        for engine in (
            SpeculativeEngine(
                long_target,
                make_drafter(tmp_path / "drafter", 2, length=length),
                max_requests=2,
                max_length=length,
            ),
            SpeculativeEngine(long_target, None, max_requests=1, max_length=length),
        )
    ]
    assert outputs[0] == outputs[1]


def test_each_chunk_reaches_the_drafter(tmp_path: Path) -> None:
    """Rows, positions and the token after a chunk; the oracle checks them."""
    write_target(tmp_path / "target", max_position_embeddings=1024)
    write_drafter(tmp_path / "drafter", max_position_embeddings=1024)
    target = Target.from_pretrained(tmp_path / "target", tap_layer_ids=TAPS)
    prompt = torch.randint(50, (PREFILL_CHUNK + 60,)).tolist()
    length = len(prompt) + 20
    alone = SpeculativeEngine(target, None, max_requests=1, max_length=length)
    text = prompt + alone.generate([prompt], 20)[0].token_ids
    drafter = Oracle.of(make_drafter(tmp_path / "drafter", 1, length=length), text, set())
    engine = SpeculativeEngine(target, drafter, max_requests=1, max_length=length)
    assert engine.generate([prompt], 16)[0].token_ids == text[len(prompt) : -4]
    assert drafter.most_rows == PREFILL_CHUNK


def test_up_to_the_last_block(target: Target, folders: tuple[Path, Path]) -> None:
    """Drafts past the last token that is kept still have a place in the cache."""
    outputs = [
        SpeculativeEngine(target, drafter, max_requests=1, max_length=64).generate([[7] * 30], 34)
        for drafter in (make_drafter(folders[1], 1, length=64), None)
    ]
    assert outputs[0][0].token_ids == outputs[1][0].token_ids
    assert len(outputs[0][0].token_ids) == 34


def test_stop_token_ends_a_request_inside_a_step(
    target: Target, folders: tuple[Path, Path]
) -> None:
    expected = plain(target, [PROMPTS[0]], 40)[0]
    stop = expected[10]
    end = expected.index(stop) + 1
    drafter = Oracle.of(make_drafter(folders[1], 1), PROMPTS[0] + expected, set())
    engine = SpeculativeEngine(target, drafter, max_requests=1, max_length=LENGTH)
    (completion,) = engine.generate([PROMPTS[0]], 40, stop=[stop])
    assert completion.token_ids == expected[:end]
    assert completion.finish_reason == "stop"


def test_up_to_the_last_position(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A request may fill the context to its last position; drafts past it are not verified."""
    write_target(tmp_path, max_position_embeddings=64)
    target = Target.from_pretrained(tmp_path, tap_layer_ids=TAPS)
    prompt = list(range(30))
    drafter = make_drafter(folders[1], 1, length=64)
    engine = SpeculativeEngine(target, drafter, max_requests=1, max_length=64)
    (completion,) = engine.generate([prompt], 34)
    engine = SpeculativeEngine(target, None, max_requests=1, max_length=64)
    assert completion.token_ids == engine.generate([prompt], 34)[0].token_ids
    assert completion.finish_reason == "length"
    room = [64 - len(prompt) - step.offset for step in completion.steps[1:]]
    assert [step.num_drafts for step in completion.steps[1:]] == [min(K, n) for n in room]
    assert min(room) < K


def test_a_drafter_of_a_shorter_context(target: Target, folders: tuple[Path, Path]) -> None:
    """A request goes on past the drafter's last position, without drafts; the others with them."""
    limit, lanes = 50, 2
    drafter = Drafter.from_pretrained(
        folders[1], num_speculative_tokens=K, max_requests=lanes,
        max_target_rows=max_target_rows(lanes, K), num_blocks=num_blocks(lanes, LENGTH, K, 16),
        max_position=limit,
    )  # fmt: skip
    engine = SpeculativeEngine(target, drafter, max_requests=lanes, max_length=LENGTH)
    prompts = [PROMPTS[2], PROMPTS[0]]
    completions = engine.generate(prompts, 30)
    assert [c.token_ids for c in completions] == plain(target, prompts, 30)
    for prompt, completion in zip(prompts, completions, strict=True):
        # The last row before a draft's own stands one before the last known token.
        last_rows = [len(prompt) + step.offset - 2 for step in completion.steps[1:]]
        expected = [min(max(limit - last, 0), K) for last in last_rows]
        assert [step.num_drafts for step in completion.steps[1:]] == expected
    assert expected == [K] * len(expected), "the short request never comes there"
    assert completions[0].steps[-1].num_drafts == 0


def test_callbacks_give_every_token_once(target: Target, folders: tuple[Path, Path]) -> None:
    engine = SpeculativeEngine(
        target, make_drafter(folders[1], 2), max_requests=2, max_length=LENGTH
    )
    streamed: dict[int, list[int]] = {i: [] for i in range(len(PROMPTS))}
    finished: list[int] = []
    completions = engine.generate(
        PROMPTS, 25, on_tokens=lambda i, ids: streamed[i].extend(ids), on_finish=finished.append
    )
    assert [streamed[i] for i in range(len(PROMPTS))] == [c.token_ids for c in completions]
    assert sorted(finished) == list(range(len(PROMPTS)))


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([[1], []], 5, "prompt 1 is empty"),
        ([[50]], 5, "outside the target's vocabulary of 50"),
        ([[-1]], 5, "outside the target's vocabulary of 50"),
        (
            [[1] * 100],
            21,
            "prompt 0 has 100 tokens; with 21 new ones that exceeds the context of 120",
        ),
        ([[1]], 0, "max_tokens must be at least 1, got 0"),
    ],
)
def test_bad_prompts(
    target: Target, prompts: list[list[int]], max_tokens: int, message: str
) -> None:
    engine = SpeculativeEngine(target, None, max_requests=1, max_length=LENGTH)
    with pytest.raises(PromptError, match=message):
        engine.generate(prompts, max_tokens)
