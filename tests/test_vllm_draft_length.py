"""The schedule of drafts that vLLM's scheduler is given; `tests/vllm` has the real engine."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from p_eagle_cuda.draft_length import DraftLengthPolicy
from p_eagle_cuda.vllm_plugin.draft_length import Schedule, give_schedule, make_schedule
from test_vllm_plugin import config_of


def scheduled(options: dict[str, Any], version: str = "0.33.0", **changes: Any) -> Schedule | None:
    """What is in vLLM's configuration afterwards."""
    config = config_of(
        **{
            "additional_config": {"p_eagle_cuda": options},
            "speculative_config__num_speculative_tokens": 7,
            "speculative_config__num_speculative_tokens_per_batch_size": None,
            "scheduler_config": type("Scheduler", (), {"max_num_seqs": 64}),
            **changes,
        }
    )
    give_schedule(config, "cpu", version)
    if config.speculative_config is None:
        return None
    found: Schedule | None = config.speculative_config.num_speculative_tokens_per_batch_size
    return found


def test_every_batch_size_has_the_policys_number() -> None:
    policy = DraftLengthPolicy(7)
    schedule = make_schedule(7, 300, 1 / 256)
    numbers = [k for first, last, k in schedule for _ in range(first, last + 1)]
    assert numbers == [policy.choose(batch_size) for batch_size in range(1, 301)]
    assert [first for first, _, _ in schedule] == [1, *(last + 1 for _, last, _ in schedule[:-1])]
    assert len(schedule) > 3
    assert numbers == sorted(numbers, reverse=True)
    assert make_schedule(7, 300, 0.0) == [(1, 300, 7)]
    assert make_schedule(7, 1, 10.0) == [(1, 1, 1)]


def test_only_who_asks_gets_a_schedule(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vllm.p_eagle_cuda"):
        assert scheduled({}) is None
        assert scheduled({"draft_length": "auto", "enabled": False}) is None
        assert scheduled({"draft_length": "auto"}, speculative_config__method="eagle") is None
        assert scheduled({"draft_length": "auto"}, speculative_config=None) is None
        assert scheduled({"draft_length": "none"}) is None  # the drafter says why
        assert not caplog.records
        assert scheduled({"draft_length": "auto"}) == make_schedule(7, 64, 1 / 256)
        assert "p_eagle_cuda: drafts by batch size: 7 for 1 to " in caplog.text
        caplog.clear()
        given = {"speculative_config__num_speculative_tokens_per_batch_size": [(1, 64, 7)]}
        assert scheduled({"draft_length": "auto", "row_cost": 0.0}, **given) == [(1, 64, 7)]
        assert not caplog.records, "it was there already"
        assert scheduled({"draft_length": "auto", "row_cost": 0.0}) == [(1, 64, 7)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "0.32.0"}, "found 0.32.0"),
        ({"lora_config": object()}, "LoRA"),
        (
            {"speculative_config__num_speculative_tokens_per_batch_size": [(1, 64, 2)]},
            "num_speculative_tokens_per_batch_size is given",
        ),
    ],
)
def test_what_is_left_as_it_is(
    changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = changes.get("speculative_config__num_speculative_tokens_per_batch_size")
    assert scheduled({"draft_length": "auto"}, **changes) == before
    assert "draft_length is left as it is" in caplog.text
    assert reason in caplog.text
