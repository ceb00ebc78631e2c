"""From what the target has just computed to the input of the drafter's first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p_eagle_cuda import reference
from p_eagle_cuda._registry import (
    CpuBody,
    check,
    check_matrix,
    check_num_rows,
    check_tensor,
    check_weight,
    check_working_dtype,
    check_workspace,
    count_rows,
    define,
    linear_workspace,
)
from p_eagle_cuda.ops.attention import plan_contract
from p_eagle_cuda.reference import STATISTIC_COLUMNS, PreparedInputs

MAX_TAPS = 8  # of the target's layers; mirrors csrc/ops.h
MAX_HIDDEN = 8192  # on CUDA; mirrors csrc/bindings/inputs.cpp


def _prepare_inputs(
    target_tokens: Tensor,
    target_positions: Tensor,
    query_start: Tensor,
    num_rejected: Tensor,
    next_tokens: Tensor,
    block_table: Tensor,
    num_speculative_tokens: int,
    mask_token_id: int,
    block_size: int,
    max_position: int,
    token_ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    source_row: Tensor,
    row_start: Tensor,
    seq_lens: Tensor,
    sample_rows: Tensor,
    work: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    window: int,
) -> CpuBody:
    op, K = "prepare_inputs", num_speculative_tokens
    check(target_tokens.ndim == 1, f"{op}: `target_tokens` must be [T], got {target_tokens.ndim}-D")
    check(num_rejected.ndim == 1, f"{op}: `num_rejected` must be [B], got {num_rejected.ndim}-D")
    T, B = target_tokens.shape[0], num_rejected.shape[0]
    check(B >= 1 or T == 0, f"{op}: `num_rejected` must have a request for the {T} target rows")
    check(K >= 1, f"{op}: `num_speculative_tokens` must be at least 1, got {K}")
    check(mask_token_id >= 0, f"{op}: `mask_token_id` must not be negative, got {mask_token_id}")
    check(block_size >= 1, f"{op}: `block_size` must be at least 1, got {block_size}")
    check(max_position >= 1, f"{op}: `max_position` must be at least 1, got {max_position}")
    check(T + B * K < 2**31, f"{op}: T + B * K must be below 2**31, got T = {T}, B = {B}, K = {K}")
    R = T + B * (K - 1)
    check_tensor(op, "target_tokens", target_tokens, torch.int64, T)
    check_tensor(op, "target_positions", target_positions, torch.int64, T)
    check_tensor(op, "query_start", query_start, torch.int32, B + 1)
    check_tensor(op, "num_rejected", num_rejected, torch.int32, B)
    check_tensor(op, "next_tokens", next_tokens, torch.int64, B)
    check_matrix(op, "block_table", block_table)
    check_tensor(op, "block_table", block_table, torch.int32, B, block_table.shape[1])
    check_tensor(op, "token_ids", token_ids, torch.int64, R)
    check_tensor(op, "positions", positions, torch.int64, R)
    check_tensor(op, "slots", slots, torch.int64, R)
    check_tensor(op, "source_row", source_row, torch.int32, R)
    check_tensor(op, "row_start", row_start, torch.int32, B + 1)
    check_tensor(op, "seq_lens", seq_lens, torch.int32, B)
    check_tensor(op, "sample_rows", sample_rows, torch.int32, B * K)
    plan = None
    if work is not None:
        plan = plan_contract(
            op, row_start, seq_lens, positions, num_heads, num_kv_heads,
            block_table.shape[1] * block_size, window, False, work,
        )  # fmt: skip
    check(
        work is not None or num_heads == num_kv_heads == window == 0,
        f"{op}: `num_heads`, `num_kv_heads` and `window` are of a `work` map, got {num_heads}, "
        f"{num_kv_heads} and {window} without one",
    )

    def on_cpu() -> None:
        inputs = reference.prepare_inputs(
            target_tokens, target_positions, query_start, num_rejected, next_tokens, block_table,
            num_speculative_tokens, mask_token_id, block_size, max_position,
        )  # fmt: skip
        outputs = (token_ids, positions, slots, source_row, row_start, seq_lens, sample_rows)
        for output, result in zip(outputs, inputs, strict=True):
            output.copy_(result)
        if plan is not None:
            plan()

    return on_cpu


define(
    "prepare_inputs(Tensor target_tokens, Tensor target_positions, Tensor query_start, "
    "Tensor num_rejected, Tensor next_tokens, Tensor block_table, int num_speculative_tokens, "
    "int mask_token_id, int block_size, int max_position, Tensor(a!) token_ids, "
    "Tensor(b!) positions, Tensor(c!) slots, Tensor(d!) source_row, Tensor(e!) row_start, "
    "Tensor(f!) seq_lens, Tensor(g!) sample_rows, Tensor(h!)? work, int num_heads, "
    "int num_kv_heads, int window) -> ()",
    _prepare_inputs,
)


def prepare_inputs(
    target_tokens: Tensor,
    target_positions: Tensor,
    query_start: Tensor,
    num_rejected: Tensor,
    next_tokens: Tensor,
    block_table: Tensor,
    num_speculative_tokens: int,
    mask_token_id: int,
    block_size: int,
    max_position: int,
    out: PreparedInputs | None = None,
    *,
    work: Tensor | None = None,
    num_heads: int = 0,
    num_kv_heads: int = 0,
    window: int = 0,
) -> PreparedInputs:
    """Lay out the rows of a drafter pass from what the target has just computed and verified.

    Request b had ``query_start[b + 1] - query_start[b]`` rows in the target's batch, the last
    ``num_rejected[b]`` of which were drafts that failed verification. The others are valid: row j
    of them at position p becomes a drafter row at position p that takes the *next* token, which is
    the target's own next row's, or ``next_tokens[b]`` for the last. K - 1 mask rows follow at the
    next positions, with the mask token and no source row. Rejected rows have no drafter row. The
    logits of the last valid row and of the mask rows are the K drafts.

    A request without valid rows has no drafter rows at all: nothing of it is read but its counts,
    nothing is stored for it, its ``seq_lens`` is 0 and its ``sample_rows`` are -1. So a batch may
    be padded, as for a captured graph, with requests for which ``query_start`` stays where it is.
    Likewise a request that comes to its last position with a slot has no drafts past it, and the
    others do not notice.

    Args:
        target_tokens: ``[T]`` int64, ids the target read; requests adjacent, in position order.
        target_positions: ``[T]`` int64, absolute, consecutive within a request.
        query_start: ``[B + 1]`` int32, first row of each request, then their total, at most T.
        num_rejected: ``[B]`` int32; as many as a request has rows, or more: none is valid.
        next_tokens: ``[B]`` int64, the token that follows the last valid row: the target's own
            (bonus or corrected) token, or the next prompt token when a prompt comes in chunks.
        block_table: ``[B, max_blocks]`` int32, the cache block of each block_size positions.
        num_speculative_tokens: K >= 1, with T + B * K below 2**31.
        mask_token_id: id of the shared mask token.
        block_size: positions in one cache block.
        max_position: rows at or past this position get slot -1.
        out: Where to write, of the shapes below; allocated if None.
        work: Where to write the map of the pass's attention, as `plan_attention` does for rows
            without a tree, but in the same launch; from `allocate_attention`, whose zeros count
            the kernel's thread blocks, or `slice_work`. None: no map.
        num_heads: Nq; given with `work` only, as the next two are.
        num_kv_heads: Nkv.
        window: As in `paged_attention`.

    Returns:
        `PreparedInputs` with R = T + B * (K - 1) rows, real rows first; rows past ``row_start[B]``
        hold token 0, position 0, slot -1, source row -1. A slot is also -1 where the block table
        has no column or a negative block for the position; ``seq_lens`` ends before the first such
        position, so that attention reads no key that nobody stored, and ``sample_rows`` are -1
        from there on.

        Contents are not checked. Whatever they are, nothing outside of the tensors is accessed.

    Numerics:
        Integers; every implementation is bit-exact.
    """
    if out is None:
        B, device = num_rejected.numel(), target_tokens.device
        R = target_tokens.numel() + B * (num_speculative_tokens - 1)

        def new(size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        out = PreparedInputs(
            token_ids=new(R, torch.int64),
            positions=new(R, torch.int64),
            slots=new(R, torch.int64),
            source_row=new(R, torch.int32),
            row_start=new(B + 1, torch.int32),
            seq_lens=new(B, torch.int32),
            sample_rows=new(B * num_speculative_tokens, torch.int32),
        )
    torch.ops.p_eagle.prepare_inputs(
        target_tokens, target_positions, query_start, num_rejected, next_tokens, block_table,
        num_speculative_tokens, mask_token_id, block_size, max_position, *out, work, num_heads,
        num_kv_heads, window,
    )  # fmt: skip
    return out


def _project_taps(
    taps: Sequence[Tensor],
    source_row: Tensor,
    num_rows: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    fp8_activations: bool,
    input_norm: Tensor | None,
    fc_norms: Tensor | None,
    eps: float,
    out: Tensor,
    workspace: Tensor,
) -> CpuBody:
    op = "project_taps"
    check(1 <= len(taps) <= MAX_TAPS, f"{op}: `taps` must hold 1 to {MAX_TAPS}, got {len(taps)}")
    check_matrix(op, "taps[0]", taps[0])
    check_matrix(op, "weight", weight)
    dtype = check_working_dtype(op, "taps[0]", taps[0])
    (T, Ht), n, H = taps[0].shape, len(taps), weight.shape[0]
    for i, tap in enumerate(taps):
        check_tensor(op, f"taps[{i}]", tap, dtype, T, Ht)
    check(
        not weight.is_cuda or Ht % STATISTIC_COLUMNS == 0,
        f"{op}: the width of a tap must be a multiple of {STATISTIC_COLUMNS} on CUDA, got {Ht}",
    )
    check(source_row.ndim == 1, f"{op}: `source_row` must be [R], got {source_row.ndim}-D")
    R = source_row.shape[0]
    check_tensor(op, "source_row", source_row, torch.int32, R)
    check_num_rows(op, num_rows)
    check_weight(
        op, "weight", weight, weight_scale, dtype, H, n * Ht, fp8_activations=fp8_activations
    )
    check(
        input_norm is None or fc_norms is None,
        f"{op}: at most one of `input_norm` and `fc_norms` may be given, got both",
    )
    if input_norm is not None:
        check_tensor(op, "input_norm", input_norm, dtype, n * Ht)
    if fc_norms is not None:
        check_tensor(op, "fc_norms", fc_norms, dtype, n, Ht)
    check_tensor(op, "out", out, dtype, R, H)
    check_workspace(op, workspace)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, len(out))
        full_weight = reference.dequantize(weight, weight_scale, dtype)
        out[:n] = reference.project_taps(
            taps, source_row[:n], full_weight, input_norm, fc_norms, eps, fp8_activations
        )

    return on_cpu


define(
    "project_taps(Tensor[] taps, Tensor source_row, Tensor num_rows, Tensor weight, "
    "Tensor? weight_scale, bool fp8_activations, Tensor? input_norm, Tensor? fc_norms, float eps, "
    "Tensor(a!) out, Tensor(b!) workspace) -> ()",
    _project_taps,
)


def project_taps(
    taps: Sequence[Tensor],
    source_row: Tensor,
    num_rows: Tensor,
    weight: Tensor,
    input_norm: Tensor | None,
    fc_norms: Tensor | None,
    eps: float,
    out: Tensor | None = None,
    *,
    weight_scale: Tensor | None = None,
    fp8_activations: bool = False,
    workspace: Tensor | None = None,
) -> Tensor:
    """Project the target's hidden states, concatenated over the taps, to the drafter's width.

    ``out[r] = weight @ norm(concat(tap[source_row[r]] for tap in taps))`` for rows that have a
    source row; mask rows, with ``source_row < 0``, hold nothing meaningful.

    Args:
        taps: 1 to 8 tensors ``[T, Ht]``, the target's residual stream at its tapped layers. On
            CUDA Ht is a multiple of 64.
        source_row: ``[R]`` int32 from `prepare_inputs`.
        num_rows: ``[1]`` int32.
        weight: ``[H, n * Ht]``, the checkpoint's ``fc.weight``.
        input_norm: ``[n * Ht]`` RMSNorm over the concatenation, or None.
        fc_norms: ``[n, Ht]`` RMSNorm of each tap, or None. At most one of the two.
        eps: Added to the mean square of the norms.
        out: ``[R, H]``, written.
        weight_scale: ``[H]`` float32, of the rows of a float8_e4m3fn weight; None for others.
        fp8_activations: As in `linear_residual`.
        workspace: Zeroed memory of this stream from `linear_workspace`, left zeroed where that
            matters; allocated if None.

    Returns:
        `out`.

    Numerics:
        Products accumulate in float32 or wider; norms are float32, rounded once. On CUDA a row's
        result does not depend on the other rows, as long as R is at most 32.
    """
    if out is None:
        out = taps[0].new_empty(source_row.numel(), weight.shape[0])
    if workspace is None:
        workspace = linear_workspace(weight.device)
    torch.ops.p_eagle.project_taps(
        list(taps), source_row, num_rows, weight, weight_scale, fp8_activations, input_norm,
        fc_norms, eps, out, workspace,
    )  # fmt: skip
    return out


def _embed_norm_concat(
    token_ids: Tensor,
    source_row: Tensor,
    num_rows: Tensor,
    embedding: Tensor,
    hidden: Tensor,
    mask_hidden: Tensor,
    embed_weight: Tensor,
    hidden_weight: Tensor,
    eps: float,
    norm_before_residual: bool,
    out: Tensor,
    residual: Tensor,
) -> CpuBody:
    op = "embed_norm_concat"
    check_matrix(op, "hidden", hidden)
    check_matrix(op, "embedding", embedding)
    dtype = check_working_dtype(op, "hidden", hidden)
    (R, H), V = hidden.shape, embedding.shape[0]
    check(
        not hidden.is_cuda or (H % 8 == 0 and H <= MAX_HIDDEN),
        f"{op}: H must be a multiple of 8, at most {MAX_HIDDEN}, on CUDA, got {H}",
    )
    check_tensor(op, "token_ids", token_ids, torch.int64, R)
    check_tensor(op, "source_row", source_row, torch.int32, R)
    check_num_rows(op, num_rows)
    check_tensor(op, "embedding", embedding, dtype, V, H)
    check_tensor(op, "hidden", hidden, dtype, R, H)
    check_tensor(op, "mask_hidden", mask_hidden, dtype, H)
    check_tensor(op, "embed_weight", embed_weight, dtype, H)
    check_tensor(op, "hidden_weight", hidden_weight, dtype, H)
    check_tensor(op, "out", out, dtype, R, 2 * H)
    check_tensor(op, "residual", residual, dtype, R, H)

    def on_cpu() -> None:
        n = count_rows(op, num_rows, len(out))
        out[:n], residual[:n] = reference.embed_norm_concat(
            token_ids[:n], source_row[:n], embedding, hidden[:n], mask_hidden, embed_weight,
            hidden_weight, eps, norm_before_residual,
        )  # fmt: skip

    return on_cpu


define(
    "embed_norm_concat(Tensor token_ids, Tensor source_row, Tensor num_rows, Tensor embedding, "
    "Tensor hidden, Tensor mask_hidden, Tensor embed_weight, Tensor hidden_weight, float eps, "
    "bool norm_before_residual, Tensor(a!) out, Tensor(b!) residual) -> ()",
    _embed_norm_concat,
)


def embed_norm_concat(
    token_ids: Tensor,
    source_row: Tensor,
    num_rows: Tensor,
    embedding: Tensor,
    hidden: Tensor,
    mask_hidden: Tensor,
    embed_weight: Tensor,
    hidden_weight: Tensor,
    eps: float,
    norm_before_residual: bool = False,
    out: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Build the input of the drafter's first layer.

    With ``h[r] = mask_hidden if source_row[r] < 0 else hidden[r]``::

        out[r]      = [rms_norm(embedding[token_ids[r]]) * embed_weight,
                       rms_norm(h[r]) * hidden_weight]
        residual[r] = h[r], or the normed h[r] if norm_before_residual

    Args:
        token_ids: ``[R]`` int64, each in ``[0, V)``; not checked on CUDA.
        source_row: ``[R]`` int32; negative marks a mask row, whose row of `hidden` is not read and
            may hold anything, NaN included.
        num_rows: ``[1]`` int32.
        embedding: ``[V, H]``. On CUDA H is a multiple of 8, at most 8192.
        hidden: ``[R, H]`` from `project_taps`.
        mask_hidden: ``[H]``, the shared mask hidden state, projected.
        embed_weight: ``[H]``, layer 0's ``input_layernorm``.
        hidden_weight: ``[H]``, layer 0's ``hidden_norm``.
        eps: Added to the mean square. Dimensionless.
        norm_before_residual: As in the checkpoint's config; P-EAGLE checkpoints say False.
        out: ``[R, 2H]``, written.
        residual: ``[R, H]``, written.

    Returns:
        ``(out, residual)``.

    Numerics:
        float32 from load to store, one rounding per element of `out`. An un-normed `residual` is
        bit-exact.
    """
    if out is None:
        out = hidden.new_empty(hidden.shape[0], 2 * hidden.shape[1])
    if residual is None:
        residual = torch.empty_like(hidden)
    torch.ops.p_eagle.embed_norm_concat(
        token_ids, source_row, num_rows, embedding, hidden, mask_hidden, embed_weight,
        hidden_weight, eps, norm_before_residual, out, residual,
    )  # fmt: skip
    return out, residual
