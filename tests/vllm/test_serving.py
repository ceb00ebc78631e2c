"""The bundled pair in the real vLLM, with its own drafter and with ours, on both model runners."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from engine_fixtures import HERE, Serve, Served
from tokenizers import Tokenizer

from p_eagle_cuda.bundled import bundled_drafter, bundled_target
from p_eagle_cuda.vllm_plugin.draft_length import make_schedule

pytest_plugins = ["engine_fixtures"]

K = 5
SPECULATIVE = {
    "method": "eagle3", "model": str(bundled_drafter()), "num_speculative_tokens": K,
    "parallel_drafting": True,
}  # fmt: skip
ENGINE: dict[str, Any] = {
    "model": str(bundled_target()), "dtype": "float32", "max_model_len": 256, "max_num_seqs": 16,
    "max_num_batched_tokens": 192, "enforce_eager": True, "enable_prefix_caching": False,
    "async_scheduling": False,
}  # fmt: skip
RANKS = 2
# A process for each rank with an engine of its own, which is sooner there than vLLM's workers are.
SPLIT = {
    **ENGINE,
    "tensor_parallel_size": RANKS,
    "distributed_executor_backend": "external_launcher",
}


@cache
def source_tokens() -> list[int]:
    """Code for prompts, which stays as it is."""
    tokenizer = Tokenizer.from_file(str(bundled_target() / "tokenizer.json"))
    return list(tokenizer.encode((HERE / "prompts.txt").read_text()).ids)


def prompt(index: int, length: int) -> list[int]:
    start = 37 * index
    return source_tokens()[start : start + length]


def request(index: int, length: int, max_tokens: int, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 0.0, "max_tokens": max_tokens, **more.pop("sampling", {})}
    return {"prompt": prompt(index, length), "sampling": sampling, **more}


# One request alone; then sixteen of all lengths, some longer than a step takes, of which one is
# aborted while it waits; then some that join and leave while others draft, and one that is aborted
# among them.
NEVER_REACHED = 60
GREEDY = [
    [request(0, 9, 16)],
    [
        *(request(i, 1 + 7 * i, 4 + i) for i in range(15)),
        request(15, 200, 20, abort_after=5),
    ],
    [
        *(request(16 + i, 20 + 9 * i, 8 + 4 * i, join_after=2 * i) for i in range(6)),
        request(22, 40, NEVER_REACHED, join_after=3, abort_after=12),
    ],
]


@pytest.fixture(scope="module")
def plain(serve: Serve) -> Served:
    return serve(GREEDY, speculative=None, **ENGINE)


@pytest.fixture(scope="module")
def of_vllm(serve: Serve) -> Served:
    """VLLM's own drafter; the plugin is off."""
    return serve(GREEDY, speculative=SPECULATIVE, plugin=False, **ENGINE)


LAUNCHES = {
    "V1": ["_foreach_copy_", "_foreach_copy_", "clamp"],
    "V2": [
        "gt", "index", "index", "where",  # the next token, sampled or of the prompt
        "_foreach_copy_", "_foreach_copy_", "clamp",
    ],
}  # fmt: skip


def assert_ours_on(served: Served, runner: str) -> None:
    (taken,) = [x for x in served.log if "p_eagle_cuda drafts" in x]
    assert ("on the V2 runner" in taken) == (runner == "V2"), taken
    assert not [x for x in served.log if x.startswith("WARNING")], served.log


def assert_whole_on_each_rank(served: Served) -> list[str]:
    """What the log says of it, once for each rank; nothing differs between them."""
    said = [x for x in served.log if "p_eagle_cuda drafts" in x]
    assert len(said) == RANKS, served.log
    assert all(f"caches of all 2 heads, on each of {RANKS} ranks" in x for x in said), said
    assert not [x for x in served.log if x.startswith("WARNING")], served.log
    first, *others = served.of_ranks
    assert len(others) == RANKS - 1
    assert all(other == first for other in others)
    return said


def acceptance_length(served: Served) -> float:
    return 1 + served.counters["num_accepted_tokens"] / served.counters["num_drafts"]


def assert_same_text(served: Served, plain: Served) -> None:
    """Of all requests; of the aborted ones so far as they came, which is further with drafts."""
    assert served.outputs == plain.outputs
    waiting, drafting = served.aborted
    assert not waiting, "the request was to be aborted before it had a token"
    without_drafts = plain.aborted[1]
    assert 0 < len(without_drafts) < len(drafting) < NEVER_REACHED
    assert drafting[: len(without_drafts)] == without_drafts


@pytest.mark.feature(
    "Same drafts as vLLM's", "Greedy text", "Chunked prefill", "Joining, leaving, aborting"
)
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_ours_drafts_what_vllms_own_does(
    runner: str, plain: Served, of_vllm: Served, serve: Serve
) -> None:
    """Same text as without speculation, same drafts and counters as vLLM's own drafter."""
    ours = serve(GREEDY, speculative=SPECULATIVE, v2=runner == "V2", **ENGINE)
    assert_ours_on(ours, runner)
    assert_same_text(ours, plain)
    assert_same_text(of_vllm, plain)
    assert ours.counters["num_drafts"] > 40
    # What a step launches beside the pass; a batch between two sizes is padded by one more.
    kinds = [[x for x in kind if x != "fill_"] for kind in ours.launches]
    assert max(kinds, key=len) == LAUNCHES[runner]
    assert ours.num_verifications == 0, "an option that nobody asked for"
    if runner == "V1":
        assert ours.drafts == of_vllm.drafts
        assert ours.counters == of_vllm.counters
    else:  # batches are put together in another order
        assert acceptance_length(ours) == pytest.approx(acceptance_length(of_vllm), rel=0.01)
        first = lambda served: [step[0] for step in served.drafts[:8]]  # noqa: E731
        assert first(ours) == first(of_vllm)


@pytest.mark.feature("Tensor parallelism")
def test_a_target_on_two_ranks(plain: Served, of_vllm: Served, serve: Serve) -> None:
    """The whole drafter on each: one group of caches, with pages of two sizes."""
    ours = serve(GREEDY[:1], speculative=SPECULATIVE, **SPLIT)
    said = assert_whole_on_each_rank(ours)
    assert all("weights of 9.8 MiB shared with vLLM" in x for x in said), said
    assert ours.outputs == plain.outputs[:1]
    assert len(ours.drafts) > 4
    assert ours.drafts == of_vllm.drafts[: len(ours.drafts)]


@pytest.mark.feature("Preemption")
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_preempted_requests_keep_their_text(
    runner: str, plain: Served, of_vllm: Served, serve: Serve
) -> None:
    """A cache of 10 blocks of 32: requests are thrown out of it, and begin again later."""
    ours = serve(
        GREEDY, speculative=SPECULATIVE, v2=runner == "V2", block_size=32,
        num_gpu_blocks_override=10, **ENGINE,
    )  # fmt: skip
    assert_ours_on(ours, runner)
    assert plain.num_preemptions == of_vllm.num_preemptions == 0 < ours.num_preemptions
    assert ours.outputs == plain.outputs
    # What is drafted next to what differs, and what is drafted again.
    assert acceptance_length(ours) == pytest.approx(acceptance_length(of_vllm), rel=0.03)


@pytest.mark.feature("FP8 weights", "FP8 cache", "Sampling with seeds")
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_fp8_weights_small_fp8_cache_and_seeds(runner: str, plain: Served, serve: Serve) -> None:
    """An FP8 cache of 24 blocks of 32, too few for all requests at a time; sampling with seeds."""
    fp8 = {"p_eagle_cuda": {"weights": "fp8"}}
    sampled = [
        [request(i, 20 + i, 12, sampling={"temperature": 0.8, "seed": 7 + i}) for i in range(3)]
    ] * 2
    ours = serve(
        [*GREEDY, *sampled], speculative=SPECULATIVE, v2=runner == "V2",
        **{**ENGINE, "kv_cache_dtype": "fp8", "block_size": 32, "num_gpu_blocks_override": 24,
           "additional_config": fp8},
    )  # fmt: skip
    assert_ours_on(ours, runner)
    assert any("MiB in the place of vLLM's" in line for line in ours.log), ours.log
    assert ours.outputs[-2] == ours.outputs[-1], "the same seeds gave another text"
    assert all(len(ids or ()) == 12 for ids in ours.outputs[-1])
    # The target's own cache is FP8 too, so that its text may differ; most of it does not.
    assert acceptance_length(ours) > 1.5, ours.counters


@pytest.mark.feature("Drafts that are drawn")
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_drafts_that_are_drawn(runner: str, plain: Served, serve: Serve) -> None:
    """Greedy requests keep their text, and seeds theirs."""
    sampled = [
        [
            request(0, 9, 16),
            *(request(i, 20 + i, 12, sampling={"temperature": 0.8, "seed": i}) for i in (1, 2)),
        ]
    ] * 2
    speculative = {**SPECULATIVE, "draft_sample_method": "probabilistic"}
    ours = serve(sampled, speculative=speculative, v2=runner == "V2", **ENGINE)
    assert_ours_on(ours, runner)
    assert ours.outputs[0] == ours.outputs[1], "the same seeds gave another text"
    assert ours.outputs[0][0] == plain.outputs[0][0]
    assert ours.counters["num_accepted_tokens"] > ours.counters["num_drafts"] / 4


@pytest.mark.feature("Fewer drafts in larger batches")
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_fewer_drafts_in_larger_batches(runner: str, plain: Served, serve: Serve) -> None:
    """The scheduler asks for them, and counts them; the text stays."""
    most, requests = 7, ENGINE["max_num_seqs"]
    ours = serve(
        GREEDY[:2], speculative={**SPECULATIVE, "num_speculative_tokens": most}, v2=runner == "V2",
        **{**ENGINE, "async_scheduling": True,
           "additional_config": {"p_eagle_cuda": {"draft_length": "auto", "row_cost": 0.03}}},
    )  # fmt: skip
    assert_ours_on(ours, runner)
    assert ours.outputs == plain.outputs[:2]
    schedule = make_schedule(most, requests, 0.03)
    numbers = [k for first, last, k in schedule for _ in range(first, last + 1)]
    assert numbers[0] > numbers[-1] + 1
    mean = ours.counters["num_draft_tokens"] / ours.counters["num_drafts"]
    assert numbers[-1] < mean < (numbers[0] + numbers[-1]) / 2
    if runner == "V1":  # V2 drops what is too much of a fixed number
        assert {len(step[0]) for step in ours.drafts} <= set(numbers)
        assert all(len(step[0]) == numbers[len(step) - 1] for step in ours.drafts)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an option that there is not": (
        {}, {"additional_config": {"p_eagle_cuda": {"wieghts": "fp8"}}}, "got 'wieghts'"
    ),
}  # fmt: skip


@pytest.mark.feature("Stepping aside")
@pytest.mark.parametrize("name", REFUSED)
def test_vllms_own_serves_where_ours_cannot(name: str, plain: Served, serve: Serve) -> None:
    """With one warning that says why."""
    speculative, engine, reason = REFUSED[name]
    served = serve(GREEDY[:1], speculative={**SPECULATIVE, **speculative}, **{**ENGINE, **engine})
    warnings = [x for x in served.log if x.startswith("WARNING")]
    assert len(warnings) == 1, served.log
    assert reason in warnings[0]
    assert "vLLM's own drafter serves" in warnings[0]
    assert served.outputs[0] == plain.outputs[0]
