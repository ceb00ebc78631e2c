"""Whole drafter passes on the emulator: `Drafter.propose` as users call it, kernel by kernel."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints import write_drafter
from drafter_passes import PROMPTS, SIZES, K, padded, passes, propose, reference_pass
from drafter_variants import VARIANTS
from numerics import assert_as_accurate_as_torch
from sim.emulated_drafter import emulated, give
from sim.emulator import FOUR, Session, Settings

BF16 = torch.bfloat16
# Columns of every weight must be multiples of 64.
EVEN_SIZES = {"hidden_size": 128, "intermediate_size": 192, "target_hidden_size": 64}

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)


def give_pass(session: Session, step: Any) -> None:
    inputs = {name: value for name, value in vars(step).items() if name != "num_valid"}
    give(session, **inputs)


def assert_right(
    path: Path, steps: list[Any], drafts: Any, max_position: int | None = None
) -> Tensor:
    """The last pass is as accurate as the reference in the working dtype.

    Returns which drafts there are: ``[B, K]`` bool.
    """
    _, logits, lse = reference_pass(path, steps, torch.float64, torch.float64, max_position)
    _, unfused, unfused_lse = reference_pass(path, steps, BF16, BF16, max_position)
    there = lse > -torch.inf
    got = drafts.top_logits.flatten(0, 1), drafts.lse.flatten()
    assert_as_accurate_as_torch("logits", got[0][there], logits[there], unfused[there])
    assert_as_accurate_as_torch("lse", got[1][there], lse[there], unfused_lse[there])
    assert (drafts.token_ids.flatten()[~there] == -1).all()
    assert (got[1][~there] == -torch.inf).all()
    return there.view(drafts.lse.shape)


@every_setting
def test_a_prompt_and_two_verifications(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_drafter(tmp_path, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, **SIZES}
    with emulated(monkeypatch, settings, **options) as (drafter, session):
        steps = passes(drafter.config, BF16)
        for step in steps:
            give_pass(session, step)
            drafts = propose(drafter, step)
            session.check()
        assert_right(tmp_path, steps, drafts)
        assert not drafter._workspace[:4096].any(), "left counters behind"
        assert drafter._attention.work[3] == 0, "left arrivals behind"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_checkpoint(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_drafter(tmp_path, **EVEN_SIZES, **VARIANTS[variant])
    options = {"path": tmp_path, "dtype": BF16, **SIZES}
    with emulated(monkeypatch, FOUR["random"], **options) as (drafter, session):
        steps = passes(drafter.config, BF16, num_steps=1)
        for step in steps:
            give_pass(session, step)
            drafts = propose(drafter, step)
            session.check()
        assert_right(tmp_path, steps, drafts)


def test_launches_of_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four layers: 24 launches, 20 of them outside of attention, and all of them overlap."""
    write_drafter(tmp_path, num_hidden_layers=4, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, **SIZES}
    with emulated(monkeypatch, FOUR["random"], **options) as (drafter, session):
        for step in passes(drafter.config, BF16, num_steps=1):
            num_launches = len(session.launches)
            give_pass(session, step)
            propose(drafter, step)
            session.check()
    launches = session.launches[num_launches:]
    kernels = [launch.kernel for launch in launches]
    assert kernels.count("paged_attention_kernel") == 4
    assert len(kernels) == 24, kernels
    assert all(launch.overlaps_previous for launch in launches)


@every_setting
def test_a_captured_pass_is_replayed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph serves every acceptance pattern, with padding: only what the inputs hold changes.

    Before the last pass a request ends.
    """
    write_drafter(tmp_path, **EVEN_SIZES)
    B = len(PROMPTS)
    options = {"path": tmp_path, "dtype": BF16, **SIZES, "max_requests": B + 1}
    with emulated(monkeypatch, settings, **options) as (drafter, session):
        prompt, *steps = passes(drafter.config, BF16, num_steps=4)
        bucket = B + 1, B * (K + 1) + 1  # requests, target rows
        last = padded(steps.pop(), *bucket, absent=[1])
        steps = [*(padded(step, *bucket) for step in steps), last]
        give_pass(session, prompt)
        propose(drafter, prompt)
        session.check()
        static = replace(steps[0], **{
            name: [t.clone() for t in value] if isinstance(value, list) else value.clone()
            for name, value in asdict(steps[0]).items()
            if name != "num_valid"
        })  # fmt: skip
        give_pass(session, static)
        with session.capture() as graph:
            drafts = propose(drafter, static)
        done = [prompt]
        assert len({tuple(step.num_rejected.tolist()) for step in steps}) > 1
        for step in steps:
            for name, value in vars(static).items():
                new = getattr(step, name)
                if isinstance(value, torch.Tensor):
                    value.copy_(new)
                elif name == "taps":
                    for tap, new_tap in zip(value, new, strict=True):
                        tap.copy_(new_tap)
            graph.replay()
            session.check()
            done.append(step)
            there = assert_right(tmp_path, done, drafts)
            assert there.all(1).tolist() == [True, step is not last, True, False]
            assert there.any(1).tolist() == there.all(1).tolist()


def test_a_request_comes_to_the_end_of_the_rope_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no drafts from there on; the batch goes on."""
    write_drafter(tmp_path, **EVEN_SIZES)
    max_position = PROMPTS[2] + 2
    options = {"path": tmp_path, "dtype": BF16, "max_position": max_position, **SIZES}
    with emulated(monkeypatch, FOUR["in-order-race"], **options) as (drafter, session):
        steps = passes(drafter.config, BF16)
        for i, step in enumerate(steps):
            give_pass(session, step)
            drafts = propose(drafter, step)
            session.check()
            there = assert_right(tmp_path, steps[: i + 1], drafts, max_position)
            assert there[:2].all()
            num_drafts = min(max(max_position - (step.num_valid[2] - 1), 0), K)
            assert there[2].tolist() == [True] * num_drafts + [False] * (K - num_drafts)
    assert num_drafts == 0
