"""What vLLM 0.33's V1 proposer launches for a P-EAGLE pass, replayed with torch, to compare with.

It is a replay and not vLLM. What it keeps:

* all 2K rows of each request, rejected ones among them, through every layer;
* a concatenation of the taps and fc, launched eagerly; index arithmetic for slots and metadata,
  op by op, launched eagerly;
* graphs of pieces between the attention calls, attention launched eagerly;
* products by cuBLAS; logits of the whole vocabulary in memory, then argmax.

What it does in place of what is not here, in the baseline's favour unless said otherwise:

* Attention is this project's kernel, since FlashAttention 3 is not a part of torch.
* The Triton kernels of input preparation are copies of what they would have written.
* The residual is added by the product before a norm, and rotation and cache are one kernel.
* Every batch size has its graphs; vLLM by default has none above 512 rows.
* What the host does between launches, scheduling among it, is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from p_eagle_cuda import Drafter, ops
from p_eagle_cuda.buffers import PassInputs

Piece = Callable[[], None]


class VllmReplay:
    """Passes over one batch, with the weights and caches of a drafter."""

    def __init__(self, drafter: Drafter, given: PassInputs) -> None:
        """Make the buffers, and record the graphs where there is a GPU.

        Args:
            drafter: Whose weights and caches are used; without biases, norms of heads, norms
                before fc, or a smaller vocabulary.
            given: The batch, K + 1 rows for each request, in tensors that stay.
        """
        c, w, K = drafter.config, drafter.weights, drafter.num_speculative_tokens
        kinds = (c.norm_before_fc, c.fc_norm, c.norm_before_residual, c.attention_bias, c.qk_norm)
        if any(kinds) or w.draft_to_target is not None:
            raise ValueError("VllmReplay: expected a drafter without optional norms and biases")
        self.given, self.config, self.weights, self.caches = given, c, w, drafter.caches
        self.k, self.block_size, self.max_position = K, drafter.block_size, len(w.rope)
        B, device = given.num_requests, w.fc.device
        R = B * 2 * K
        self.num_requests, self.num_rows = B, R

        def buffer(*shape: int, dtype: torch.dtype = w.fc.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        H, D, I = c.hidden_size, c.head_dim, c.intermediate_size  # noqa: E741
        self.hidden, self.expanded, self.residual = (buffer(R, H) for _ in range(3))
        self.concat, self.normed = buffer(R, 2 * H), buffer(R, H)
        self.heads = buffer(R, (c.num_heads + 2 * c.num_kv_heads) * D)
        self.q, self.attended = buffer(R, c.num_heads, D), buffer(R, c.num_heads * D)
        self.product, self.activated = buffer(R, 2 * I), buffer(R, I)
        self.slots = buffer(R, dtype=torch.int64)
        self.row_start = buffer(B + 1, dtype=torch.int32)
        self.seq_lens = buffer(B, dtype=torch.int32)
        self.count = torch.full((1,), R, dtype=torch.int32, device=device)
        self.requests = torch.arange(B, device=device)
        self.attention = ops.allocate_attention(R, B, c.num_heads, c.num_kv_heads, D, device)
        self._lay_out_rows()
        self.metadata = torch.empty_like(self.laid_out)
        self.ids, self.positions, self.is_rejected = self.metadata[:3]
        self.is_mask = self.metadata[3]
        self.sampled = torch.empty_like(self.laid_out_samples)
        self.next_tokens = torch.empty_like(given.next_tokens)

        self._prepare()  # what the pieces read while they are recorded
        last = len(w.layers)
        self.pieces = [self._captured(lambda i=i: self._piece(i)) for i in range(last + 1)]

    def run(self) -> Tensor:
        """Launch a pass.

        Returns:
            ``[B, K]`` int64 drafts.
        """
        self._prepare()
        for i, piece in enumerate(self.pieces):
            piece()
            if i < len(self.caches):
                self._attend(i)
        logits = functional.linear(self.normed[self.sampled], self.weights.lm_head)
        self.top_logits = logits
        return logits.argmax(dim=-1).view(-1, self.k)

    def _lay_out_rows(self) -> None:
        """What vLLM's kernels find out on the device: valid, mask and rejected rows of each."""
        K, given = self.k, self.given
        rejected = given.num_rejected.tolist()
        tokens, following = given.target_tokens.tolist(), given.next_tokens.tolist()
        positions = given.target_positions.tolist()
        rows: list[list[int]] = []
        mapping, samples = [], []
        mask = self.config.mask_token_id
        for b, lost in enumerate(rejected):
            start, valid = b * (K + 1), K + 1 - lost
            first = positions[start]
            ids = [*tokens[start + 1 : start + valid], following[b]]
            mapping += [len(rows) + j for j in range(K + 1)]
            samples += [len(rows) + valid - 1 + j for j in range(K)]
            rows += [[token, first + j, 0, 0] for j, token in enumerate(ids)]
            rows += [[mask, first + valid + j, 0, 1] for j in range(K - 1)]
            rows += [[0, first + valid + K - 2, 1, 0]] * lost
        device = self.weights.fc.device
        self.laid_out = torch.tensor(rows, device=device).T.contiguous()
        self.mapping = torch.tensor(mapping, dtype=torch.int32, device=device)
        self.laid_out_samples = torch.tensor(samples, device=device)

    def _prepare(self) -> None:
        """Everything before the first piece, launched eagerly."""
        given, w, K = self.given, self.weights, self.k
        B, R = self.num_requests, self.num_rows
        taps = torch.cat(given.taps, dim=1)
        # Next tokens, rejected counts and the expanded rows: a Triton kernel each.
        self.sampled.copy_(self.laid_out_samples)
        self.next_tokens.copy_(given.next_tokens)
        self.metadata.copy_(self.laid_out)
        hidden = functional.linear(taps, w.fc)
        self.expanded[self.mapping.long()] = hidden
        is_mask = self.is_mask.bool()
        torch.where(is_mask[:, None], w.mask_hidden, self.expanded, out=self.hidden)
        # Slots.
        lengths = given.query_start.diff() + (K - 1)
        request = torch.repeat_interleave(self.requests, lengths, output_size=R)
        inside = self.positions.clamp(max=self.max_position - 1)
        table = given.block_table
        block = table.view(-1)[request * table.shape[1] + inside // self.block_size]
        slots = block.long() * self.block_size + inside % self.block_size
        slots.masked_fill_(self.positions >= self.max_position, -1)
        slots.masked_fill_(self.is_rejected.bool(), -1)
        # Metadata, and the map of attention, which is FlashAttention's scheduler metadata there.
        torch.add(given.query_start, torch.arange(B + 1, device=request.device) * (K - 1),
                  out=self.row_start)  # fmt: skip
        first = given.target_positions.view(B, K + 1)[:, 0]
        self.seq_lens.copy_(first + (2 * K) - given.num_rejected)
        self.work = ops.plan_attention(
            self.row_start, self.seq_lens, self.positions, self.config.num_heads,
            self.config.num_kv_heads, table.shape[1] * self.block_size, 0, False,
            self.attention.work,
        )  # fmt: skip
        self.slots.fill_(-1)
        self.slots.copy_(slots)

    def _piece(self, i: int) -> None:
        """What is between attention i - 1 and attention i."""
        w, eps, count = self.weights, self.config.rms_norm_eps, self.count
        if i == 0:
            first = w.layers[0]
            assert first.hidden_norm is not None
            H = self.hidden.shape[1]
            embedding = functional.embedding(self.ids, w.embedding)
            ops.norm_rows(embedding, first.input_norm, count, eps, self.normed)
            self.concat[:, :H].copy_(self.normed)
            ops.norm_rows(self.hidden, first.hidden_norm, count, eps, self.normed)
            self.concat[:, H:].copy_(self.normed)
            self.residual.copy_(self.hidden)
            x = self.concat
        else:
            layer = w.layers[i - 1]
            self.residual.addmm_(self.attended, layer.o.T)
            ops.norm_rows(self.residual, layer.post_norm, count, eps, self.normed)
            torch.mm(self.normed, layer.gate_up.T, out=self.product)
            ops.gate_rows(self.product, count, self.activated)
            self.residual.addmm_(self.activated, layer.down.T)
            norm = w.norm if i == len(w.layers) else w.layers[i].input_norm
            ops.norm_rows(self.residual, norm, count, eps, self.normed)
            x = self.normed
        if i == len(w.layers):
            return
        layer, cache = w.layers[i], self.caches[i]
        torch.mm(x, layer.qkv.T, out=self.heads)
        ops.rope_cache(
            self.heads, None, None, w.rope, self.positions, self.slots, count, cache.k_scale,
            cache.v_scale, eps, cache.k, cache.v, self.q,
        )  # fmt: skip

    def _attend(self, i: int) -> None:
        cache = self.caches[i]
        ops.paged_attention(
            self.q, cache.k, cache.v, cache.k_scale, cache.v_scale, self.given.block_table,
            self.row_start, self.seq_lens, self.positions, work=self.work,
            workspace=self.attention.workspace, out=self.attended,
        )  # fmt: skip

    def _captured(self, launch: Piece) -> Piece:
        """A graph of what a piece launches; the piece itself where there is no GPU."""
        if self.weights.fc.device.type != "cuda":
            return launch
        launch()
        torch.cuda.synchronize()
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        replay: Piece = graph.replay
        return replay
