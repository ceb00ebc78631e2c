"""Whole drafter passes on the emulator: `Drafter.propose` as users call it, kernel by kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import write_drafter
from drafter_passes import PROMPTS, SIZES, TOP_K, K, passes, propose, reference_pass
from drafter_variants import VARIANTS
from numerics import assert_as_accurate_as_torch
from p_eagle_cuda import Drafter
from p_eagle_cuda.cuda_graphs import PassShape
from pass_cases import Pass
from sim.emulated_drafter import emulated, give
from sim.emulator import FOUR, Session, Settings

BF16 = torch.bfloat16
# Columns of every weight must be multiples of 64.
EVEN_SIZES = {"hidden_size": 128, "intermediate_size": 192, "target_hidden_size": 64}
ATTENTION = {"plan_attention_kernel", "paged_attention_kernel"}

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)


def give_pass(session: Session, step: Any) -> None:
    inputs = {name: value for name, value in vars(step).items() if name != "num_valid"}
    give(session, **inputs)


def assert_right(path: Path, steps: list[Any], drafts: Any) -> None:
    """The last pass is as accurate as the reference in the working dtype."""
    _, logits, lse = reference_pass(path, steps, torch.float64, torch.float64)
    _, unfused, unfused_lse = reference_pass(path, steps, BF16, BF16)
    shape = (len(PROMPTS), K, TOP_K)
    assert_as_accurate_as_torch(
        "logits", drafts.top_logits, logits.view(shape), unfused.view(shape)
    )
    assert_as_accurate_as_torch("lse", drafts.lse, lse.view(shape[:2]), unfused_lse.view(shape[:2]))


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
        assert not drafter._buffers.linear_workspace[:4096].any(), "left counters behind"


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
    """Four layers: at most 20 launches outside of attention, and all of them overlap."""
    write_drafter(tmp_path, num_hidden_layers=4, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, **SIZES}
    with emulated(monkeypatch, FOUR["random"], **options) as (drafter, session):
        for step in passes(drafter.config, BF16, num_steps=1):
            num_launches = len(session.launches)
            give_pass(session, step)
            propose(drafter, step)
            session.check()
    launches = session.launches[num_launches:]
    others = [launch.kernel for launch in launches if launch.kernel not in ATTENTION]
    assert len(others) <= 20, others
    assert len(launches) == len(others) + 1 + 4  # the plan of attention, and each layer's
    assert all(launch.overlaps_previous for launch in launches)


@every_setting
def test_a_graph_serves_every_acceptance_pattern(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded once, replayed with other counts, lengths and blocks; only prompts are launched."""
    write_drafter(tmp_path, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, **SIZES}
    with emulated(monkeypatch, settings, graphs=True, **options) as (drafter, session):
        steps = passes(drafter.config, BF16, num_steps=2)
        assert steps[1].num_rejected.tolist() != steps[2].num_rejected.tolist()
        give_pass(session, steps[0])
        for i, step in enumerate(steps):
            num_launches = len(session.launches)
            drafts = propose(drafter, step)
            session.check()
            if i > 0:
                assert_right(tmp_path, steps[: i + 1], drafts)
        assert len(session.launches) - num_launches == launches_of_a_pass(drafter)
        assert drafter._graphs.shapes == [PassShape(len(PROMPTS), K)]


def test_graphs_and_padding_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without graphs, the second step with fewer requests than it is padded to."""
    write_drafter(tmp_path, num_hidden_layers=1, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, "batch_sizes": (len(PROMPTS),), **SIZES}
    results = []
    for graphs in (True, False):
        with emulated(monkeypatch, FOUR["random"], graphs=graphs, **options) as (drafter, session):
            prompts, step, _ = passes(drafter.config, BF16)
            give_pass(session, prompts)
            drafted = []
            for given in (prompts, step, without_last_request(step)):
                drafts = propose(drafter, given)
                session.check()
                drafted.append([x.clone() for x in drafts])
        results.append(drafted)
    for with_graph, without in zip(*results, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(with_graph, without, strict=True))
    for whole, fewer in zip(*results[0][1:], strict=True):
        assert len(fewer) == len(PROMPTS) - 1
        assert torch.equal(whole[:-1], fewer)


def launches_of_a_pass(drafter: Drafter) -> int:
    return 5 + 5 * drafter.config.num_layers


def without_last_request(step: Pass) -> Pass:
    T = int(step.query_start[-2])
    return replace(
        step, target_tokens=step.target_tokens[:T], target_positions=step.target_positions[:T],
        taps=[tap[:T] for tap in step.taps], query_start=step.query_start[:-1],
        num_rejected=step.num_rejected[:-1], next_tokens=step.next_tokens[:-1],
        block_table=step.block_table[:-1],
    )  # fmt: skip
