"""The launches of the attention ops: shape, bytes moved, graphs, overlap; and the map's bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_cases import SPARE_ROWS, assert_right, attention_case
from op_cases import CASES, Arguments, plan
from p_eagle_cuda import _C, ops
from sim import torch_ops
from sim.emulator import FOUR, Launch, Settings

NAME = "paged_attention"
SECTOR = 32
RACE = FOUR["in-order-race"]
E4M3 = torch.float8_e4m3fn

every_setting = pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)


def test_launch() -> None:
    (launch,) = torch_ops.call(NAME, attention_case([100], [3], num_blocks=6), RACE)
    assert launch.kernel == "paged_attention_kernel"
    assert (launch.grid, launch.block, launch.cluster) == ((6, 1, 1), (256, 1, 1), (1, 1, 1))
    assert launch.overlaps_previous
    assert launch.matrix_instructions > 0


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("cache_dtype", [None, E4M3], ids=str)
def test_shared_memory_fits_every_gpu(head_dim: int, cache_dtype: torch.dtype | None) -> None:
    """A block may have 99 KB on sm_89 and sm_120."""
    case = attention_case([200], [3], head_dim=head_dim, cache_dtype=cache_dtype)
    (launch,) = torch_ops.call(NAME, case, RACE)
    assert launch.dynamic_shared + launch.static_shared <= 99 * 1024
    assert launch.shared_wavefronts <= 1.02 * launch.shared_wavefronts_minimum


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("cache_dtype", [None, E4M3], ids=str)
def test_keys_and_values_are_read_once(
    cache_dtype: torch.dtype | None, head_dim: int, block_size: int
) -> None:
    """Decoding with K = 7, 8 heads a group: all 15 rows of a request share one read."""
    lens, rows = [600, 350, 64, 333], [15, 9, 8, 11]
    case = attention_case(
        lens, rows, head_dim=head_dim, group=8, cache_dtype=cache_dtype, block_size=block_size
    )
    (launch,) = torch_ops.call(NAME, case, RACE)
    must_move = sum(lens) * 2 * 2 * head_dim * case["k_cache"].element_size()
    read = launch.traffic["k_cache and v_cache"].read
    assert must_move <= read.unique_sectors * SECTOR <= 1.05 * must_move
    assert must_move <= read.sectors * SECTOR <= 1.05 * must_move
    assert read.bytes == must_move
    row_bytes = 8 * 2 * 2 * head_dim
    assert launch.traffic["out"].written.bytes == sum(rows) * row_bytes
    assert launch.traffic["q"].read.unique_sectors * SECTOR == sum(rows) * row_bytes


def test_a_window_bounds_what_is_read() -> None:
    case = attention_case([1000, 1000], [4, 4], window=100)
    (launch,) = torch_ops.call(NAME, case, RACE)
    keys = 2 * (100 + 3)
    must_move = keys * 2 * 2 * 64 * 2
    assert launch.traffic["k_cache and v_cache"].read.bytes == must_move


def test_partial_results_do_not_grow_with_the_batch() -> None:
    """Two of at most 128 rows for each thread block, written and read once."""
    case = attention_case([700] * 4, [4] * 4, num_blocks=5)
    (launch,) = torch_ops.call(NAME, case, RACE)
    partial = 16 * (64 + 2) * 4  # 4 rows of 4 heads
    written = launch.traffic["workspace"].written.bytes
    assert 0 < written <= 2 * 5 * partial + 5 * 2 * 4


def test_all_copies_are_of_16_bytes() -> None:
    """PTX has .cg copies of 16 bytes only."""
    kinds = set(re.findall(rb"cp\.async\.(c[ag])\.", torch_ops.emulator().path.read_bytes()))
    assert kinds == {b"cg"}


# ---- What the host layer refuses -----------------------------------------------------------------


def misaligned(x: Tensor) -> Tensor:
    """The same, 8 bytes past a vector; strides are as they were."""
    storage = torch.empty(x.untyped_storage().nbytes() // x.element_size() + 64, dtype=x.dtype)
    return storage.as_strided(x.shape, x.stride(), 8 // x.element_size()).copy_(x)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"head_dim": 32}, {}, "the head size must be 64 or 128, got 32"),
        ({"block_size": 8}, {}, "the block size must be 16, 32, 64 or 128, got 8"),
        ({}, {"workspace": lambda x: x[:-1]}, "`workspace` must have 337952 bytes for 5 thread"),
        ({}, {"work": lambda x: x[:-5]}, "`work` must have more than"),
        ({}, {"k_cache": misaligned}, "`k_cache` must have 16-byte aligned rows, got an address 8"),
        ({"dtype": torch.float16}, {"q": lambda x: x.float()}, "dtype must be bfloat16 or float16"),
        ({}, {"tree_mask": lambda _: torch.zeros(4, dtype=torch.int64)}, "`tree_mask` must have"),
        ({}, {"sinks": lambda _: torch.zeros(8).bfloat16()}, "`sinks` must have dtype"),
        ({}, {"window": lambda _: -1}, "`window` must be 0 to 1073741824, got -1"),
        ({}, {"softmax_scale": lambda _: 0.0}, "`softmax_scale` must be above 0, got 0"),
        ({"separate": True}, {"v_cache": lambda x: x[..., 1:]}, "`v_cache` must have shape"),
    ],
)
def test_refuses(
    options: dict[str, Any], changes: dict[str, Callable[[Any], Any]], message: str
) -> None:
    arguments = attention_case([40], [2], **options)
    arguments |= {name: change(arguments[name]) for name, change in changes.items()}
    with (
        torch_ops.emulator().session(RACE) as session,
        pytest.raises(RuntimeError, match=f"paged_attention: {message}"),
    ):
        torch_ops.op(NAME)(*torch_ops.guarded(session, NAME, arguments).values())


# ---- Graphs and dependent launches ---------------------------------------------------------------


def planning(arguments: Arguments) -> list[object]:
    """The arguments of plan_attention for a call of paged_attention."""
    k_cache = arguments["k_cache"]
    return [
        arguments["row_start"], arguments["seq_lens"], arguments["positions"],
        arguments["q"].shape[1], k_cache.shape[1],
        arguments["block_table"].shape[1] * k_cache.shape[2], arguments["window"],
        arguments["tree_mask"] is not None, arguments["work"],
    ]  # fmt: skip


def take_over(target: Arguments, source: Arguments) -> None:
    """Copy the contents of another batch into the buffers of a captured one."""
    for name in ("q", "row_start", "seq_lens", "positions", "block_table"):
        target[name].copy_(source[name])
    for name in ("k_cache", "v_cache"):
        target[name].copy_(source[name])


@every_setting
def test_a_captured_pass_is_replayed_on_other_batches(settings: Settings) -> None:
    """Map and attention of two layers, captured once; lengths, rows and block tables change."""
    batches = [([700, 3, 90], [4, 2, 6]), ([0, 704, 112], [1, 7, 4]), ([704, 16, 81], [12, 0, 0])]
    cases = [attention_case(lens, rows, num_blocks=6) for lens, rows in batches]
    blocks = {case["k_cache"].shape for case in cases}
    assert len(blocks) == 1, "expected caches of one size"
    captured = attention_case(*batches[0], num_blocks=6)
    captured["work"].zero_()
    with torch_ops.emulator().session(settings) as session:
        copies = torch_ops.guarded(session, NAME, captured, ["work"])
        other = torch_ops.guarded(session, NAME, {"out": captured["out"]})
        with session.capture() as graph:
            torch_ops.op("plan_attention")(*planning(copies))
            torch_ops.op(NAME)(*copies.values())
            torch_ops.op(NAME)(*(copies | other).values())
        assert graph.num_nodes == 3
        for case in cases:
            take_over(copies, case)
            graph.replay()
            session.check()
            case["out"] = copies["out"]
            assert_right(case)
            n = int(case["row_start"][-1])
            assert torch.equal(copies["out"][:n], other["out"][:n])
            copies["out"].fill_(7)
        assert len(session.launches) == 9


@every_setting
def test_overlaps_with_the_launches_it_depends_on(settings: Settings) -> None:
    """The map is written by the launch before; the second attention's q is the first's result.

    Between the two, a launch that has nothing to do: if its blocks left without waiting, the last
    could start before the first has ended.
    """
    first, second, idle = (attention_case([500, 70], [4, 2], num_blocks=4) for _ in range(3))
    idle["row_start"].zero_()
    for arguments in (first, second):
        arguments["work"].zero_()
    plan(idle)
    with torch_ops.emulator().session(settings) as session:
        first, second, idle = (
            torch_ops.guarded(session, NAME, case, ["work"]) for case in (first, second, idle)
        )
        second["q"] = first["out"].view(first["q"].shape)
        torch_ops.op("plan_attention")(*planning(second))
        torch_ops.op("plan_attention")(*planning(first))
        torch_ops.op(NAME)(*first.values())
        torch_ops.op(NAME)(*idle.values())
        torch_ops.op(NAME)(*second.values())
    for arguments in (first, second):
        arguments["out"] = arguments["out"].clone()
        assert_right(arguments)


# ---- The map -------------------------------------------------------------------------------------


def plan_case(
    lens: torch.Tensor, rows: torch.Tensor, *, is_tree: bool, window: int, num_blocks: int
) -> Arguments:
    case = CASES["plan_attention"]("cpu", torch.bfloat16)
    R, B = int(rows.sum()) + SPARE_ROWS, len(rows)
    positions = torch.zeros(R, dtype=torch.int64)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), rows.cumsum(0)])
    for begin, n, length in zip(starts.tolist(), rows.tolist(), lens.tolist(), strict=False):
        positions[begin : begin + n] = length - n + torch.arange(n)
    return case | {
        "row_start": starts.int(),
        "seq_lens": lens.int(),
        "positions": positions,
        "num_heads": 24,
        "num_kv_heads": 3,
        "max_keys": 1 << 16,
        "window": window,
        "is_tree": is_tree,
        "work": torch.full((_C.attention_work_size(R, B, 8, num_blocks),), 7, dtype=torch.int32),
    }


def assert_same_bits(case: Arguments, settings: Settings) -> Launch:
    by_cpu = case | {"work": case["work"].clone()}
    ops.plan_attention(**by_cpu)
    (launch,) = torch_ops.call("plan_attention", case, settings)
    assert torch.equal(case["work"], by_cpu["work"])
    return launch


@every_setting
@pytest.mark.parametrize(("is_tree", "window"), [(False, 0), (True, 0), (False, 70), (True, 9)])
def test_the_map_has_the_bits_of_the_cpu(settings: Settings, is_tree: bool, window: int) -> None:
    """More requests and more segments than threads, prompts among them."""
    lens = torch.randint(0, 5000, (300,))
    rows = torch.randint(0, 12, (300,))
    rows[torch.randint(300, (4,))] = 500
    case = plan_case(lens, rows, is_tree=is_tree, window=window, num_blocks=264)
    launch = assert_same_bits(case, settings)
    assert (launch.grid, launch.block) == ((1, 1, 1), (256, 1, 1))
    assert launch.overlaps_previous


@pytest.mark.parametrize("is_tree", [False, True])
def test_the_map_of_absurd_inputs(is_tree: bool) -> None:
    int32 = {"dtype": torch.int32}
    for _ in range(10):
        case = plan_case(
            torch.tensor([3, 5, 7]), torch.tensor([2, 3, 4]), is_tree=is_tree, window=6,
            num_blocks=5,
        )  # fmt: skip
        for name in ("row_start", "seq_lens"):
            shape = case[name].shape
            wide = torch.randint(-(2**31), 2**31, shape)
            near = torch.randint(-20, 20, shape)
            case[name] = torch.where(torch.rand(shape) < 0.4, wide, near).to(**int32)
        case["positions"] = torch.where(
            torch.rand(len(case["positions"])) < 0.5,
            torch.randint(-(2**63), 2**63 - 1, case["positions"].shape), case["positions"],
        )  # fmt: skip
        assert_same_bits(case, RACE)
