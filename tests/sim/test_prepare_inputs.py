"""The kernel of prepare_inputs against the reference: ragged and absurd batches, graphs, overlap.

Every output must equal the reference's, whatever the inputs hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from numerics import assert_rounded_once, double
from op_cases import OUTPUTS
from p_eagle_cuda import reference
from pass_cases import simulate
from sim import torch_ops
from sim.emulator import FOUR, Settings
from sim.prepare_inputs_cases import (
    NAME,
    RACE,
    ROWS,
    assert_map,
    assert_right,
    batch,
    expected_of,
    random_batch,
    run,
    with_map,
)
from sim.torch_ops import Arguments

THREADS = 256
SECTOR = 32
INT32 = torch.iinfo(torch.int32)

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)


def test_launch() -> None:
    launch = run(batch([4, 0, 9, 300] + [2] * 7, K=5))  # 331 target rows with the unused
    assert launch.kernel == "prepare_inputs_kernel"
    request_blocks, row_blocks = 2, 2
    assert launch.grid == (request_blocks + row_blocks, 1, 1)
    assert launch.block == (THREADS, 1, 1)
    assert launch.overlaps_previous
    assert launch.dynamic_shared == 0
    assert launch.static_shared <= 4096, "many blocks of the launches around it must fit beside it"
    planning = run(with_map(batch([4, 0, 9, 300] + [2] * 7, K=5)))
    assert (planning.kernel, planning.grid) == (launch.kernel, launch.grid)


# ---- Batches that serving makes ------------------------------------------------------------------


@every_setting
@pytest.mark.parametrize("seed", range(12))
def test_random_batches(seed: int, settings: Settings) -> None:
    run(random_batch(seed), settings)


@every_setting
@pytest.mark.parametrize("K", [1, 4])
def test_prompts_and_verifications(K: int, settings: Settings) -> None:
    prompts = [1, 17, 40, 300, 2]
    _, passes = simulate(
        num_requests=len(prompts), num_steps=3, K=K, vocab_size=97, num_taps=1, target_hidden=1,
        block_size=16, prompt_lengths=prompts,
    )  # fmt: skip
    for step in passes:
        lengths = step.query_start.diff().tolist()
        arguments = batch(lengths, K=K, block_size=16, num_unused=0)
        run(arguments | {name: getattr(step, name) for name in list(arguments)[:6]}, settings)


@pytest.mark.parametrize(
    "num_requests", [1, 7, 8, 9, 31, 32, 33, 255, 256, 257, 511, 512, 513, 1024]
)
def test_numbers_of_requests(num_requests: int) -> None:
    """Both sides of a block of requests, of a warp's part in the scan, and of a tile."""
    lengths = [(3 * i) % 5 for i in range(num_requests)]
    run(with_map(batch(lengths, [i % 3 for i in range(num_requests)], max_blocks=5)))


@every_setting
def test_three_tiles_of_requests(settings: Settings) -> None:
    lengths = [i % 3 for i in range(2 * THREADS + 50)]
    lengths[100:400] = [0] * 300  # and a tile whose middle has no rows
    run(batch(lengths, K=2, max_blocks=3), settings)
    prompts = batch(lengths, K=2, max_blocks=3)
    run(with_map(prompts, num_heads=256, num_kv_heads=1, num_blocks=300), settings)


@pytest.mark.parametrize("num_rows", [1, 31, 32, 255, 256, 257, 511, 512, 513])
def test_numbers_of_rows(num_rows: int) -> None:
    """Rows up to both sides of a block's end, and all are used."""
    run(batch([num_rows], K=1, max_blocks=200, num_unused=0))


def test_one_prompt_of_a_hundred_thousand_rows() -> None:
    arguments = batch([100_000], K=7, block_size=16, max_blocks=6300, max_position=200_000)
    arguments["block_table"][0, 6001] = -1
    run(with_map(arguments, num_heads=4, num_kv_heads=1), FOUR["random"])
    assert arguments["seq_lens"].tolist() == [6001 * 16]


def test_1024_requests_of_a_full_verification() -> None:
    arguments = batch([8] * 1024, [i % 9 for i in range(1024)], K=7, max_blocks=6)
    run(with_map(arguments, num_blocks=264), FOUR["random"])


# ---- What the contract promises ------------------------------------------------------------------


@pytest.mark.parametrize("K", [1, 2, 31, 32, 33, 70])
def test_numbers_of_drafts(K: int) -> None:
    """Samples of a request are written by a warp, in turns where they are more than its lanes."""
    run(batch([2, 0, 5], [0, 0, 5], K=K))


@pytest.mark.parametrize("T", [0, 3])
def test_no_request_has_rows(T: int) -> None:
    arguments = with_map(batch([0] * 20, num_unused=T))
    run(arguments)
    assert arguments["work"][:2].tolist() == [0, 0], "no segments, no tiles"
    assert (arguments["row_start"] == 0).all()
    assert (arguments["seq_lens"] == 0).all()


@every_setting
def test_no_requests(settings: Settings) -> None:
    arguments = with_map(batch([], num_unused=0))
    run(arguments, settings)
    assert arguments["row_start"].tolist() == [0]


def test_padding_drops_out() -> None:
    """A batch with requests without rows, whatever else is said of them, is that without them."""
    numbers = {"K": 3, "num_unused": 0}
    alone = with_map(batch([4, 9], [1, 2], [5, 30], **numbers))
    padded = with_map(batch([4, 0, 9, 0, 0], [1, 0, 2, 7, 0], [5, 0, 30, 0, 0], **numbers))
    garbage = {"next_tokens": INT32.max * 9, "block_table": INT32.max}
    for name in ("target_tokens", "target_positions"):
        padded[name].copy_(alone[name])
    for name, value in garbage.items():
        padded[name].fill_(value)
        padded[name][[0, 2]] = alone[name]
    traffic = [run(arguments).traffic for arguments in (alone, padded)]
    n = int(alone["row_start"][-1])
    for name in ("token_ids", "positions", "slots", "source_row"):
        assert torch.equal(padded[name][:n], alone[name][:n]), name
    assert (padded["slots"][n:] == -1).all()
    assert padded["row_start"].tolist() == [0, 5, 5, n, n, n]
    assert padded["seq_lens"].tolist() == [10, 0, 39, 0, 0]
    assert padded["sample_rows"].tolist() == [2, 3, 4, -1, -1, -1, 11, 12, 13] + [-1] * 6
    for name in garbage:
        read = [moved[name].read.bytes for moved in traffic]
        assert read[0] == read[1], f"{name} of padding was read"
    parts = [arguments["work"] for arguments in (alone, padded)]
    assert torch.equal(parts[0][:3], parts[1][:3]), "as many segments and tiles"


@pytest.mark.parametrize("max_blocks", [0, 1, 2, 3])
def test_block_tables_with_few_columns(max_blocks: int) -> None:
    """Of a request that starts before the table's end, at it, and past it."""
    run(batch([6, 6, 6, 1], starts=[0, 4, 9, 8], max_blocks=max_blocks))


@pytest.mark.parametrize("max_position", range(6, 18))
def test_positions_past_the_last(max_position: int) -> None:
    """Among a request's real rows, its mask rows, and before both."""
    run(with_map(batch([5, 5], [0, 3], [8, 14], max_position=max_position)))


def test_a_request_past_the_last_position_drops_out_alone() -> None:
    """Of what it has yet to draft; the other requests' rows are as they would be without."""
    free = with_map(batch([2, 2, 2], starts=[3, 9, 12]))
    bounded = free | {"max_position": 12}
    bounded |= {name: free[name].clone() for name in OUTPUTS[NAME]}
    run(free)
    run(bounded)
    for name in ("token_ids", "positions", "slots", "source_row"):
        assert torch.equal(free[name][:4], bounded[name][:4]), name
    assert bounded["slots"][4:7].tolist() == free["slots"][4:7].tolist()
    assert (bounded["slots"][7:12] == -1).all()
    assert bounded["seq_lens"].tolist() == [7, 12, 12]
    assert bounded["sample_rows"].tolist() == [1, 2, 3, 5, 6, -1, -1, -1, -1]


LONG, LONG_START = 2000, 3


@pytest.mark.parametrize("block_size", [1, 3])
@pytest.mark.parametrize("missing", [0, 1, 31, 32, 255, 256, 257, 600, LONG])
def test_the_first_column_without_a_block(missing: int, block_size: int) -> None:
    """Keys end there, whichever lane and step of the warp looks at it, and whatever follows."""
    max_blocks = LONG_START + LONG + 2
    arguments = batch(
        [LONG], starts=[LONG_START], block_size=block_size, max_blocks=max_blocks,
        max_position=max_blocks * block_size,
    )  # fmt: skip
    column = LONG_START // block_size + missing
    arguments["block_table"][0, torch.tensor([column, column + 1, -1])] = -1
    run(arguments)
    end = min(max(column * block_size, LONG_START), LONG_START + LONG + 2)
    assert arguments["seq_lens"].tolist() == [end]


def test_columns_of_other_positions_do_not_matter() -> None:
    arguments = batch([3, 3], starts=[17, 17], K=2)  # positions 17 to 20, columns 4 and 5
    arguments["block_table"][0, [0, 1, 2, 3, 6]] = -1
    run(arguments)
    assert arguments["seq_lens"].tolist() == [21, 21]


@pytest.mark.parametrize(("block_size", "max_position"), [(2**40, 2**50), (2**62, 2**63 - 1)])
def test_sizes_of_64_bits(block_size: int, max_position: int) -> None:
    starts = [0, 2**32 + 5, 2**40 - 2, 2**41 - 1, 2**62 - 3]
    arguments = batch(
        [4] * 5, starts=starts, block_size=block_size, max_position=max_position, max_blocks=2
    )
    arguments["block_table"].clamp_(max=1)
    run(arguments)  # a map would be of too many keys


# ---- What no caller should give ------------------------------------------------------------------


COUNTS, PLACES = ("query_start", "num_rejected"), ("target_positions", "block_table")


@every_setting
@pytest.mark.parametrize("spoiled", [COUNTS, PLACES, COUNTS + PLACES], ids="-and-".join)
@pytest.mark.parametrize("seed", range(4))
def test_garbage(seed: int, spoiled: Sequence[str], settings: Settings) -> None:
    """No index leaves its tensor, and the results are the reference's."""
    arguments = random_batch(101 + seed)
    if arguments["work"] is None:
        arguments["block_size"] = 2**62  # then all that is negative is in a column below 4
    g = torch.Generator().manual_seed(seed)
    T = arguments["target_tokens"].numel()
    extremes = [INT32.min, INT32.min + 1, -1, 0, 1, INT32.max - 1, INT32.max]
    garbage = {
        "query_start": [*extremes, T - 1, T, T + 1],
        "num_rejected": [*extremes, -2, -5],
        "target_positions": [-1, -3, -(2**62), 2**31 - 2, 2**32 + 1, 2**62],
        "block_table": extremes,
    }
    for name in spoiled:
        x = arguments[name]
        values = torch.tensor(garbage[name], dtype=x.dtype)
        chosen = torch.rand(x.shape, generator=g) < 0.3
        x[chosen] = values[torch.randint(len(values), x.shape, generator=g)][chosen]
    torch_ops.call(NAME, arguments, settings)
    if arguments["work"] is not None:
        assert_map(arguments)
    # Of a request with more rows than there are, the reference looks for the first without a slot
    # only among those that there are.
    expected, R = expected_of(arguments), arguments["token_ids"].numel()
    query_len = arguments["query_start"].diff().long()
    num_valid = (query_len - arguments["num_rejected"]).clamp(min=0)
    num_rows = num_valid + (num_valid > 0) * (arguments["num_speculative_tokens"] - 1)
    outside = num_rows.cumsum(0) > R
    assert not (outside.any() and spoiled == PLACES)
    for name in ("seq_lens", "sample_rows"):
        per_request = (len(outside), -1)
        got, wanted = (x[name].view(per_request) for x in (arguments, expected))
        got[outside] = wanted[outside]
    assert_right(arguments)


@every_setting
def test_positions_that_overflow(settings: Settings) -> None:
    arguments = batch([4, 4], starts=[0, 0], block_size=1, max_position=2**63 - 1)
    arguments["target_positions"][:] = 2**63 - 2
    torch_ops.call(NAME, arguments, settings)
    arguments |= {name: expected_of(arguments)[name] for name in ("seq_lens", "sample_rows")}
    assert_right(arguments)


WRONG_NUMBERS = [
    ("num_speculative_tokens", 0, "`num_speculative_tokens` must be at least 1, got 0"),
    ("mask_token_id", -1, "`mask_token_id` must not be negative, got -1"),
    ("block_size", 0, "`block_size` must be at least 1, got 0"),
    ("max_position", 0, "`max_position` must be at least 1, got 0"),
    ("num_speculative_tokens", 2**30, r"T \+ B \* K must be below 2\*\*31, got T = 8, B = 2, K ="),
    ("num_speculative_tokens", 2**62, r"T \+ B \* K must be below 2\*\*31, got T = 8, B = 2, K ="),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), WRONG_NUMBERS)
def test_numbers_out_of_range(name: str, value: int, message: str) -> None:
    """The host layer says the same as the op on the CPU."""
    arguments = batch([2, 4]) | {name: value}
    for op in (torch.ops.p_eagle.prepare_inputs, torch_ops.op(NAME)):
        with pytest.raises((ValueError, RuntimeError), match=f"prepare_inputs: {message}"):
            op(*arguments.values())


def test_target_rows_of_no_request() -> None:
    arguments = batch([], num_unused=3)
    with pytest.raises(RuntimeError, match="must have a request for the 3 target rows"):
        torch_ops.call(NAME, arguments, RACE)


# ---- Memory, graphs and overlap ------------------------------------------------------------------


def test_traffic_is_what_must_move() -> None:
    B, K, T = 64, 7, 64 * 8
    rejected = [i % 8 for i in range(B)]
    arguments = batch(
        [8] * B, rejected, [16 * i for i in range(B)], K=K, block_size=16, max_blocks=80,
        max_position=2000, num_unused=0,
    )  # fmt: skip
    traffic = run(arguments).traffic
    for name in ROWS:
        x = arguments[name]
        assert traffic[name].written.bytes == x.numel() * x.element_size(), name
        assert traffic[name].read.bytes == 0, name
    num_last, num_valid = B, 8 * B - sum(rejected)
    assert traffic["next_tokens"].read.bytes == 8 * num_last
    assert traffic["target_tokens"].read.bytes == 8 * (num_valid - num_last)
    assert traffic["target_positions"].read.unique_sectors == B
    assert traffic["block_table"].read.unique_sectors <= 2 * B
    written = sum(arguments[name].nbytes for name in ROWS)
    inputs = 4 * (B + 1) + 4 * B + 8 * T + 8 * B + SECTOR * B + 2 * SECTOR * B
    sectors = sum(x.read.unique_sectors + x.written.unique_sectors for x in traffic.values())
    assert sectors * SECTOR <= 1.01 * (written + inputs)


@every_setting
def test_a_captured_call_is_replayed_on_changed_inputs(settings: Settings) -> None:
    lengths = [3, 5, 0, 8]
    with torch_ops.emulator().session(settings) as session:
        arguments = torch_ops.guarded(session, NAME, with_map(batch(lengths)))
        with session.capture() as graph:
            torch_ops.op(NAME)(*arguments.values())
        assert graph.num_nodes == 1
        session.check()
        assert not session.launches, "a captured launch must not run"
        for lengths, rejected in (
            ([3, 5, 0, 8], [1, 0, 0, 9]),
            ([0] * 4, [0] * 4),
            ([1, 6, 9, 0], [0, 5, 1, 2]),
        ):
            arguments["query_start"].copy_(torch.tensor([0, *lengths]).cumsum(0))
            arguments["num_rejected"].copy_(torch.tensor(rejected))
            arguments["target_positions"].copy_(torch.arange(18) + 5)
            arguments["block_table"].random_(-1, 50)
            graph.replay()
            session.check()
            assert_right(arguments)
            assert_map(arguments)
        assert len(session.launches) == 3


def layer_0_inputs(prepared: Arguments, vocab_size: int, hidden_size: int) -> Arguments:
    """A call of embed_norm_concat for the rows of `prepared`."""
    R = prepared["token_ids"].numel()
    vectors = {name: torch.randn(hidden_size).bfloat16()
               for name in ("mask_hidden", "embed_weight", "hidden_weight")}  # fmt: skip
    return {
        "token_ids": prepared["token_ids"],
        "source_row": prepared["source_row"],
        "num_rows": prepared["row_start"][-1:],
        "embedding": torch.randn(vocab_size, hidden_size).bfloat16(),
        "hidden": torch.randn(R, hidden_size).bfloat16(),
        **vectors,
        "eps": 1e-5,
        "norm_before_residual": False,
        "out": torch.full((R, 2 * hidden_size), float("nan")).bfloat16(),
        "residual": torch.full((R, hidden_size), float("nan")).bfloat16(),
    }


@every_setting
def test_overlaps_with_the_launches_around_it(settings: Settings) -> None:
    """Three launches without a synchronisation: one before that makes its inputs, one after.

    The first is another call, whose rows are the second's target rows.
    """
    vocab_size = 90
    small = {"mask_token_id": 80, "target_tokens": torch.randint(80, (14,))}
    small["next_tokens"] = torch.randint(80, (3,))
    first = batch([3, 0, 9], [1, 0, 2]) | small
    R = first["token_ids"].numel()
    small["target_tokens"] = torch.zeros(R, dtype=torch.int64)
    second = batch([0, 0, 0], [2, 0, 4], num_unused=R) | small
    with torch_ops.emulator().session(settings) as session:
        first = torch_ops.guarded(session, NAME, first)
        second = torch_ops.guarded(session, NAME, second)
        third = layer_0_inputs(second, vocab_size, hidden_size=128)
        third = torch_ops.guarded(session, "embed_norm_concat", third)
        second |= {
            "target_tokens": first["token_ids"],
            "target_positions": first["positions"],
            "query_start": first["row_start"],
        }
        third |= {name: second[name] for name in ("token_ids", "source_row")}
        third["num_rows"] = second["row_start"][-1:]
        for name, arguments in ((NAME, first), (NAME, second), ("embed_norm_concat", third)):
            torch_ops.op(name)(*arguments.values())
    assert [launch.overlaps_previous for launch in session.launches] == [True] * 3
    assert_right(first)
    assert_right(second)
    n = int(second["row_start"][-1])
    assert n == (2 + 2 - 2 + 2) + (7 + 2 - 4 + 2)
    a = {name: double(x) for name, x in third.items()}
    out, residual = reference.embed_norm_concat(
        second["token_ids"][:n], second["source_row"][:n], a["embedding"], a["hidden"][:n],
        a["mask_hidden"], a["embed_weight"], a["hidden_weight"], a["eps"], False,
    )  # fmt: skip
    assert_rounded_once("out", third["out"][:n], out)
    assert_rounded_once("residual", third["residual"][:n], residual)


@every_setting
def test_waits_in_a_launch_without_rows(settings: Settings) -> None:
    """A launch that left without waiting would let the third start before the first has ended."""
    first, second, third = batch([3, 5]), batch([], num_unused=0), batch([3, 5])
    with torch_ops.emulator().session(settings) as session:
        first, second, third = (torch_ops.guarded(session, NAME, x) for x in (first, second, third))
        third |= {"query_start": first["row_start"], "num_rejected": first["seq_lens"]}
        for arguments in (first, second, third):
            torch_ops.op(NAME)(*arguments.values())
    for arguments in (first, second, third):
        assert_right(arguments)
