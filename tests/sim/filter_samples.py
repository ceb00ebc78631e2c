"""The kernels of filters and penalties as samples, with launches that depend on each other."""

from __future__ import annotations

import ctypes

import torch

from p_eagle_cuda import penalties as reference
from p_eagle_cuda.verification import logit_floors as reference_floors
from sim.params import params_type
from sim.sample import Run, Sample, source


def logit_floors(run: Run) -> None:
    """Three launches, the third of which takes the first's floors as its temperatures.

    The second wants nothing, so that the order of the first and the third hangs on its blocks.
    """
    B, V = 6, 616
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(B, V, generator=g) + 1).bfloat16()
    logits[0, ::3] = torch.nan
    logits[4] = logits[4].clamp(max=-1.5)  # the floors of its filters are negative
    rows = torch.arange(B + 1, dtype=torch.int32)
    filters = {
        "top_k": torch.tensor([30, 0, 40, 0, 200, 50], dtype=torch.int32),
        "top_p": torch.tensor([1.0, 0.9, 0.8, 1.0, 0.97, 0.3]),
        "min_p": torch.tensor([0.0, 0.0, 0.0, 0.2, 0.0, 0.01]),
    }
    temperature = torch.tensor([0.9, 0.7, 1.1, 0.6, 3.0, 2.0])
    given = {name: run.given(name, x) for name, x in filters.items()}
    constants = {
        "logits": run.given("logits", logits),
        "row_start": run.given("row_start", rows),
    }
    made = run.given("temperature", temperature)
    for label, wanted in (("", filters), (" of nothing", {}), (" of the third launch", filters)):
        floors = reference_floors(logits, rows, temperature, **wanted)
        bits = torch.full((B,), 77.0).view(torch.int32), floors.view(torch.int32)  # of -inf, too
        output = run.updated(f"floors{label}", *bits, 0.0)
        params = params_type("LogitFloorsParams")(
            **constants, **(given if wanted else {}), temperature=made, floors=output,
            num_rows=B, vocab_size=V, num_requests=B,
        )  # fmt: skip
        run.launch("launch_logit_floors_from_c", ctypes.byref(params))
        if label == "":
            first = floors, output
        temperature, made = first


def apply_penalties(run: Run) -> None:
    """Two launches in place, one after the other, and one that wants nothing between them."""
    B, N, V, M = 3, 6, 400, 70
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(B * N, V, generator=g).bfloat16()
    ids = torch.stack([torch.randperm(V, generator=g)[:M] for _ in range(B)])
    candidates = torch.tensor(
        [[0, 5, 5, 9, 5, 9], [0, 7, 8, V, -1, 7], [0, *ids[2, [3, 3, 69]].tolist(), 2, 2]]
    )
    parents = torch.tensor([[-1, 0, 1, 2, 3, 4], [-1, 0, 1, 1, 0, 2], [9, 1, 1, 2, 3, 4]]).int()
    ids[1, [4, 68]] = torch.tensor([V, -7])
    ids[2, 10] = V  # past the last row of all
    counts = torch.randint(3, (B, M), generator=g).int()
    lists = reference.Occurrences(ids, counts)
    some = reference.Penalties(
        torch.tensor([1.3, 1.0, 0.7]), torch.tensor([0.5, 0.0, -0.25]), torch.tensor([0.4, 0.3, 0])
    )
    none = reference.Penalties(torch.ones(B), torch.zeros(B), torch.zeros(B))
    rows = torch.arange(B + 1, dtype=torch.int32) * N
    expected = logits
    for _ in range(2):
        nodes = rows, candidates
        expected = reference.apply_penalties(expected, *nodes, lists, some, parents)
    constants = {
        "logits": run.updated("logits", logits, expected, 0.0),
        "row_start": run.given("row_start", rows),
        "candidates": run.given("candidates", candidates),
        "parents": run.given("parents", parents),
        "token_ids": run.given("token_ids", ids),
        "token_counts": run.given("token_counts", counts),
    }
    for label, penalties in (("", some), (" of nothing", none), (" again", some)):
        of_requests = {n: run.given(n + label, x) for n, x in penalties._asdict().items()}
        params = params_type("ApplyPenaltiesParams")(
            **constants, **of_requests, num_rows=B * N, vocab_size=V, num_requests=B,
            max_nodes=N, max_tokens=M,
        )  # fmt: skip
        run.launch("launch_apply_penalties_from_c", ctypes.byref(params))


SAMPLES = {
    run.__name__: Sample(run, source(f"launch_{run.__name__}"))
    for run in (logit_floors, apply_penalties)
}
