"""Our verification as vLLM's runners call it; `tests/vllm` has the real engine."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from exact_laws import chi_square
from p_eagle_cuda.vllm_plugin import verification
from p_eagle_cuda.vllm_plugin.verification import (
    Workspace,
    rejection_sample_v1,
    rejection_sample_v2,
    take_over_v1,
    verification_refusal,
    verifying_v2,
)

V, K = 5, 3
Step = list[tuple[list[int], Tensor, int]]  # of each request: drafts, logits [drafts + 1, V], bonus


def make_step(num_drafts: list[int], seed: int = 0) -> Step:
    """Drafts of which many are the target's best, and some are there to be rejected."""
    torch.manual_seed(seed)
    step = []
    for n in num_drafts:
        logits = torch.randn(n + 1, V)
        best, other = logits[:-1].argmax(dim=-1), torch.randint(-1, V, (n,))
        drafts = torch.where(torch.rand(n) < 0.7, best, other)
        step.append((drafts.tolist(), logits, int(logits[-1].argmax())))
    return step


def run_v1(step: Step, temperature: list[float], generators: dict[int, Any]) -> list[list[int]]:
    """As the V1 runner does, which has drawn the bonus already."""
    counts = [len(drafts) for drafts, _, _ in step]
    t = torch.tensor(temperature)
    metadata = SimpleNamespace(
        all_greedy=not t.any(), temperature=t if t.any() else None, generators=generators
    )
    rows = [logits[:-1] / (t[i] or 1) for i, (_, logits, _) in enumerate(step)]
    found = rejection_sample_v1(
        torch.tensor([x for drafts, _, _ in step for x in drafts], dtype=torch.int32), counts,
        max(counts), torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32), None,
        torch.cat(rows), torch.tensor([[bonus] for *_, bonus in step]), metadata,
        synthetic_mode=False, workspace=Workspace(),
    )  # fmt: skip
    assert found.dtype == torch.int32
    assert found.shape == (len(step), max(counts) + 1)
    return [[x for x in row if x != -1] for row in found.tolist()]


def run_v2(step: Step, temperature: list[float], seeds: list[int]) -> list[list[int]]:
    """As the V2 runner does, whose requests have places in larger tables."""
    B, counts = len(step), [len(drafts) + 1 for drafts, _, _ in step]
    places = torch.randperm(B + 4)[:B]
    tables = torch.full((B + 4,), 9.0), torch.full((B + 4,), 77)
    tables[0][places], tables[1][places] = torch.tensor(temperature), torch.tensor(seeds)
    rows = torch.cat([x / (temperature[i] or 1) for i, (_, x, _) in enumerate(step)])
    wide = torch.full((len(rows), V + 3), 99.0)  # a padded vocabulary, of which a part is passed
    wide[:, :V] = rows
    tokens, num_tokens = rejection_sample_v2(
        wide[:, :V], None,
        torch.tensor([x for drafts, _, _ in step for x in (0, *drafts)], dtype=torch.int32),
        torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        torch.cat([torch.arange(n) + 100 for n in counts]), places.int(), torch.empty(0),
        torch.empty(0), tables[0], tables[1], K, None, use_fp64=False,
        workspace=Workspace(),
    )  # fmt: skip
    assert tokens.dtype == torch.int64
    assert tokens.shape == (B, K + 1)
    assert num_tokens.dtype == torch.int32
    found = [row[:n] for row, n in zip(tokens.tolist(), num_tokens.tolist(), strict=True)]
    assert all(x >= 0 for row in found for x in row)
    return found


def greedy(drafts: list[int], logits: Tensor, bonus: int) -> list[int]:
    """What vLLM emits at temperature 0."""
    tokens = []
    for draft, best in zip(drafts, logits.argmax(dim=-1).tolist(), strict=False):
        tokens.append(best)
        if draft != best:
            return tokens
    return [*tokens, bonus]


def exact_law(drafts: list[int], logits: Tensor, bonus: int | None) -> dict[tuple[int, ...], float]:
    """The law of what standard rejection emits: min(1, p / q), then the residual; q is one."""
    law: dict[tuple[int, ...], float] = {}
    reached, before = 1.0, ()
    for draft, p in zip(drafts, logits.double().softmax(dim=-1).tolist(), strict=False):
        accepted = p[draft] if draft >= 0 else 0.0
        for token in range(V):
            if token != draft:
                residual = p[token] / (1 - accepted)
                law[(*before, token)] = reached * (1 - accepted) * residual
        reached, before = reached * accepted, (*before, draft)
    last = logits[-1].double().softmax(dim=-1).tolist()
    for token, p in enumerate(last) if bonus is None else ((bonus, 1.0),):
        law[(*before, token)] = reached * p
    return law


def assert_law(found: list[list[int]], law: dict[tuple[int, ...], float]) -> None:
    counts = Counter(map(tuple, found))
    assert set(counts) <= set(law), "an outcome that there is not"
    # What is rare is put together.
    common = [x for x, p in law.items() if p * len(found) >= 8]
    observed, expected = [counts[x] for x in common], [law[x] for x in common]
    rest = 1 - sum(expected)
    if rest * len(found) > 1:
        observed, expected = [*observed, len(found) - sum(observed)], [*expected, rest]
    freedom = len(expected) - 1
    # By Wilson and Hilferty the cube root is about normal; 3.1 is passed once in a thousand times.
    distance = chi_square(torch.tensor(observed), torch.tensor(expected)) / freedom
    spread = 2 / (9 * freedom)
    assert distance ** (1 / 3) < 1 - spread + 3.1 * spread**0.5


@pytest.mark.parametrize("seed", range(20))
def test_greedy_is_vllms(seed: int) -> None:
    """Requests of all lengths; in V1 also some without drafts, in V2 the root has a row."""
    step = make_step([0, 3, 1, 2, 3, 0, 3, 2], seed)
    expected = [greedy(*request) for request in step]
    assert run_v1(step, [0.0] * 8, {}) == expected
    assert run_v1([step[0], step[5]], [0.0] * 2, {}) == [expected[0], expected[5]]
    assert run_v2(step, [0.0] * 8, [1] * 8) == expected


@pytest.mark.parametrize("drafts", [[0, 1, 2], [3, -1, 3]])
def test_sampling_has_the_law_of_rejection(drafts: list[int]) -> None:
    """Next to greedy requests, which get what they always do."""
    torch.manual_seed(1)
    logits, B, T = 0.6 * torch.randn(4, V), 1500, 0.7
    step, temperature = [], []
    for i in range(B):
        step += [(drafts, logits, 4)] + ([(drafts, logits, 4)] if i % 100 == 0 else [])
        temperature += [T] + ([0.0] if i % 100 == 0 else [])
    for found, bonus in (
        (run_v1(step, temperature, {}), 4),
        (run_v2(step, temperature, list(range(len(step)))), None),
    ):
        sampled = [x for x, t in zip(found, temperature, strict=True) if t > 0]
        assert_law(sampled, exact_law(drafts, logits / T, bonus))
        expected = greedy(drafts, logits, 4 if bonus is not None else int(logits[-1].argmax()))
        assert all(x == expected for x, t in zip(found, temperature, strict=True) if t == 0)


def test_tokens_of_v1_with_a_seed_are_of_its_generator_alone() -> None:
    step = make_step([3, 2, 0, 3])
    run = lambda seed, rest: run_v1(  # noqa: E731
        [step[0], *rest], [1.0] * (1 + len(rest)), {0: torch.Generator().manual_seed(seed)}
    )[0]
    alone = [run(seed, []) for seed in range(25)]
    assert alone == [run(seed, step[1:]) for seed in range(25)]
    assert len(set(map(tuple, alone))) > 5, "the seed makes no difference"
    # One step after another, the tokens differ; without drafts there is nothing to draw.
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    run_v1([step[2], step[0]], [1.0, 1.0], {0: generator})
    assert torch.equal(generator.get_state(), before)
    steps = [run_v1(step[:1], [1.0], {0: generator})[0] for _ in range(20)]
    assert len(set(map(tuple, steps))) > 3
    # What has no seed is drawn from the generator of the process.
    drawn = [run_v1(step[:1], [1.0], {})[0] for _ in range(20)]
    assert len(set(map(tuple, drawn))) > 3


def test_tokens_of_v2_are_of_seed_and_position() -> None:
    step = make_step([3, 2, 0, 3])
    alone = [run_v2(step[:1], [1.0], [seed])[0] for seed in range(25)]
    assert alone == [run_v2(step, [1.0, 0.5, 2.0, 0.0], [seed, 1, 2, 3])[0] for seed in range(25)]
    assert len(set(map(tuple, alone))) > 5, "the seed makes no difference"


# ---- What is taken over --------------------------------------------------------------------------


def config_of(**changes: Any) -> Any:
    speculative = {
        "rejection_sample_method": "standard", "draft_sample_method": "greedy",
        "num_speculative_tokens": 5, **changes,
    }  # fmt: skip
    return SimpleNamespace(
        speculative_config=SimpleNamespace(**speculative), additional_config={},
        watermark_config=speculative.pop("watermark_config", None),
    )  # fmt: skip


def test_nothing_is_refused_that_works() -> None:
    assert verification_refusal(config_of(), "cpu", "0.33.0") is None
    assert verification_refusal(config_of(num_speculative_tokens=63), "cpu", "0.33.1") is None


@pytest.mark.parametrize(
    ("changes", "version", "reason"),
    [
        ({"rejection_sample_method": "synthetic"}, "0.33.0", 'rejection_sample_method is "synth'),
        ({"rejection_sample_method": "block"}, "0.33.0", 'rejection_sample_method is "block"'),
        ({"draft_sample_method": "probabilistic"}, "0.33.0", "for drafts that are not drawn"),
        ({"watermark_config": object()}, "0.33.0", "watermarked"),
        ({"num_speculative_tokens": 64}, "0.33.0", "is 64, expected at most 63"),
        ({}, "0.32.0", "expected vLLM 0.33 to 0.33, found 0.32.0"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], version: str, reason: str) -> None:
    found = verification_refusal(config_of(**changes), "cpu", version)
    assert found is not None
    assert reason in found


def test_a_build_without_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = {"verify": {"cpu": True, "cuda": False}}
    monkeypatch.setattr(verification.ops, "implementations", lambda: built)
    assert verification_refusal(config_of(), "cpu", "0.33.0") is None
    found = verification_refusal(config_of(), "cuda", "0.33.0")
    assert found == "this build has no kernel for verify on cuda"


def rejection_sample(*_: int) -> str:
    return "theirs"


class Sampler:
    """Calls what vLLM's samplers call."""

    def forward(self, first: int = 7) -> str:
        return rejection_sample(first)

    _verify = forward


@pytest.mark.parametrize("runner", ["V1", "V2"])
@pytest.mark.parametrize(
    ("asked", "changes", "expected", "told"),
    [
        ("p_eagle_cuda", {}, "ours 7", "p_eagle_cuda verifies: greedy and sampled requests"),
        ("vllm", {}, "theirs", None),
        ("p_eagle_cuda", {"rejection_sample_method": "fly"}, "theirs", 'is "fly"'),
    ],
)
def test_what_is_taken_over(
    runner: str, asked: str, changes: dict[str, Any], expected: str, told: str | None,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Only of the sampler that was asked for, and a line tells."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.33.0"))
    name = f"rejection_sample_{runner.lower()}"
    monkeypatch.setattr(verification, name, lambda first, **_: f"ours {first}")
    config = config_of(**changes)
    config.additional_config = {"p_eagle_cuda": {"verification": asked}}
    with caplog.at_level(logging.INFO, "vllm.p_eagle_cuda"):
        if runner == "V1":
            sampler = Sampler()
            take_over_v1(config, "cpu", sampler)
            assert sampler.forward() == expected
        else:
            assert verifying_v2(config, "cpu", Sampler)()._verify() == expected
    assert Sampler().forward() == Sampler()._verify() == "theirs"
    assert len(caplog.records) == (told is not None)
    assert told is None or told in caplog.text


def test_a_sampler_that_is_not_known_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.33.0"))
    config = config_of()
    config.additional_config = {"p_eagle_cuda": {"verification": "p_eagle_cuda"}}
    other = type("Other", (), {"_verify": lambda self: "theirs"})
    assert verifying_v2(config, "cpu", other) is other
    assert "vLLM's own code verifies: vLLM 0.33.0 has no such seam" in caplog.text


def test_a_workspace_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows in steps, so that a batch that is a little larger takes the same."""
    made: list[tuple[int, int]] = []

    def make(device: torch.device, num_rows: int, vocab_size: int) -> torch.Tensor:
        made.append((num_rows, vocab_size))
        return torch.zeros(num_rows, device=device)

    monkeypatch.setattr(verification.ops, "verify_workspace", make)
    workspace = Workspace()
    first = workspace.of(torch.zeros(5, V))
    assert workspace.of(torch.zeros(8, V)) is workspace.of(torch.zeros(1, V)) is first
    assert workspace.of(torch.zeros(9, V)) is not first
    assert made == [(8, V), (16, V)]
