"""The reference against formulations that share nothing with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import drafter_config, drafter_tensors, write_checkpoint
from dense_drafter import DenseDrafter, causal, parallel_mask
from drafter_variants import VARIANTS
from p_eagle_cuda import reference
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.weights import DrafterWeights, load_drafter_weights
from pass_cases import simulate

K = 4
BLOCK_SIZE = 16


def load(
    path: Path, overrides: dict[str, Any]
) -> tuple[DrafterConfig, DrafterWeights, DenseDrafter]:
    """The same random drafter twice: packed in float64, and the independent one."""
    raw = drafter_config(**overrides)
    tensors = drafter_tensors(raw)
    write_checkpoint(path, raw, tensors)
    config = DrafterConfig.from_pretrained(path)
    weights = load_drafter_weights(path, config, dtype=torch.float64)
    return config, weights, DenseDrafter(raw, tensors)


def assert_same_drafts(
    actual: tuple[torch.Tensor, ...], expected: torch.Tensor, to_target: torch.Tensor | None
) -> None:
    """Top-3 ids, logits and log-sum-exp of rows against full logits."""
    ids, logits, lse = actual
    best = expected.topk(ids.shape[-1])
    names = best.indices if to_target is None else to_target[best.indices]
    assert torch.equal(ids, names)
    # The Hugging Face rotary module takes its angles in float32; that is the whole difference.
    torch.testing.assert_close(logits, best.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, expected.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_equal_dense_recomputation(variant: str, tmp_path: Path) -> None:
    """Prefill and ragged verification steps over a paged cache, against Hugging Face layers.

    Each time the dense drafter starts from nothing: all accepted rows, then K - 1 masks, causal.
    """
    config, weights, dense = load(tmp_path, VARIANTS[variant])
    n, width = config.num_taps, config.target_hidden_size
    requests, passes = simulate(
        num_requests=3, num_steps=3, K=K, vocab_size=config.vocab_size, num_taps=n,
        target_hidden=width, block_size=BLOCK_SIZE, prompt_lengths=[1, 15, 33],
    )  # fmt: skip
    caches = allocate_cache(
        config.num_layers, 1 + sum(len(r.blocks) for r in requests), config.num_kv_heads,
        BLOCK_SIZE, config.head_dim, torch.float64,
    )  # fmt: skip
    for cache in caches:  # what has not been written must not be read
        cache.k.fill_(float("nan"))
        cache.v.fill_(float("nan"))
    for step in passes:
        inputs = reference.prepare_inputs(
            step.target_tokens, step.target_positions, step.query_start, step.num_rejected,
            step.next_tokens, step.block_table, K, config.mask_token_id, BLOCK_SIZE,
            config.max_position_embeddings,
        )  # fmt: skip
        results = reference.draft(
            weights, caches, inputs, step.taps, step.block_table, eps=config.rms_norm_eps,
            norm_before_residual=config.norm_before_residual, top_k=3,
        )  # fmt: skip
        for b, (request, length) in enumerate(zip(requests, step.num_valid, strict=True)):
            tokens = request.tokens[1 : length + 1] + [config.mask_token_id] * (K - 1)
            hidden = torch.cat(
                [
                    dense.hidden(request.taps[:length].flatten(1)),
                    dense.mask_hidden.expand(K - 1, -1),
                ]
            )
            rows = length + K - 1
            logits = dense.logits(torch.tensor(tokens), hidden, torch.arange(rows), causal(rows))
            mine = tuple(r[b * K : (b + 1) * K] for r in results)
            assert_same_drafts(mine, logits[-K:], weights.draft_to_target)
    assert torch.isnan(caches[0].k[0]).all(), "block 0 belongs to nobody"


def test_every_anchor_at_once_equals_one_pass_each(tmp_path: Path) -> None:
    """The paper's training view: all anchors and depths in one sequence under the parallel mask."""
    config, weights, dense = load(tmp_path, {})
    length, depths_of_anchor = 12, K
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(config.vocab_size, (length + 1,), generator=g)
    taps = torch.randn(
        length, config.num_taps, config.target_hidden_size, generator=g, dtype=torch.float64
    )
    anchors = list(range(length)) + [a for a in range(length) for _ in range(1, depths_of_anchor)]
    depths = [0] * length + list(range(1, depths_of_anchor)) * length
    anchor, depth = torch.tensor(anchors), torch.tensor(depths)
    token_ids = torch.where(depth == 0, tokens[anchor + 1], config.mask_token_id)
    hidden = torch.where(
        depth[:, None] == 0, dense.hidden(taps.flatten(1))[anchor], dense.mask_hidden
    )
    packed = dense.logits(token_ids, hidden, anchor + depth, parallel_mask(anchors, depths))

    columns = -(-(length + K) // BLOCK_SIZE)
    block_table = torch.arange(1, columns + 1, dtype=torch.int32)[None]
    for a in range(length):
        caches = allocate_cache(
            config.num_layers, columns + 1, config.num_kv_heads, BLOCK_SIZE, config.head_dim,
            torch.float64,
        )  # fmt: skip
        inputs = reference.prepare_inputs(
            tokens[: a + 1], torch.arange(a + 1), torch.tensor([0, a + 1], dtype=torch.int32),
            torch.zeros(1, dtype=torch.int32), tokens[a + 1 : a + 2], block_table, K,
            config.mask_token_id, BLOCK_SIZE, config.max_position_embeddings,
        )  # fmt: skip
        drafts = reference.draft(
            weights, caches, inputs, list(taps[: a + 1].unbind(1)), block_table,
            eps=config.rms_norm_eps, top_k=3,
        )  # fmt: skip
        rows = [a] + [length + a * (K - 1) + d for d in range(K - 1)]
        assert_same_drafts(drafts, packed[rows], None)


def test_prepare_inputs_by_hand() -> None:
    """Two requests, K = 3, blocks of 4: one with two rejected rows, one that reads a prompt."""
    inputs = reference.prepare_inputs(
        target_tokens=torch.tensor([10, 11, 12, 13, 20, 21]),
        target_positions=torch.tensor([6, 7, 8, 9, 0, 1]),
        query_start=torch.tensor([0, 4, 6], dtype=torch.int32),
        num_rejected=torch.tensor([2, 0], dtype=torch.int32),
        next_tokens=torch.tensor([77, 88]),
        block_table=torch.tensor([[5, 9, 2], [7, -1, 3]], dtype=torch.int32),
        num_speculative_tokens=3,
        mask_token_id=99,
        block_size=4,
        max_position=9,
    )
    # Request 0: rows 10, 11 are valid, so 11 and the next token 77 follow them, then two masks.
    assert inputs.token_ids.tolist() == [11, 77, 99, 99, 21, 88, 99, 99, 0, 0]
    assert inputs.positions.tolist() == [6, 7, 8, 9, 0, 1, 2, 3, 0, 0]
    # Position 8 lies in block column 2 = block 2; position 9 is past max_position.
    assert inputs.slots.tolist() == [38, 39, 8, -1, 28, 29, 30, 31, -1, -1]
    assert inputs.source_row.tolist() == [0, 1, -1, -1, 4, 5, -1, -1, -1, -1]
    assert inputs.row_start.tolist() == [0, 4, 8]
    assert inputs.seq_lens.tolist() == [9, 4]
    assert inputs.sample_rows.tolist() == [1, 2, -1, 5, 6, 7], "no draft without a slot"


def test_prepare_inputs_leaves_out_requests_without_rows() -> None:
    """A captured batch is padded with requests that have none."""
    inputs = reference.prepare_inputs(
        target_tokens=torch.tensor([4, 5, 6]),
        target_positions=torch.tensor([0, 1, 2]),
        query_start=torch.tensor([0, 0, 2, 2], dtype=torch.int32),
        num_rejected=torch.tensor([0, 1, 0], dtype=torch.int32),
        next_tokens=torch.tensor([50, 51, 52]),
        block_table=torch.tensor([[1], [2], [3]], dtype=torch.int32),
        num_speculative_tokens=2,
        mask_token_id=9,
        block_size=8,
        max_position=8,
    )
    assert inputs.row_start.tolist() == [0, 0, 2, 2]
    assert inputs.token_ids.tolist() == [51, 9, 0, 0, 0, 0]
    assert inputs.slots.tolist() == [16, 17, -1, -1, -1, -1]
    assert inputs.seq_lens.tolist() == [0, 2, 0]
    assert inputs.sample_rows.tolist() == [-1, -1, 0, 1, -1, -1]


def test_prepare_inputs_past_the_block_table() -> None:
    """Lookahead positions for which the table has no block, or a negative one, get no slot."""
    inputs = reference.prepare_inputs(
        target_tokens=torch.tensor([4]),
        target_positions=torch.tensor([3]),
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        num_rejected=torch.tensor([0], dtype=torch.int32),
        next_tokens=torch.tensor([5]),
        block_table=torch.tensor([[6, -1, 8]], dtype=torch.int32),
        num_speculative_tokens=10,
        mask_token_id=9,
        block_size=4,
        max_position=100,
    )
    assert inputs.slots.tolist() == [27, -1, -1, -1, -1, 32, 33, 34, 35, -1]
    assert inputs.seq_lens.tolist() == [4], "keys end before the first position without a slot"
    assert inputs.sample_rows.tolist() == [0] + [-1] * 9, "and so do drafts"


def test_prepare_inputs_of_nothing() -> None:
    inputs = reference.prepare_inputs(
        *(torch.empty(0, dtype=torch.int64) for _ in range(2)),
        torch.zeros(1, dtype=torch.int32), torch.empty(0, dtype=torch.int32),
        torch.empty(0, dtype=torch.int64), torch.empty(0, 3, dtype=torch.int32), 5, 0, 16, 64,
    )  # fmt: skip
    assert inputs.row_start.tolist() == [0]
    assert all(x.numel() == 0 for x in inputs if x is not inputs.row_start)


def test_lm_head_topk_orders_ties_and_ignores_nan() -> None:
    weight = torch.tensor([[1.0], [3.0], [3.0], [float("nan")], [2.0]])
    x = torch.tensor([[7.0], [1.0], [2.0]])  # the norm leaves only the sign
    rows = torch.tensor([2, -1], dtype=torch.int32)
    ids, logits, lse = reference.lm_head_topk(x, rows, torch.ones(1), weight, None, 4, 0.0)
    assert ids.tolist() == [[1, 2, 4, 0], [-1, -1, -1, -1]]
    assert logits[0].tolist() == [3.0, 3.0, 2.0, 1.0]
    assert logits[1].tolist() == [float("-inf")] * 4
    expected = torch.tensor([1.0, 3.0, 3.0, 2.0]).logsumexp(0)
    assert float(lse[0]) == pytest.approx(float(expected))
    assert float(lse[1]) == float("-inf")


def test_lm_head_topk_of_fewer_finite_logits_than_wanted() -> None:
    """No id comes twice."""
    weight = torch.tensor([[float("nan")], [float("-inf")], [3.0], [float("nan")]])
    row, rows = torch.ones(1, 1), torch.zeros(1, dtype=torch.int32)
    ids, logits, lse = reference.lm_head_topk(row, rows, row[0], weight, None, 4, 0.0)
    assert ids.tolist() == [[2, 0, 1, 3]]
    assert logits.tolist() == [[3.0] + [float("-inf")] * 3]
    assert float(lse) == 3.0


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_cache_scales_saturates_and_skips(dtype: torch.dtype) -> None:
    (cache,) = allocate_cache(1, 3, 2, 4, 8, dtype, k_scale=0.5)
    limit = torch.finfo(dtype).max
    x = torch.tensor([1.0, -3.0, 1e6, -1e6])[:, None, None].expand(4, 2, 8).contiguous()
    x[1, 1] = 7.0
    reference.write_cache(x, torch.tensor([4, 11, 5, -1]), cache.k, cache.k_scale)
    read = reference.read_cache(cache.k, torch.tensor([1, 2]), cache.k_scale, torch.float32)
    expected = torch.zeros(2, 8, 8)
    expected[:, 0] = 1.0
    expected[0, 7], expected[1, 7] = -3.0, 7.0
    expected[:, 1] = limit * 0.5
    assert torch.equal(read, expected)
    assert (cache.v.float() == 0).all(), "the values are the other half of the same memory"
