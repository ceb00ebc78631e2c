"""How `Drafter` runs a batch: padded, in graphs, in chunks, with fewer drafts.

A recorder that calls what it has recorded stands for CUDA graphs: it sees the same static buffers,
and nothing that a graph would not see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import write_drafter
from drafter_passes import PROMPTS, SIZES, TOP_K, K, passes, propose, reference_pass
from drafter_variants import VARIANTS
from launches import Launches
from p_eagle_cuda import Drafter
from p_eagle_cuda import drafter as drafter_module
from p_eagle_cuda.buffers import PassInputs, PassLimits, batch_sizes_up_to, copy_together
from p_eagle_cuda.cuda_graphs import GraphCache, PassShape
from p_eagle_cuda.drafter_pass import Drafts
from p_eagle_cuda.input_checks import check_contents
from pass_cases import Pass

F64 = torch.float64


class FakeRecorder:
    """Counts what it records and replays; `fails_for` has no memory."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0
        self.failures: list[Exception] = []

    def __call__(self, launch: Callable[[], Drafts]) -> tuple[Callable[[], None], Drafts]:
        if self.failures:
            raise self.failures.pop(0)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            launch()

        return replay, launch()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> FakeRecorder:
    fake = FakeRecorder()
    monkeypatch.setattr(drafter_module, "_recorder", lambda *_: fake)
    return fake


def load(path: Path, **options: Any) -> Drafter:
    return Drafter.from_pretrained(path, **{**SIZES, "dtype": F64, **options})


def kept(drafts: Drafts) -> Drafts:
    return Drafts(*(x.clone() for x in drafts))


def assert_same(found: Drafts, expected: Drafts) -> None:
    for name in Drafts._fields:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def requests_of(step: Pass, chosen: list[int]) -> Pass:
    """The pass of some of the requests only."""
    rows = torch.cat(
        [torch.arange(int(step.query_start[b]), int(step.query_start[b + 1])) for b in chosen]
    )
    lengths = [int(step.query_start[b + 1] - step.query_start[b]) for b in chosen]
    return Pass(
        target_tokens=step.target_tokens[rows],
        target_positions=step.target_positions[rows],
        taps=[tap[rows] for tap in step.taps],
        query_start=torch.tensor([0, *lengths]).cumsum(0).int(),
        num_rejected=step.num_rejected[chosen],
        next_tokens=step.next_tokens[chosen],
        block_table=step.block_table[chosen],
    )


def poison_caches(drafter: Drafter) -> None:
    for cache in drafter.caches:
        cache.k.fill_(7)
        cache.v.fill_(7)


def assert_poisoned(drafter: Drafter) -> None:
    for cache in drafter.caches:
        assert (cache.k == 7).all()
        assert (cache.v == 7).all()


# ---- Padding -------------------------------------------------------------------------------------


def test_batch_sizes() -> None:
    assert batch_sizes_up_to(1) == (1,)
    assert batch_sizes_up_to(12) == (1, 2, 4, 8, 12)
    assert batch_sizes_up_to(100) == (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 100)
    assert batch_sizes_up_to(1000)[-1] == 256
    limits = PassLimits(4, 1, 100, 512, 8, batch_sizes_up_to(100))
    assert limits.batch_size(3, 15) == 4
    assert limits.batch_size(3, 20) == 4  # rows may be anybody's
    assert limits.batch_size(3, 21) is None
    assert limits.batch_size(0, 0) == 1
    assert limits.batch_size(101, 101) is None
    assert limits.most_rows == max(512 + 100 * 3, 100 * 5 + 100 * 3)


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 1), (1, 1)])
def test_batch_sizes_must_ascend(sizes: tuple[int, ...], tmp_path: Path) -> None:
    write_drafter(tmp_path)
    with pytest.raises(ValueError, match="batch_sizes must ascend from at least 1, got"):
        load(tmp_path, batch_sizes=sizes)


def test_a_padded_batch_drafts_what_the_reference_does(tmp_path: Path) -> None:
    """Two, then one, of three requests, padded to eight: nothing is left of other batches."""
    write_drafter(tmp_path)
    drafter = load(tmp_path, max_requests=8, batch_sizes=(8,))
    exact = load(tmp_path)
    steps = passes(drafter.config, F64)
    for x in (drafter, exact):
        propose(x, steps[0])
    for chosen in ([0, 1, 2], [2, 0], [1]):
        step = requests_of(steps[1], chosen)
        drafts = kept(propose(drafter, step))
        expected = kept(propose(exact, step))
        assert len(drafts.lse) == len(chosen)
        assert torch.equal(drafts.top_ids, expected.top_ids)
        torch.testing.assert_close(drafts.top_logits, expected.top_logits)
    ids, logits, _ = reference_pass(tmp_path, steps[:2], F64, F64)
    shape = (len(PROMPTS), K, TOP_K)
    assert torch.equal(drafts.top_ids[0], ids.view(shape)[1])
    torch.testing.assert_close(drafts.top_logits[0], logits.view(shape)[1])


def test_padding_writes_nothing(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path, max_requests=8, batch_sizes=(8,))
    steps = passes(drafter.config, F64)
    propose(drafter, steps[0])
    propose(drafter, steps[1])  # leaves three requests in the static buffers
    poison_caches(drafter)
    empty = requests_of(steps[1], [1])
    empty = replace(empty, num_rejected=torch.tensor([K + 1], dtype=torch.int32))
    drafts = propose(drafter, empty)
    assert (drafts.token_ids == -1).all()
    assert (drafts.lse == -torch.inf).all()
    assert_poisoned(drafter)


def test_an_empty_batch(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path)
    (step,) = passes(drafter.config, F64, num_steps=0)
    empty = Pass(
        target_tokens=step.target_tokens[:0],
        target_positions=step.target_positions[:0],
        taps=[tap[:0] for tap in step.taps],
        query_start=torch.zeros(1, dtype=torch.int32),
        num_rejected=step.num_rejected[:0],
        next_tokens=step.next_tokens[:0],
        block_table=step.block_table[:0],
    )
    assert propose(drafter, empty).token_ids.shape == (0, K)


def test_a_narrow_block_table_after_a_wide_one(tmp_path: Path) -> None:
    """Columns that a batch's table does not have hold no block of an earlier batch."""
    write_drafter(tmp_path)
    results = []
    for wide_first in (False, True):
        drafter = load(tmp_path)
        steps = passes(drafter.config, F64)
        propose(drafter, steps[0])
        if wide_first:
            stale = torch.full((3, drafter.limits.max_blocks + 2), 7, dtype=torch.int32)
            drafter_module.stage(
                drafter._buffers.static_inputs(3, 0)._replace(block_table=stale),
                drafter._buffers, 3,
            )  # fmt: skip
        # Some rows are past the end of this table.
        propose(drafter, replace(steps[1], block_table=steps[1].block_table[:, :2].contiguous()))
        results.append(drafter.caches[0].k.clone())
    assert torch.equal(*results)


def test_static_inputs_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path)
    steps = passes(drafter.config, F64)
    propose(drafter, steps[0])
    expected = kept(propose(drafter, steps[1]))
    static = drafter.static_inputs(len(PROMPTS), steps[1].target_tokens.numel())
    columns = steps[1].block_table.shape[1]
    static.block_table[:, :columns] = steps[1].block_table
    for name in ("target_tokens", "target_positions", "query_start", "num_rejected", "next_tokens"):
        getattr(static, name).copy_(getattr(steps[1], name))
    for tap, given in zip(static.taps, steps[1].taps, strict=True):
        tap.copy_(given)
    monkeypatch.delattr(torch, "_foreach_copy_")
    assert_same(drafter.propose(*static), expected)
    with pytest.raises(
        ValueError, match="at most 3 requests with 5 target rows each, got 3 and 16"
    ):
        drafter.static_inputs(3, 16)


def with_int32_ids(given: Pass) -> Pass:
    """As serving engines have them."""
    return replace(
        given, target_tokens=given.target_tokens.int(), next_tokens=given.next_tokens.int()
    )


def test_ids_may_be_int32(tmp_path: Path) -> None:
    """Of prompts, which are not padded, and of steps."""
    write_drafter(tmp_path)
    drafter = load(tmp_path)
    for step in passes(drafter.config, F64)[:2]:
        expected = kept(propose(drafter, step))
        assert_same(propose(drafter, with_int32_ids(step)), expected)


def test_a_batch_is_staged_in_one_launch(tmp_path: Path) -> None:
    """Two if ids are converted, and one more for padding; a narrow block table has its own."""
    write_drafter(tmp_path)
    drafter = load(tmp_path, batch_sizes=(3, 4))
    step = passes(drafter.config, F64)[1]
    B, T = len(PROMPTS), len(step.target_tokens)
    table = torch.arange(B * drafter.limits.max_blocks, dtype=torch.int32).view(B, -1)
    for ids_of, columns, batch_size, names in (
        (lambda x: x, None, 3, ["_foreach_copy_"]),
        (with_int32_ids, None, 3, ["_foreach_copy_"] * 2),
        (with_int32_ids, None, 4, ["_foreach_copy_"] * 2 + ["fill_"]),
        (lambda x: x, -1, 3, ["copy_", "_foreach_copy_", "fill_"]),
    ):
        given = ids_of(step)
        inputs = PassInputs(
            given.target_tokens, given.target_positions, tuple(given.taps), given.query_start,
            given.num_rejected, given.next_tokens, table[:, :columns],
        )  # fmt: skip
        static = drafter.static_inputs(B, T)
        for name, x in static._asdict().items():
            for buffer in x if name == "taps" else [x]:
                buffer.fill_(7)
        with Launches() as launches:
            drafter_module.stage(inputs, drafter._buffers, batch_size)
        assert launches.names == names
        expected = inputs._replace(
            target_tokens=step.target_tokens, next_tokens=step.next_tokens, block_table=table
        )
        if columns is not None:
            expected.block_table[:, columns:] = -1
        assert all(torch.equal(x, y) for x, y in zip(static.taps, expected.taps, strict=True))
        for name in static._fields:
            if name != "taps":
                assert torch.equal(getattr(static, name), getattr(expected, name)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_copies_in_one_launch_keep_every_bit(dtype: torch.dtype) -> None:
    """Also where a size is no whole number of words, or the beginning not on a word."""
    bits = torch.randint(256, (64,), dtype=torch.uint8)
    after_first = bits[: 32 + dtype.itemsize].view(dtype)[1:]
    sources = [bits[:30].view(dtype), after_first, bits[:40].view(dtype)]
    targets = [torch.zeros_like(x) for x in sources]
    copy_together(zip(targets, sources, strict=True))
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target.view(torch.uint8), source.view(torch.uint8))


@pytest.mark.parametrize("variant", ["bias", "normed-residual"])
def test_joined_taps(variant: str, tmp_path: Path) -> None:
    """Side by side in one tensor they draft the same; the latter has a norm over all of them."""
    write_drafter(tmp_path, **VARIANTS[variant])
    joined, apart = load(tmp_path, joined_taps=True), load(tmp_path)
    for step in passes(apart.config, F64):
        side_by_side = replace(step, taps=[torch.cat(step.taps, dim=1)])
        assert_same(propose(joined, side_by_side), propose(apart, step))
    with pytest.raises(ValueError, match="reads 3 taps, joined in one tensor, got 3"):
        propose(joined, step)
    with pytest.raises(ValueError, match="reads 3 taps, got 1"):
        propose(apart, side_by_side)


def test_taps_with_their_own_norms_are_not_joined(tmp_path: Path) -> None:
    write_drafter(tmp_path, fc_norm=True)
    with pytest.raises(ValueError, match="a norm for each tap, so taps must not be joined"):
        load(tmp_path, joined_taps=True)


# ---- Graphs --------------------------------------------------------------------------------------


def test_graphs_draft_the_same_bits(tmp_path: Path, recorder: FakeRecorder) -> None:
    write_drafter(tmp_path)
    with_graphs, without = load(tmp_path), load(tmp_path, cuda_graphs=False)
    steps = passes(with_graphs.config, F64, num_steps=4)
    assert without._graphs is None
    for step in steps:
        drafts = kept(propose(with_graphs, step))
        assert_same(drafts, kept(propose(without, step)))
    assert recorder.recorded == 1
    assert recorder.replayed == 4


def test_recording_leaves_the_cache_alone(tmp_path: Path, recorder: FakeRecorder) -> None:
    """The launches that warm up are of requests without rows."""
    write_drafter(tmp_path)
    drafter = load(tmp_path)
    steps = passes(drafter.config, F64)
    propose(drafter, steps[0])
    propose(drafter, steps[1])
    poison_caches(drafter)
    drafter._warm_up(PassShape(3, K))
    assert_poisoned(drafter)


def test_graphs_are_recorded_up_front(tmp_path: Path, recorder: FakeRecorder) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path, max_requests=6)
    drafter.capture_graphs(progress=False)
    assert drafter._graphs is not None
    assert drafter._graphs.shapes == [PassShape(n, K) for n in (6, 4, 2, 1)]
    drafter.capture_graphs([2], progress=False)
    assert len(drafter._graphs.shapes) == recorder.recorded == 8
    with pytest.raises(ValueError, match="k must be 1 to K = 4, got 5"):
        drafter.capture_graphs([5])


def test_the_least_recently_used_graph_goes(tmp_path: Path, recorder: FakeRecorder) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path, max_graphs=2)
    steps = passes(drafter.config, F64)
    propose(drafter, steps[0])
    for chosen in ([0], [0, 1], [0], [0, 1, 2], [0], [0, 1]):
        propose(drafter, requests_of(steps[1], chosen))
    assert drafter._graphs is not None
    assert drafter._graphs.shapes == [PassShape(1, K), PassShape(2, K)]
    assert recorder.recorded == 4


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no"), RuntimeError("CUDA error: out of memory\nmore")],
    ids=str,
)
def test_out_of_memory_leaves_fewer_graphs(
    error: Exception, tmp_path: Path, recorder: FakeRecorder
) -> None:
    """A batch then uses a larger graph, or none; it drafts the same."""
    write_drafter(tmp_path)
    drafter, without = load(tmp_path), load(tmp_path, cuda_graphs=False)
    steps = passes(drafter.config, F64)
    for x in (drafter, without):
        propose(x, steps[0])
    recorder.failures = [error, error]
    for chosen, warns, replayed in (
        ([0], True, 0),  # no graph at all
        ([1, 2], True, 0),
        ([0], False, 0),
        ([0, 1, 2], False, 1),
        ([0], False, 2),  # that of three requests, of which two must have no rows
    ):
        step = requests_of(steps[1], chosen)
        if replayed == 2:
            others = steps[1].block_table[1:].unique()
            for x in (drafter, without):
                for cache in x.caches:
                    cache.k[others] = 7
        if warns:
            with pytest.warns(RuntimeWarning, match="no memory for a CUDA graph of [12] requests"):
                drafts = kept(propose(drafter, step))
        else:
            drafts = kept(propose(drafter, step))
        assert recorder.replayed == replayed
        expected = propose(without, step)
        assert torch.equal(drafts.top_ids, expected.top_ids)
        torch.testing.assert_close(drafts.top_logits, expected.top_logits)
        for x, y in zip(drafter.caches, without.caches, strict=True):
            torch.testing.assert_close(x.k, y.k)


def test_other_errors_of_recording_are_raised() -> None:
    recorder = FakeRecorder()
    recorder.failures = [RuntimeError("CUDA error: an illegal memory access")]
    graphs = GraphCache(lambda _: None, lambda _: None, recorder, 4)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        graphs.find(PassShape(1, 1))
    assert graphs.shapes == []


# ---- Fewer drafts --------------------------------------------------------------------------------


def test_any_number_of_drafts(tmp_path: Path, recorder: FakeRecorder) -> None:
    """A pass may draft fewer tokens than K; the first ones are the same."""
    write_drafter(tmp_path)
    drafter, full = load(tmp_path), load(tmp_path)
    steps = passes(drafter.config, F64)
    for x in (drafter, full):
        propose(x, steps[0])
    expected = kept(propose(full, steps[1]))
    for k in (1, 3, K, 1):
        drafts = propose_k(drafter, steps[1], k)
        assert drafts.token_ids.shape == (3, k)
        assert torch.equal(drafts.top_ids, expected.top_ids[:, :k])
        torch.testing.assert_close(drafts.top_logits, expected.top_logits[:, :k])
        torch.testing.assert_close(drafts.lse, expected.lse[:, :k])
    assert recorder.recorded == 3 + 1
    for k in (0, K + 1):
        with pytest.raises(ValueError, match=f"k must be 1 to K = 4, got {k}"):
            propose_k(drafter, steps[1], k)


def propose_k(drafter: Drafter, step: Pass, k: int) -> Drafts:
    return drafter.propose(
        step.target_tokens, step.target_positions, step.taps, step.query_start, step.num_rejected,
        step.next_tokens, step.block_table, k=k,
    )  # fmt: skip


# ---- Chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 18, 57, 58])
def test_chunks_draft_what_the_whole_does(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boundaries within requests, between them, and among rejected rows; no pass is malformed."""
    write_drafter(tmp_path)
    chunked, whole = load(tmp_path, max_target_rows=chunk), load(tmp_path)
    run = chunked._pass.run

    def checked(given: PassInputs, k: int) -> Drafts:
        assert given.num_rows <= chunk
        check_contents(given, len(whole.weights.embedding), 20, whole.block_size)
        return run(given, k)

    monkeypatch.setattr(chunked._pass, "run", checked)
    (prompts,) = passes(whole.config, F64, num_steps=0)
    # The prompts' last rows are rejected: of the second all, of the third more than a chunk.
    prompts = replace(prompts, num_rejected=torch.tensor([0, 17, 9], dtype=torch.int32))
    drafts, expected = propose(chunked, prompts), propose(whole, prompts)
    assert (expected.token_ids[1] == -1).all()
    assert torch.equal(drafts.top_ids, expected.top_ids)
    torch.testing.assert_close(drafts.top_logits, expected.top_logits)
    torch.testing.assert_close(drafts.lse, expected.lse)
    for x, y in zip(chunked.caches, whole.caches, strict=True):
        torch.testing.assert_close(x.k, y.k)
        torch.testing.assert_close(x.v, y.v)


def test_chunks_bound_the_buffers(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path, max_target_rows=8)
    assert len(drafter._buffers.hidden) == max(8 + 3 * (K - 1), 3 * (K + 1) + 3 * (K - 1))
