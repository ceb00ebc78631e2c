"""Whole drafter passes on the emulator: `Drafter.propose` as users call it, kernel by kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints import write_drafter
from drafter_passes import PROMPTS, SIZES, K, padded, passes, propose, reference_pass
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

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)


def give_pass(session: Session, step: Any) -> None:
    inputs = {name: value for name, value in vars(step).items() if name != "num_valid"}
    give(session, **inputs)


def assert_right(
    path: Path,
    steps: list[Any],
    drafts: Any,
    max_position: int | None = None,
    weights: str = "auto",
    cache_dtype: torch.dtype | None = None,
) -> Tensor:
    """The last pass is as accurate as the reference in the working dtype.

    Returns which drafts there are: ``[B, K]`` bool.
    """
    (_, logits, lse), (_, unfused, unfused_lse) = (
        reference_pass(path, steps, dtype, cache_dtype or dtype, max_position, weights)
        for dtype in (torch.float64, BF16)
    )
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
        assert not drafter._buffers.linear_workspace[:4096].any(), "left counters behind"
        assert drafter._buffers.attention_work[3] == 0, "left arrivals behind"
    ran = {launch.kernel for launch in session.launches}
    assert {"wide_kernel", "linear_kernel"} <= ran, "both for many rows and for few"


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


@every_setting
def test_a_pruned_last_layer(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of prompts, and in a graph; before the last pass a request ends, another nears its end."""
    write_drafter(tmp_path, num_hidden_layers=2, attention_bias=True, **EVEN_SIZES)
    max_position = PROMPTS[2] + 2
    options = {"path": tmp_path, "dtype": BF16, "max_position": max_position, **SIZES}
    with emulated(monkeypatch, settings, graphs=True, prune_above=0, **options) as (drafter, sim):
        steps = passes(drafter.config, BF16)
        steps[2] = padded(steps[2], len(PROMPTS), len(steps[2].target_tokens), absent=[0])
        give_pass(sim, steps[0])
        for i, step in enumerate(steps):
            num_launches = len(sim.launches)
            drafts = propose(drafter, step)
            sim.check()
            kernels = [launch.kernel for launch in sim.launches[num_launches:]]
            assert "prune_rows_kernel" in kernels
            there = assert_right(tmp_path, steps[: i + 1], drafts, max_position)
        assert not there[0].any()
        assert there[1].all()
        assert not there[2].all()
        assert drafter._buffers.pruned_work[3] == 0, "left arrivals behind"


@pytest.mark.parametrize(("weights", "prune_above"), [("fp8_head", 192), ("fp8", 192), ("w8a8", 0)])
def test_fp8_weights_and_cache(
    weights: str, prune_above: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers: the first, which has the heads of mask rows, and one like the others."""
    write_drafter(tmp_path, num_hidden_layers=2, attention_bias=True, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, "weights": weights, "kv_dtype": "fp8", **SIZES}
    options["prune_above"] = prune_above
    with emulated(monkeypatch, FOUR["random"], **options) as (drafter, session):
        steps = passes(drafter.config, BF16, num_steps=1)
        for step in steps:
            give_pass(session, step)
            drafts = propose(drafter, step)
            session.check()
        assert_right(tmp_path, steps, drafts, None, weights, torch.float8_e4m3fn)


@pytest.mark.parametrize(("prune_above", "expected"), [(192, 24), (0, 26)])
def test_launches_of_a_pass(
    prune_above: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four layers: 24 launches, 20 of them outside of attention, and all of them overlap."""
    write_drafter(tmp_path, num_hidden_layers=4, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, "prune_above": prune_above, **SIZES}
    with emulated(monkeypatch, FOUR["random"], **options) as (drafter, session):
        for step in passes(drafter.config, BF16, num_steps=1):
            num_launches = len(session.launches)
            give_pass(session, step)
            propose(drafter, step)
            session.check()
    launches = session.launches[num_launches:]
    kernels = [launch.kernel for launch in launches]
    assert kernels.count("paged_attention_kernel") == 4
    assert len(kernels) == expected, kernels
    assert all(launch.overlaps_previous for launch in launches)


@every_setting
def test_a_graph_serves_every_acceptance_pattern(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded once, replayed with other counts, lengths and blocks; only prompts are launched.

    Before the last pass a request ends.
    """
    write_drafter(tmp_path, **EVEN_SIZES)
    options = {"path": tmp_path, "dtype": BF16, **SIZES}
    with emulated(monkeypatch, settings, graphs=True, **options) as (drafter, session):
        steps = passes(drafter.config, BF16, num_steps=2)
        assert steps[1].num_rejected.tolist() != steps[2].num_rejected.tolist()
        steps[2] = padded(steps[2], len(PROMPTS), len(steps[2].target_tokens), absent=[1])
        give_pass(session, steps[0])
        for i, step in enumerate(steps):
            num_launches = len(session.launches)
            drafts = propose(drafter, step)
            session.check()
            if i > 0:
                there = assert_right(tmp_path, steps[: i + 1], drafts)
                assert there.tolist() == [[b != 1 or i < 2] * K for b in range(len(PROMPTS))]
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


def launches_of_a_pass(drafter: Drafter) -> int:
    return 4 + 5 * drafter.config.num_layers


def without_last_request(step: Pass) -> Pass:
    T = int(step.query_start[-2])
    return replace(
        step, target_tokens=step.target_tokens[:T], target_positions=step.target_positions[:T],
        taps=[tap[:T] for tap in step.taps], query_start=step.query_start[:-1],
        num_rejected=step.num_rejected[:-1], next_tokens=step.next_tokens[:-1],
        block_table=step.block_table[:-1],
    )  # fmt: skip
