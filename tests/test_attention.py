"""The masks of attention against one softmax per row, and the division of its work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from p_eagle_cuda import _C, attention_work, ops, reference

NKV, GROUP, D, BLOCK = 2, 3, 16, 16
NQ = NKV * GROUP
LENGTH, ROWS = 37, 5  # keys of the request, the last of which are those of its rows
FIRST = LENGTH - ROWS


def attend(
    is_visible: Callable[[int, int], bool],
    *,
    sinks: Tensor | None = None,
    positions: Sequence[int] = range(FIRST, LENGTH),
    tree_mask: Sequence[int] | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """The op's result for one request, and what follows from which row sees which key."""
    k, v = torch.randn(2, 3, NKV, BLOCK, D, dtype=torch.float64)
    q, blocks = torch.randn(ROWS, NQ, D, dtype=torch.float64), torch.tensor([2, 0, 1])
    actual = ops.paged_attention(
        q, k, v, torch.ones(1), torch.ones(1), blocks[None].int(),
        torch.tensor([0, ROWS], dtype=torch.int32), torch.tensor([LENGTH], dtype=torch.int32),
        torch.tensor(positions), None if tree_mask is None else torch.tensor(tree_mask), sinks,
        window=window,
    ).view(ROWS, NQ, D)  # fmt: skip
    expected = torch.zeros_like(actual)
    for row in range(ROWS):
        seen = [i for i in range(LENGTH) if is_visible(row, i)]
        if not seen:
            continue
        for head in range(NQ):
            where = [(int(blocks[i // BLOCK]), head // GROUP, i % BLOCK) for i in seen]
            keys, values = (torch.stack([x[at] for at in where]) for x in (k, v))
            weights = (keys @ q[row, head] / D**0.5).exp()
            total = weights.sum() + (0 if sinks is None else sinks[head].double().exp())
            expected[row, head] = weights @ values / total
    return actual, expected


@pytest.mark.parametrize("window", [1, 4, 33, 100])
def test_a_window(window: int) -> None:
    torch.testing.assert_close(
        *attend(lambda row, key: FIRST + row - window < key <= FIRST + row, window=window)
    )


def test_sinks_take_weight_and_give_no_value() -> None:
    sinks = torch.linspace(-2, 3, NQ)
    torch.testing.assert_close(*attend(lambda row, key: key <= FIRST + row, sinks=sinks))


def test_a_tree() -> None:
    """A root with two children, of which the first has two."""
    masks = [0b00001, 0b00011, 0b00101, 0b01011, 0b10011]
    depths = [0, 1, 1, 2, 2]
    torch.testing.assert_close(
        *attend(
            lambda row, key: key < FIRST or bool(masks[row] >> (key - FIRST) & 1),
            positions=[FIRST + depth for depth in depths], tree_mask=masks,
        )
    )  # fmt: skip


def test_a_window_over_a_tree_cuts_only_what_came_before() -> None:
    masks, positions, window = [1, 2, 4, 9, 31], [FIRST, *[FIRST + 1] * 4], 3
    torch.testing.assert_close(
        *attend(
            lambda row, key: key > positions[row] - window
            if key < FIRST
            else bool(masks[row] >> (key - FIRST) & 1),
            positions=positions, tree_mask=masks, window=window,
        )
    )  # fmt: skip


def test_a_chain_is_causal() -> None:
    chain = [2 ** (row + 1) - 1 for row in range(ROWS)]
    results = []
    for mask in (None, chain):
        torch.manual_seed(0)
        results.append(attend(lambda *_: True, tree_mask=mask)[0])
    assert torch.equal(*results)


def test_the_last_bit_of_a_mask_and_keys_past_it() -> None:
    """Bit 63 is the sign; with the request's first row at 0 there are keys of more rows than 64."""
    length = 70
    visible = reference.visible_keys(
        length, torch.zeros(1, dtype=torch.int64), torch.tensor([-(2**63) + 1]), 0
    )
    assert visible[0].nonzero().flatten().tolist() == [0, 63]


def test_rows_that_see_nothing_get_zeros() -> None:
    masks = [0] * ROWS
    for sinks in (None, torch.zeros(NQ)):
        actual, expected = attend(
            lambda row, key: False, sinks=sinks, positions=[0] * ROWS, tree_mask=masks
        )
        assert torch.equal(actual, expected)


# ---- The division of the work --------------------------------------------------------------------


def plan(
    lens: Sequence[int],
    rows: Sequence[int],
    *,
    group: int = 8,
    num_kv_heads: int = 2,
    num_blocks: int = 10,
    window: int = 0,
    is_tree: bool = False,
) -> attention_work.AttentionWork:
    """Requests whose last keys are those of their rows."""
    starts = [0]
    for n in rows:
        starts.append(starts[-1] + n)
    positions = [n - r + i for n, r in zip(lens, rows, strict=True) for i in range(r)]
    return attention_work.plan_attention(
        torch.tensor(starts, dtype=torch.int32), torch.tensor(lens, dtype=torch.int32),
        torch.tensor(positions, dtype=torch.int64), group * num_kv_heads, num_kv_heads, 1 << 20,
        window, is_tree, num_blocks, _C.attention_max_segments(sum(rows), len(rows), group),
    )  # fmt: skip


def test_every_block_gets_the_same_number_of_tiles() -> None:
    work = plan([1000, 64, 65, 3000], [8, 3, 1, 16])
    tiles = [16, 1, 2, 47]
    assert work.segments[:, 3].tolist() == tiles
    assert work.num_tiles == 2 * sum(tiles)
    assert work.tiles_per_block == -(-work.num_tiles // 10)
    starts = work.segments[:, 4].tolist()
    for block, segment in enumerate(work.first_segment.tolist()):
        place = block * work.tiles_per_block
        assert starts[segment] <= place < starts[segment] + 2 * tiles[segment]


def test_a_small_pass_leaves_blocks_without_work() -> None:
    work = plan([100, 0], [2, 0])
    assert (work.num_tiles, work.tiles_per_block) == (4, 4)
    assert work.first_segment.tolist() == [0, *[1] * 9]
    assert work.request_segment.tolist() == [0, 1]


def test_tiles_of_rows_end_where_the_causal_mask_does() -> None:
    """A prompt of 100 rows of 3 heads: 300 packed rows in tiles of 128, 128 and 44."""
    work = plan([400], [100], group=3)
    assert work.segments[:, 1].tolist() == [0, 1, 2]
    assert work.segments[:, 6].tolist() == [343, 386, 400]  # one past the position of the last row
    windowed = plan([400], [100], group=3, window=20)
    assert windowed.segments[:, 5].tolist() == [281, 323, 366]
    assert windowed.segments[:, 2].tolist() == [4, 5, 5]
    assert windowed.segments[:, 3].tolist() == [2, 2, 2]


def test_the_keys_of_a_tree_are_those_of_all_its_rows() -> None:
    assert plan([400], [40], is_tree=True).segments[:, 6].tolist() == [400] * 3
    work = plan([400], [100], is_tree=True)
    assert work.segments[:, 6].tolist() == [364] * 7
    work = plan([400], [40], is_tree=True, window=10)
    assert work.segments[:, 5].tolist() == [351] * 3


def test_absurd_inputs_are_clamped() -> None:
    int32 = {"dtype": torch.int32}
    work = attention_work.plan_attention(
        torch.tensor([-5, 7, 2, 99], **int32), torch.tensor([-1, 2**31 - 1, 9], **int32),
        torch.tensor([-(2**63), 2**63 - 1, -3, 2, 8]), 16, 2, 128, 0, False, 3, 3,
    )  # fmt: skip
    assert work.segments[:, 0].tolist() == [0, 2]
    assert work.segments[:, 3].tolist() == [1, 1]
    assert work.segments[:, 6].tolist() == [0, 9]
