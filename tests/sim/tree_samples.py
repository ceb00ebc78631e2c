"""The kernels of trees and verification as samples, with launches that depend on each other."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from p_eagle_cuda.tree import Topology, Tree, topology
from p_eagle_cuda.tree import build_tree as reference_tree
from p_eagle_cuda.tree import compact_cache as compact_reference
from p_eagle_cuda.verification import RULES, Drafts
from p_eagle_cuda.verification import verify as reference_verify
from sim.params import params_type
from sim.sample import Run, Sample, source

Pointer = ctypes.c_void_p

B, K, ENTRIES, V = 3, 3, 4, 5000  # two tiles of logits
SHAPE = topology([(0,), (1,), (0, 0), (0, 2), (1, 0), (3,), (0, 0, 1)])


def build_tree(run: Run) -> None:
    """A best tree, one without a request, then a drawn one whose roots the first has made."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(B * K, ENTRIES, generator=g).sort(descending=True).values
    logits[4, 1] = torch.nan
    logits[6] = logits[6, 0]  # ties
    ids = torch.stack([torch.randperm(V, generator=g)[:ENTRIES] for _ in range(B * K)])
    ids[7, 2] = V
    entries = {"ids": ids, "logits": logits, "lse": logits.nan_to_num().logsumexp(1) + 0.1}
    pointers = {name: run.given(name, x) for name, x in entries.items()}
    keys, temperature = torch.tensor([5, -7, 2**40]), torch.tensor([1.0, 0.5, 0.0])

    def launch(
        label: str, roots: Tensor, positions: Tensor, N: int, made: dict[str, Pointer],
        shape: Topology | None = None, **options: Any,
    ) -> tuple[Tree, dict[str, Pointer]]:  # fmt: skip
        num = len(roots)
        own = {name: x[: num * K] for name, x in entries.items()}
        numbers = {"log_discount": options.pop("log_discount", 0.0), "vocab_size": V}
        tree = reference_tree(
            **own, root_tokens=roots, root_positions=positions, num_nodes=N, shape=shape,
            **options, **numbers,
        )  # fmt: skip
        given = {"root_tokens": roots, "root_positions": positions, **options}
        if shape is not None:
            given |= {"shape_parents": shape.parents, "shape_ranks": shape.ranks}
        inputs = {n: run.given(n + label, x) for n, x in given.items() if n not in made} | made
        # Filled with 77, which no output is; what a buffer starts out as is -1, which some are.
        outputs = {
            name: run.updated(name + label, torch.full_like(x, 77), x, 0.0)
            for name, x in tree._asdict().items()
        }
        params = params_type("BuildTreeParams")(
            **pointers, **inputs, **outputs, **numbers, num_requests=num, num_depths=K,
            top_k=ENTRIES, max_nodes=N, shape_nodes=0 if shape is None else len(shape.parents),
        )  # fmt: skip
        run.launch("launch_build_tree_from_c", ctypes.byref(params))
        return tree, outputs

    roots, positions = torch.tensor([7, 8, 9]), torch.tensor([3, 2**33, 0])
    budgets = torch.tensor([80, 11, 0], dtype=torch.int32)
    tree, made = launch("", roots, positions, 64, {}, budgets=budgets, log_discount=-0.5)
    costs = 1 + torch.arange(9.0) / 8
    launch(" of the second launch", roots[:1], positions[:1], 9, {}, step_costs=costs)
    launch(
        " of the third launch", tree.candidates.flatten()[:B], tree.positions.flatten()[:B], 9,
        {"root_tokens": made["candidates"], "root_positions": made["positions"]}, SHAPE,
        noise_keys=keys, temperature=temperature,
    )  # fmt: skip


def verify(run: Run) -> None:
    """Every rule, each with what the one before has made; chains and a tree; then a lazy walk."""
    g = torch.Generator().manual_seed(1)
    N, depths = len(SHAPE.parents), torch.tensor([0, 1, 1, 2, 2, 2, 1, 3])
    draft_logits = torch.randn(B * K, ENTRIES, generator=g)
    draft_ids = torch.stack([torch.randperm(V, generator=g)[:ENTRIES] for _ in range(B * K)])
    keys, t = torch.tensor([11, -12, 2**50]), torch.tensor([0.7, 0.9, 0.8])
    tree = reference_tree(
        draft_ids, draft_logits, draft_logits.logsumexp(1), torch.zeros(B).long(),
        torch.zeros(B).long(), N, V, SHAPE, noise_keys=keys, temperature=torch.ones(B),
    )  # fmt: skip
    logits = torch.randn(B, N, V, generator=g)
    for b in range(B):
        for node in range(N):
            row = b * K + min(int(depths[node]), K - 1)
            logits[b, node, draft_ids[row]] = 8 + draft_logits[row]
    logits[0, 3, ::2] = torch.nan
    logits = logits.view(B * N, V).bfloat16()
    row_start = torch.tensor([0, N, 2 * N, 3 * N], dtype=torch.int32)
    floors = torch.full((B * N,), -1.0)
    positions, next_tokens = torch.tensor([3, 2**33, 40]), torch.tensor([5, 6, 7])
    scratch = -(-V // 4096) * B * N * 12
    constants = {
        "logits": run.given("logits", logits),
        "row_start": run.given("row_start", row_start),
        "temperature": run.given("temperature", t),
        "keys": run.given("keys", keys),
        "floors": run.given("floors", floors),
        "draft_ids": run.given("draft_ids", draft_ids),
        "draft_logits": run.given("draft_logits", draft_logits),
        "draft_temperature": run.given("draft_temperature", torch.ones(B)),
        "workspace": run.scratch("workspace", (scratch,), torch.uint8),
    }
    drafts = Drafts(draft_ids, draft_logits, torch.ones(B))
    links = {"next_token": tree.next_token, "next_sibling": tree.next_sibling}
    chain = torch.cat([next_tokens[:, None], draft_ids.view(B, K, ENTRIES)[:, :, 0]], dim=1)
    of_tree = {name: run.given(name, x) for name, x in links.items()}
    made = run.given("root_positions", positions)
    for label, rule, candidates, is_tree, is_lazy in (
        ("", "target", tree.candidates, True, False),
        (" of the second launch", "rejection", tree.candidates, True, False),
        (" of the third launch", "block", chain, False, False),
        (" of the fourth launch", "rejection", tree.candidates, True, True),
    ):
        result = reference_verify(
            logits, row_start, candidates.contiguous(), next_tokens, t, keys, positions,
            tuple(links.values()) if is_tree else None, floors, drafts, rule,
        )  # fmt: skip
        outputs = {
            name: run.updated(name + label, torch.full_like(x, 77), x, 0.0)
            for name, x in result._asdict().items()
        }
        params = params_type("VerifyParams")(
            **constants, **(of_tree if is_tree else {}), **outputs, root_positions=made,
            candidates=run.given(f"candidates{label}", candidates.contiguous()),
            rule=RULES.index(rule), is_lazy=is_lazy, num_rows=B * N, vocab_size=V, num_requests=B,
            max_nodes=candidates.shape[1], num_depths=K, top_k=ENTRIES,
        )  # fmt: skip
        run.launch("launch_verify_from_c", ctypes.byref(params))
        positions, made = result.next_tokens, outputs["next_tokens"]


def compact_cache(run: Run) -> None:
    """Two launches that move on what the first has moved, and one without paths between them."""
    blocks, heads, block_size, D, N = 12, 2, 4, 72, 9
    g = torch.Generator().manual_seed(2)
    slots = torch.randperm(blocks * block_size, generator=g)[:18]
    slots[[13, 15]] = -1
    row_start = torch.tensor([0, 9, 18], dtype=torch.int32)
    path = torch.tensor([[0, 2, 3, 4, 6, 7, 8, -1, -1], [9, 10, 12, 15, 16, -1, 3, 4, 5]]).int()
    caches = [torch.randint(2**15, (blocks, heads, block_size, D), generator=g) for _ in "kv"]
    caches = [cache.to(torch.int16) for cache in caches]
    expected = [cache.clone() for cache in caches]
    for paths in (path, path):
        compact_reference(paths, row_start, slots, expected)
    fields = {
        name: params_type("PagedCache")(
            data=run.updated(name, cache, after.double(), 0.0),
            block_stride=heads * block_size * D * 2, head_stride=block_size * D * 2,
            slot_stride=D * 2,
        )
        for name, cache, after in zip(("k_cache", "v_cache"), caches, expected, strict=True)
    }  # fmt: skip
    given = {"row_start": run.given("row_start", row_start), "slots": run.given("slots", slots)}
    for label, paths in (("", path), (" of nobody", torch.full_like(path, -1)), (" again", path)):
        params = params_type("CompactCacheParams")(
            **given, **fields, path=run.given(f"path{label}", paths), num_requests=2, max_nodes=N,
            num_rows=18, num_kv_heads=heads, head_bytes=D * 2, num_cache_blocks=blocks,
            block_size=block_size,
        )  # fmt: skip
        run.launch("launch_compact_cache_from_c", ctypes.byref(params))


SAMPLES = {
    run.__name__: Sample(run, source(f"launch_{run.__name__}"))
    for run in (compact_cache, build_tree, verify)
}
