"""The bundled pair in the real vLLM, with our verification in the place of its own."""

from __future__ import annotations

from typing import Any

import pytest
from engine_fixtures import Serve, Served
from test_serving import (
    ENGINE,
    SPECULATIVE,
    acceptance_length,
    assert_ours_on,
    request,
)

pytest_plugins = ["engine_fixtures"]

OURS = {"p_eagle_cuda": {"verification": "p_eagle_cuda"}}
PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2}


# The first four are greedy, the next four have a seed, and the last has neither. All prompts fit
# into one step: on a CPU vLLM's V1 runner cannot take a prompt with a seed in two.
ASKED: list[dict[str, Any]] = [
    {"logprobs": 2},
    {**PENALTIES, "logprobs": 1},
    {"allowed_token_ids": list(range(0, 512, 3))},
    {"min_tokens": 12, "stop_token_ids": [1, 2, 3]},
    {"temperature": 0.8, "seed": 1, "logprobs": 1},
    {"temperature": 0.8, "seed": 2, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.2, "seed": 3, "top_k": 50},
    {"temperature": 0.7, "seed": 4, **PENALTIES},
    {"temperature": 0.9},
]
MIXED = [request(i, 8 + 2 * i, 16, sampling=sampling) for i, sampling in enumerate(ASKED)]
NUM_GREEDY, NUM_SEEDED = 4, 4


@pytest.fixture(scope="module")
def plain(serve: Serve) -> Served:
    return serve([MIXED], speculative=None, **ENGINE)


@pytest.mark.feature("Our verification")
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_our_verification(runner: str, plain: Served, serve: Serve) -> None:
    """Greedy text and logprobs are those without speculation, next to whatever there is."""
    engine = {**ENGINE, "additional_config": OURS, "async_scheduling": True}
    ours = serve([MIXED, MIXED], speculative=SPECULATIVE, v2=runner == "V2", **engine)
    assert_ours_on(ours, runner)
    assert any("p_eagle_cuda verifies" in line for line in ours.log), ours.log
    assert ours.num_verifications > 10
    first, second = ours.outputs
    assert first[:NUM_GREEDY] == second[:NUM_GREEDY] == plain.outputs[0][:NUM_GREEDY]
    seeded = slice(NUM_GREEDY, NUM_GREEDY + NUM_SEEDED)
    assert first[seeded] == second[seeded], "the same seeds gave another text"
    assert all(len(ids or ()) == 16 for ids in first)
    for i in (0, 1):
        expected = plain.logprobs[0][i]
        assert expected is not None
        assert ours.logprobs[0][i] == pytest.approx(expected, abs=1e-3)
    drawn = ours.logprobs[0][NUM_GREEDY]
    assert drawn is not None
    assert len(drawn) == 16
    assert acceptance_length(ours) > 1.5
