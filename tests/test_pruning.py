"""The pruned last layer: which rows it computes, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints import write_drafter
from drafter_passes import PROMPTS, SIZES, K, padded, passes, propose
from p_eagle_cuda import Drafter
from p_eagle_cuda.drafter_pass import PRUNE_ABOVE

F64 = torch.float64
NUM_ROWS = sum(PROMPTS) + len(PROMPTS) * (K - 1)  # of the prompts' pass
NUM_KEPT = len(PROMPTS) * K


# Where the ops have their rows, and how many of them exist.
ROWS_OF = {"qkv_rope_cache": (0, 14), "linear_residual": (0, 5), "norm_swiglu": (0, 6)}


class RowCounts(TorchDispatchMode):
    """Notes how many rows each linear op of a pass is given and how many of them exist."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(func).removeprefix("p_eagle.").split(".")[0]
        if name in ROWS_OF:
            x, num_rows = (args[i] for i in ROWS_OF[name])
            self.seen.append((name, len(x), int(num_rows)))
        return func(*args, **(kwargs or {}))


def load(path: Path, prune_above: int, **options: Any) -> Drafter:
    options = {"dtype": F64, "linear": "fused", **SIZES, **options}
    return Drafter.from_pretrained(path, prune_above=prune_above, **options)


def test_only_sampled_rows_go_through_the_last_layer(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path, 0)
    prompts, *_ = passes(drafter.config, F64, num_steps=0)
    with RowCounts() as counts:
        propose(drafter, prompts)
    layer = ["qkv_rope_cache", "linear_residual", "norm_swiglu", "linear_residual"]
    last = ["qkv_rope_cache", *layer]
    num_layers = drafter.config.num_layers
    assert [name for name, *_ in counts.seen] == [*layer * (num_layers - 1), *last]
    rows = [n for _, *n in counts.seen]
    assert rows == [[NUM_ROWS, NUM_ROWS]] * (4 * (num_layers - 1) + 1) + [[NUM_KEPT, NUM_KEPT]] * 4


def test_requests_without_rows_are_not_computed(tmp_path: Path) -> None:
    """Nor is what a bucket has more than there are requests: the count is on the device."""
    write_drafter(tmp_path)
    drafter = load(tmp_path, 0, max_requests=len(PROMPTS) + 2)
    prompts, step = passes(drafter.config, F64, num_steps=1)
    propose(drafter, prompts)
    with RowCounts() as counts:
        propose(drafter, padded(step, len(PROMPTS) + 2, len(step.target_tokens), absent=[1]))
    bucket = (len(PROMPTS) + 2) * K
    assert counts.seen[-1] == ("linear_residual", bucket, (len(PROMPTS) - 1) * K)


@pytest.mark.parametrize("linear", ["fused", "torch"])
def test_drafts_and_caches_stay_the_same(linear: str, tmp_path: Path) -> None:
    """Keys and values of every row are stored; those of the last layer in the same bits."""
    write_drafter(tmp_path, attention_bias=True)
    pruned, whole = (load(tmp_path, n, linear=linear) for n in (0, PRUNE_ABOVE))
    for step in passes(whole.config, F64, num_steps=3):
        drafts, expected = propose(pruned, step), propose(whole, step)
        assert torch.equal(drafts.top_ids, expected.top_ids)
        torch.testing.assert_close(drafts.top_logits, expected.top_logits)
        torch.testing.assert_close(drafts.lse, expected.lse)
        for ours, theirs in zip(pruned.caches, whole.caches, strict=True):
            torch.testing.assert_close(ours.k, theirs.k)
            torch.testing.assert_close(ours.v, theirs.v)


@pytest.mark.parametrize(("prune_above", "is_pruned"), [(NUM_ROWS - 1, True), (NUM_ROWS, False)])
def test_from_how_many_rows_on(prune_above: int, is_pruned: bool, tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path, prune_above)
    prompts, *_ = passes(drafter.config, F64, num_steps=0)
    with RowCounts() as counts:
        propose(drafter, prompts)
    assert (counts.seen[-1][1] == NUM_KEPT) == is_pruned


def test_where_there_is_nothing_to_prune(tmp_path: Path) -> None:
    """A drafter of one layer, whose input is not the residual; fewer rows than drafts."""
    write_drafter(tmp_path, num_hidden_layers=1)
    drafter = load(tmp_path, 0)
    prompts, *_ = passes(drafter.config, F64, num_steps=0)
    with RowCounts() as counts:
        propose(drafter, prompts)
    assert {rows for _, rows, _ in counts.seen} == {NUM_ROWS}
