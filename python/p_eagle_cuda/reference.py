"""The executable specification of the drafter: plain PyTorch, and nothing else.

One function per op, then `draft`, the whole pass. Every function computes in the dtype of its
inputs: float64 gives the exact answer and is the oracle of the tests, float32 is the CPU path,
bfloat16 is what careful unfused PyTorch gives and sets the error budget of a fused kernel. Only
what every implementation keeps in float32 is promoted here too, for 16-bit inputs: norms, RoPE,
SiLU and softmax. A kernel that disagrees with this file is wrong, or this file is.

Sizes: B requests, K drafted tokens, T rows the target has just computed, R drafter rows, H hidden,
Ht target hidden, V vocabulary, D head dimension, Nq/Nkv query and key/value heads, I intermediate.

Sources: arXiv 2602.01469 for the method; the row layout, shift and slots are those that vLLM gives
`parallel_drafting` EAGLE-3 drafters, except that rows of rejected tokens are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, silu

from p_eagle_cuda.attention_work import TREE_ROWS
from p_eagle_cuda.noise import Noise, gumbel
from p_eagle_cuda.precision import product
from p_eagle_cuda.weights import DrafterWeights

STATISTIC_COLUMNS = 64  # of a row, that one sum of squares covers


class PreparedInputs(NamedTuple):
    """What the rows of one drafter pass are. Rows of a request are adjacent, in position order."""

    token_ids: Tensor  # [R] int64, the token whose embedding the row takes
    positions: Tensor  # [R] int64, absolute
    slots: Tensor  # [R] int64, where the row's K/V go: block * block_size + offset; -1: nowhere
    source_row: Tensor  # [R] int32, row of the taps; -1 for a mask row
    row_start: Tensor  # [B + 1] int32, rows of request b are row_start[b] .. row_start[b + 1]
    seq_lens: Tensor  # [B] int32, keys that every row may see once this pass has stored its own
    sample_rows: Tensor  # [B * K] int32, the rows whose logits are the K drafts; -1: no draft


def prepare_inputs(
    target_tokens: Tensor,  # [T] int64
    target_positions: Tensor,  # [T] int64
    query_start: Tensor,  # [B + 1] int32
    num_rejected: Tensor,  # [B] int32
    next_tokens: Tensor,  # [B] int64
    block_table: Tensor,  # [B, max_blocks] int32
    num_speculative_tokens: int,
    mask_token_id: int,
    block_size: int,
    max_position: int,
) -> PreparedInputs:
    """Lay out the rows of a pass. See `p_eagle_cuda.ops.prepare_inputs`."""
    device, B, K = query_start.device, num_rejected.numel(), num_speculative_tokens
    T = target_tokens.numel()
    R = T + B * (K - 1)
    query_len = query_start.diff().long()
    num_valid = (query_len - num_rejected).clamp(min=0)  # [B] rows that carry a tap
    num_rows = torch.where(num_valid > 0, num_valid + K - 1, 0)
    row_start = torch.cat([num_rows.new_zeros(1), num_rows.cumsum(0)])

    row = torch.arange(R, device=device)
    is_row = row < row_start[-1]
    request = torch.searchsorted(row_start[1:], row, right=True).clamp(max=max(B - 1, 0))
    j = row - row_start[request]
    first = query_start[request].long()
    is_mask, is_last = j >= num_valid[request], j == num_valid[request] - 1

    source = first + j
    shifted = _take(target_tokens, source + 1)
    token_ids = torch.where(is_last, next_tokens[request], shifted)
    token_ids = torch.where(is_mask, mask_token_id, token_ids)
    positions = _take(target_positions, first) + j

    block = _take_columns(block_table, request, positions // block_size)
    has_slot = (positions < max_position) & (block >= 0)
    slots = torch.where(has_slot, block * block_size + positions % block_size, -1)

    # Keys end before the first row that has no slot, or attention would read what nobody stored.
    start = _take(target_positions, query_start[:-1].long())
    seq_lens = torch.where(num_rows > 0, (start + num_rows).clamp(max=max_position), 0)
    lost = is_row & ~has_slot
    seq_lens = seq_lens.scatter_reduce(0, request[lost], positions[lost], "amin")
    # No draft is made of a row without a slot, nor of one after it, which would miss its keys.
    sampled = (num_valid - 1)[:, None] + torch.arange(K, device=device)
    has_draft = (num_rows[:, None] > 0) & (start[:, None] + sampled < seq_lens[:, None])
    return PreparedInputs(
        token_ids=torch.where(is_row, token_ids, 0),
        positions=torch.where(is_row, positions, 0),
        slots=torch.where(is_row, slots, -1),
        source_row=torch.where(is_row & ~is_mask, source, -1).int(),
        row_start=row_start.int(),
        seq_lens=seq_lens.int(),
        sample_rows=torch.where(has_draft, row_start[:-1, None] + sampled, -1).int().flatten(),
    )


class PrunedRows(NamedTuple):
    """The rows of a pass that go on in its last layer, K of each request that has rows."""

    x: Tensor  # [B * K, H]
    positions: Tensor  # [B * K] int64
    row_start: Tensor  # [B + 1] int32
    sample_rows: Tensor  # [B * K] int32


def prune_rows(x: Tensor, positions: Tensor, row_start: Tensor, sample_rows: Tensor) -> PrunedRows:
    """The last K rows of each request that has rows; `x` and `positions` only as many as exist."""
    K = sample_rows.numel() // (row_start.numel() - 1)
    offset = torch.arange(K, device=x.device)
    has_rows = row_start.diff() > 0
    kept = (row_start[1:, None] - K + offset)[has_rows].flatten()
    starts = torch.cat([row_start.new_zeros(1), (K * has_rows).cumsum(0)])
    is_sampled = has_rows[:, None] & (sample_rows.view(-1, K) >= 0)
    sampled = torch.where(is_sampled, starts[:-1, None] + offset, -1)
    return PrunedRows(x[kept], positions[kept], starts.int(), sampled.int().flatten())


def rms_norm(x: Tensor, weight: Tensor, eps: float, sums: Tensor | None = None) -> Tensor:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last dimension, one rounding.

    `sums` are the `sum_squares` of x, where they are known.
    """
    wide = widen(x)
    if sums is None:
        mean_square = wide.square().mean(dim=-1, keepdim=True)
    else:
        mean_square = sums.to(wide.dtype).sum(dim=0)[:, None] / x.shape[-1]
    return (wide * torch.rsqrt(mean_square + eps) * weight.to(wide.dtype)).to(x.dtype)


def sum_squares(x: Tensor) -> Tensor:
    """The sums of ``x**2`` over each 64 columns: x [R, H] to [ceil(H / 64), R], in wide floats.

    What a layer that writes rows tells the next one, so that it need not read them twice to norm
    them.
    """
    squares = widen(x).square()
    padded = pad(squares, (0, -x.shape[-1] % STATISTIC_COLUMNS))
    groups: Tensor = padded.unflatten(-1, (-1, STATISTIC_COLUMNS)).sum(dim=-1)
    return groups.T.contiguous()


def dequantize(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight [N, C] in `dtype`: itself, or with a scale [N] for each row of an FP8 one."""
    if scale is None:
        return weight
    wide = torch.promote_types(dtype, torch.float32)
    return (weight.to(wide) * scale.to(wide)[:, None]).to(dtype)


def gather_taps(
    taps: Sequence[Tensor],  # n of [T, Ht]
    source_row: Tensor,  # [R] int32
    input_norm: Tensor | None,  # [n * Ht]
    fc_norms: Tensor | None,  # [n, Ht]; at most one of the two
    eps: float,
) -> Tensor:  # [R, n * Ht], zero for mask rows
    """The target's hidden states of each row side by side, normed where the drafter does so."""
    is_real = source_row >= 0
    rows = [tap[source_row[is_real].long()] for tap in taps]
    if fc_norms is not None:
        rows = [rms_norm(x, w, eps) for x, w in zip(rows, fc_norms, strict=True)]
    x = torch.cat(rows, dim=-1)
    if input_norm is not None:
        x = rms_norm(x, input_norm, eps)
    gathered = x.new_zeros(source_row.numel(), x.shape[1])
    gathered[is_real] = x
    return gathered


def project_taps(
    taps: Sequence[Tensor],  # n of [T, Ht]
    source_row: Tensor,  # [R] int32
    weight: Tensor,  # [H, n * Ht]
    input_norm: Tensor | None,  # [n * Ht]
    fc_norms: Tensor | None,  # [n, Ht]; at most one of the two
    eps: float,
    fp8_activations: bool = False,
) -> Tensor:  # [R, H], zero for mask rows
    """The drafter's view of the target's hidden states: fc of the concatenated taps."""
    is_real = source_row >= 0
    x = gather_taps(taps, source_row[is_real], input_norm, fc_norms, eps)
    hidden = x.new_zeros(source_row.numel(), weight.shape[0])
    hidden[is_real] = product(x, weight, None, fp8_activations)
    return hidden


def embed_norm_concat(
    token_ids: Tensor,  # [R] int64
    source_row: Tensor,  # [R] int32
    embedding: Tensor,  # [V, H]
    hidden: Tensor,  # [R, H]
    mask_hidden: Tensor,  # [H]
    embed_weight: Tensor,  # [H]
    hidden_weight: Tensor,  # [H]
    eps: float,
    norm_before_residual: bool,
) -> tuple[Tensor, Tensor]:  # [R, 2H], [R, H]
    """Input and residual of the first layer: embedding beside hidden state, each normed."""
    h = torch.where((source_row < 0)[:, None], mask_hidden, hidden)
    normed = rms_norm(h, hidden_weight, eps)
    e = rms_norm(embedding[token_ids], embed_weight, eps)
    return torch.cat([e, normed], dim=-1), normed if norm_before_residual else h


def rotate(x: Tensor, rope: Tensor, positions: Tensor) -> Tensor:
    """RoPE, neox style (halves rotate): x [R, N, D], rope [P, D] = cos then sin of D/2 angles.

    Positions past the table take its last row; such rows are never sampled.
    """
    wide = widen(x)
    table = rope[positions.clamp(max=rope.shape[0] - 1)].to(wide.dtype)
    cos, sin = table[:, None].chunk(2, dim=-1)
    a, b = wide.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def qkv_rope(
    x: Tensor,  # [R, Hin]
    norm_weight: Tensor | None,  # [Hin]; None: x is normed already
    weight: Tensor,  # [(Nq + 2 Nkv) * D, Hin]
    bias: Tensor | None,  # [(Nq + 2 Nkv) * D]
    q_norm: Tensor | None,  # [D]
    k_norm: Tensor | None,  # [D]
    rope: Tensor,  # [P, D] float32
    positions: Tensor,  # [R] int64
    num_kv_heads: int,
    eps: float,
    sums: Tensor | None = None,  # [ceil(Hin / 64), R], see rms_norm
    mask_heads: Tensor
    | None = None,  # [(Nq + 2 Nkv) * D], of every mask row in place of the product
    source_row: Tensor | None = None,  # [R] int32, with mask_heads; negative for a mask row
    fp8_activations: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # q [R, Nq, D], k and v [R, Nkv, D]
    """Query, key and value of each row, heads normed where the model does so, then rotated."""
    x = x if norm_weight is None else rms_norm(x, norm_weight, eps, sums)
    heads = product(x, weight, bias, fp8_activations)
    if mask_heads is not None and source_row is not None:
        heads = torch.where((source_row < 0)[:, None], mask_heads.to(x.dtype), heads)
    return rope_heads(heads, q_norm, k_norm, rope, positions, num_kv_heads, eps)


def rope_heads(
    heads: Tensor,  # [R, (Nq + 2 Nkv) * D]
    q_norm: Tensor | None,  # [D]
    k_norm: Tensor | None,  # [D]
    rope: Tensor,  # [P, D] float32
    positions: Tensor,  # [R] int64
    num_kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # q [R, Nq, D], k and v [R, Nkv, D]
    """The heads of each row apart, normed where the model does so, queries and keys rotated."""
    heads = heads.unflatten(-1, (-1, rope.shape[-1]))
    num_heads = heads.shape[1] - 2 * num_kv_heads
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    return rotate(q, rope, positions), rotate(k, rope, positions), v


def write_cache(x: Tensor, slots: Tensor, cache: Tensor, scale: Tensor) -> None:
    """Store x [R, Nkv, D] / scale in cache [blocks, Nkv, block_size, D]; slot -1 is skipped.

    FP8 caches saturate at the largest finite value. The cache may have any strides.
    """
    keep = slots >= 0
    x, slots = x[keep], slots[keep]
    if cache.dtype.itemsize == 1:
        limit = torch.finfo(cache.dtype).max
        x = (widen(x) / scale.to(widen(x).dtype)).clamp(-limit, limit)
    block_size = cache.shape[2]
    where = (slots // block_size, slice(None), slots % block_size)
    _storage(cache)[where] = _storage(x.to(cache.dtype))


def read_cache(cache: Tensor, blocks: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The keys or values in `blocks`, in order: [Nkv, len(blocks) * block_size, D] in `dtype`."""
    pages = _storage(cache)[blocks.long()].view(cache.dtype)  # [n, Nkv, block_size, D]
    x = pages.to(dtype).transpose(0, 1).flatten(1, 2)
    return x * scale.to(dtype) if cache.dtype.itemsize == 1 else x


def paged_attention(
    q: Tensor,  # [R, Nq, D]
    k_cache: Tensor,  # [blocks, Nkv, block_size, D]
    v_cache: Tensor,  # [blocks, Nkv, block_size, D]
    k_scale: Tensor,  # [1] float32
    v_scale: Tensor,  # [1] float32
    block_table: Tensor,  # [B, max_blocks] int32
    row_start: Tensor,  # [B + 1] int32
    seq_lens: Tensor,  # [B] int32
    positions: Tensor,  # [R] int64
    softmax_scale: float,
    tree_mask: Tensor | None = None,  # [R] int64
    sinks: Tensor | None = None,  # [Nq] float32
    window: int = 0,
) -> Tensor:  # [R, Nq * D], zero for rows of no request
    """Causal attention by absolute position: a row sees its request's keys up to its own.

    A row that sees no key gets zeros.

    For a mask row these are the context, the real rows of this pass and the earlier mask rows,
    because every row has stored its key before any row looks: P-EAGLE's parallel mask.
    `visible_keys` has the other masks.
    """
    Nkv, block_size = k_cache.shape[1:3]
    compute = widen(q).dtype
    out = q.new_zeros(q.shape)
    starts, lens = row_start.tolist(), seq_lens.tolist()
    for b, length in enumerate(lens):
        rows = slice(starts[b], starts[b + 1])
        if starts[b] == starts[b + 1]:
            continue
        length = min(max(length, 0), block_table.shape[1] * block_size)
        blocks = block_table[b, : -(-length // block_size)]
        k = read_cache(k_cache, blocks, k_scale, compute)[:, :length]
        v = read_cache(v_cache, blocks, v_scale, compute)[:, :length]
        grouped = q[rows].to(compute).unflatten(1, (Nkv, -1))  # [rows, Nkv, group, D]
        scores = torch.einsum("rngd,nkd->ngrk", grouped, k) * softmax_scale
        mask = None if tree_mask is None else tree_mask[rows]
        visible = visible_keys(length, positions[rows], mask, window)
        scores = scores.masked_fill(~visible, float("-inf"))
        if sinks is not None:
            sink = sinks.to(compute).view(Nkv, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sink], dim=-1)
        weights = scores.softmax(dim=-1)[..., :length]
        weights = weights.masked_fill(~visible.any(dim=-1, keepdim=True), 0)
        out[rows] = torch.einsum("ngrk,nkd->rngd", weights, v).flatten(1, 2).to(q.dtype)
    return out.flatten(1)


def visible_keys(
    length: int, positions: Tensor, tree_mask: Tensor | None, window: int
) -> Tensor:  # [rows, length] bool
    """Which keys, by position in the cache, each of a request's rows may see.

    Without a mask: those up to the row's position, of which a window leaves the last `window`.

    With one: new row j, the j-th of the request, has its key at ``positions[0] + j``, and bit j of
    a row's mask says whether the row sees it; new keys past the 64th nobody sees. All keys before
    ``positions[0]`` are visible, of which a window leaves those above ``position - window``.
    """
    key = torch.arange(length, device=positions.device)
    in_window = key > positions[:, None] - window if window else torch.ones_like(key).bool()
    if tree_mask is None:
        return (key <= positions[:, None]) & in_window
    new = key - positions[0]
    is_seen = (tree_mask[:, None] >> new.clamp(0, TREE_ROWS - 1)) & 1 == 1
    return torch.where(new < 0, in_window, is_seen & (new < TREE_ROWS))


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, fp8_activations: bool = False
) -> Tensor:
    """``residual + x @ weight.T + bias``."""
    return residual + product(x, weight, bias, fp8_activations)


def norm_swiglu(
    x: Tensor, norm_weight: Tensor, gate_up: Tensor, eps: float, sums: Tensor | None = None,
    fp8_activations: bool = False,
) -> Tensor:  # fmt: skip
    """``silu(gate) * up`` of the normed x; gate_up [2I, H] holds the gate rows, then the up."""
    return gate_rows(product(rms_norm(x, norm_weight, eps, sums), gate_up, None, fp8_activations))


def gate_rows(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up``; a row of gate_up [R, 2I] holds the gate, then the up projection."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (silu(widen(gate)) * widen(up)).to(gate_up.dtype)


def lm_head_topk(
    x: Tensor,  # [R, H]
    sample_rows: Tensor,  # [N] int32
    norm_weight: Tensor,  # [H]
    weight: Tensor,  # [Vd, H]
    draft_to_target: Tensor | None,  # [Vd] int64
    top_k: int,
    eps: float,
    sums: Tensor | None = None,  # [ceil(H / 64), R], see rms_norm
    vocab_subset: Tensor | None = None,  # [S] int32, ascending: the draft ids there are
    noise: Noise | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # ids [N, k] int64, logits [N, k], lse [N]
    """The k largest logits of each sampled row, largest first, and the log-sum-exp of all.

    Equal logits: the lower draft id first. A NaN logit counts as -inf. Rows with sample_rows < 0
    give id -1 and -inf. With `noise`, where a row's temperature t is above zero, its logits are
    divided by t, and the order is that of logits + `gumbel`: a sample without replacement of
    softmax(logits), in the order of the draws. What is returned has no noise in it.
    """
    is_row, rows = sample_rows >= 0, sample_rows.clamp(min=0).long()
    sums = None if sums is None else sums[:, rows]
    draft_ids = torch.arange(len(weight), device=x.device)
    if vocab_subset is not None:
        draft_ids, weight = vocab_subset.long(), weight[vocab_subset.long()]
    logits = widen(linear(rms_norm(x[rows], norm_weight, eps, sums), weight))
    added: Tensor | float = 0.0
    if noise is not None:
        t = noise.temperature[:, None]
        logits = logits / torch.where(t > 0, t, 1.0).to(logits.dtype)
        added = gumbel(noise.keys[:, None], noise.positions[:, None], draft_ids) * (t > 0)
    logits = logits.masked_fill(logits.isnan() | ~is_row[:, None], float("-inf"))
    # Stable, which torch.topk is not: of equals the first.
    best = (logits + added).sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    ids = draft_ids[best] if draft_to_target is None else draft_to_target[draft_ids[best]]
    return ids.masked_fill(~is_row[:, None], -1), logits.gather(1, best), logits.logsumexp(dim=-1)


class LayerCache(NamedTuple):
    """One layer's paged keys and values; k and v may be views of one tensor, in any strides."""

    k: Tensor  # [blocks, Nkv, block_size, D]
    v: Tensor  # [blocks, Nkv, block_size, D]
    k_scale: Tensor  # [1] float32; what is stored is x / scale
    v_scale: Tensor  # [1] float32


def draft(
    weights: DrafterWeights,
    caches: Sequence[LayerCache],
    inputs: PreparedInputs,
    taps: Sequence[Tensor],  # n of [T, Ht]
    block_table: Tensor,  # [B, max_blocks] int32
    *,
    eps: float,
    norm_before_residual: bool = False,
    top_k: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # ids [B * K, k] int64, logits [B * K, k], lse [B * K]
    """One pass of the drafter: K tokens for every request. Writes the rows' K/V to `caches`."""

    def full(matrix: Tensor, scale: Tensor | None) -> Tensor:
        return dequantize(matrix, scale, weights.dtype)

    fp8 = weights.fp8_activations
    hidden = project_taps(
        taps, inputs.source_row, full(weights.fc, weights.fc_scale), weights.input_norm,
        weights.fc_norms, eps, fp8,
    )  # fmt: skip
    first = weights.layers[0]
    assert first.hidden_norm is not None, "layer 0 of a drafter norms the hidden state"
    x, residual = embed_norm_concat(
        inputs.token_ids, inputs.source_row, weights.embedding, hidden, weights.mask_hidden,
        first.input_norm, first.hidden_norm, eps, norm_before_residual,
    )  # fmt: skip
    D = weights.rope.shape[1]
    for i, (layer, cache) in enumerate(zip(weights.layers, caches, strict=True)):
        q, k, v = qkv_rope(
            x if i == 0 else residual, None if i == 0 else layer.input_norm,
            full(layer.qkv, layer.qkv_scale), layer.qkv_bias, layer.q_norm, layer.k_norm,
            weights.rope, inputs.positions, cache.k.shape[1], eps, fp8_activations=fp8,
        )  # fmt: skip
        write_cache(k, inputs.slots, cache.k, cache.k_scale)
        write_cache(v, inputs.slots, cache.v, cache.v_scale)
        attended = paged_attention(
            q, cache.k, cache.v, cache.k_scale, cache.v_scale, block_table, inputs.row_start,
            inputs.seq_lens, inputs.positions, D**-0.5,
        )  # fmt: skip
        o, down = full(layer.o, layer.o_scale), full(layer.down, layer.down_scale)
        residual = linear_residual(attended, o, layer.o_bias, residual, fp8)
        gate_up = full(layer.gate_up, layer.gate_up_scale)
        activated = norm_swiglu(residual, layer.post_norm, gate_up, eps, fp8_activations=fp8)
        residual = linear_residual(activated, down, None, residual, fp8)
    return lm_head_topk(
        residual, inputs.sample_rows, weights.norm, full(weights.lm_head, weights.lm_head_scale),
        weights.draft_to_target, top_k, eps,
    )  # fmt: skip


def widen(x: Tensor) -> Tensor:
    """float32 for 16-bit tensors, the tensor itself otherwise."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _storage(x: Tensor) -> Tensor:
    """The same bytes in a dtype that can be indexed: the CPU has no FP8 index kernels."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x


def _take(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]``, and 0 where the index is outside."""
    inside = (index >= 0) & (index < x.numel())
    if x.numel() == 0:
        return x.new_zeros(index.shape)
    return torch.where(inside, x[torch.where(inside, index, 0)], 0)


def _take_columns(table: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """``table[row, column]`` as int64, and -1 where the column is outside."""
    inside = (column >= 0) & (column < table.shape[1])
    if table.numel() == 0:
        return torch.full_like(row, -1)
    return torch.where(inside, table[row, torch.where(inside, column, 0)].long(), -1)
