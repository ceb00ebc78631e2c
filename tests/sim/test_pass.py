"""Whole drafter passes on the emulator: `Drafter.propose` as users call it, kernel by kernel."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import write_drafter
from drafter_passes import PROMPTS, SIZES, TOP_K, K, passes, propose, reference_pass
from drafter_variants import VARIANTS
from numerics import assert_as_accurate_as_torch
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


def assert_right(
    path: Path,
    steps: list[Any],
    drafts: Any,
    weights: str = "auto",
    cache_dtype: torch.dtype | None = None,
) -> None:
    """The last pass is as accurate as the reference in the working dtype."""
    (_, logits, lse), (_, unfused, unfused_lse) = (
        reference_pass(path, steps, dtype, cache_dtype or dtype, weights)
        for dtype in (torch.float64, BF16)
    )
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
        assert not drafter._workspace[:4096].any(), "left counters behind"


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


@pytest.mark.parametrize("weights", ["fp8_head", "fp8"])
def test_fp8_weights_and_cache(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers: the first, which has the heads of mask rows, and one like the others."""
    write_drafter(tmp_path, num_hidden_layers=2, attention_bias=True, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, "weights": weights, "kv_dtype": "fp8", **SIZES}
    with emulated(monkeypatch, FOUR["random"], **options) as (drafter, session):
        steps = passes(drafter.config, BF16, num_steps=1)
        for step in steps:
            give_pass(session, step)
            drafts = propose(drafter, step)
            session.check()
        assert_right(tmp_path, steps, drafts, weights, torch.float8_e4m3fn)


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
def test_a_captured_pass_is_replayed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph serves every acceptance pattern: only what lies in the inputs changes."""
    write_drafter(tmp_path, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, **SIZES}
    with emulated(monkeypatch, settings, **options) as (drafter, session):
        prompt, *steps = passes(drafter.config, BF16, num_steps=4)
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
            assert_right(tmp_path, done, drafts)
