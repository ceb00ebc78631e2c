"""Verification of drafts against other kernels for it, each with logits that are not in L2.

For each batch, number of nodes and vocabulary: microseconds, and GB/s of the logits read once.
`torch` is what a chain costs in torch's ops, by the steps of vLLM's sampler: softmax of all rows,
the drafts' probabilities, an exponential race for the token after them. `sgl_kernel` and `vllm` are
those packages' own kernels where they are installed; the report says why where they are not used.
Probabilities, where a candidate wants them, are computed inside of what is timed.

Greedy candidates must emit the same tokens before they are timed.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from clocks import ClockWatch
from p_eagle_cuda import ops
from p_eagle_cuda._registry import verify_workspace
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.ops.verification import Sampling
from p_eagle_cuda.tree import Tree
from timing import (
    Call,
    copy_bandwidth,
    device_to_time,
    environment,
    num_copies,
    time_candidates,
    write_json,
)

RULES = ("greedy chain", "greedy tree", "sampled chain", "sampled tree")
BRANCHES = 2  # children of every node of a tree, while there are nodes left
MAX_COPIED_BYTES = 8 << 30
RACE_FLOOR = 1e-30  # an exponential variable is never zero


class Batch(NamedTuple):
    """What a step has to verify, on one copy of the logits."""

    logits: Tensor  # [B * N, V]
    row_start: Tensor
    candidates: Tensor  # [B, N], the root and its drafts
    next_tokens: Tensor
    tree: Tree | None
    temperature: Tensor | None  # [B]; None: greedy

    @property
    def sampling(self) -> Sampling | None:
        """As `ops.verify` takes it."""
        if self.temperature is None:
            return None
        requests = torch.arange(len(self.candidates), device=self.logits.device)
        return Sampling(self.temperature, requests, 100 * requests)


def make_batches(rule: str, B: int, N: int, V: int, device: torch.device) -> list[Batch]:
    """Batches that accept about half of what is drafted: every second draft is the likeliest."""
    g = torch.Generator(device=device).manual_seed(B * 1000 + N)
    bytes_read = B * N * V * 2
    copies = max(1, min(num_copies(bytes_read, device), MAX_COPIED_BYTES // bytes_read))
    tree = tree_of(B, N, device) if "tree" in rule else None
    found = []
    for _ in range(copies):
        logits = torch.randn(B * N, V, generator=g, device=device).to(torch.bfloat16)
        candidates = torch.randint(V, (B, N), generator=g, device=device)
        likeliest = logits.argmax(dim=-1, keepdim=True)
        logits.scatter_(1, likeliest, 1 + logits.float().logsumexp(dim=1, keepdim=True).bfloat16())
        likeliest = likeliest.view(B, N)  # three quarters of the law
        if tree is None:
            good = torch.rand(B, N - 1, generator=g, device=device) < 0.5
            candidates[:, 1:] = torch.where(good, likeliest[:, :-1], candidates[:, 1:])
        else:
            # One of the children of each node is what follows it.
            first = tree.next_token.clamp(min=0)
            has = (tree.next_token >= 0) & (torch.rand(B, N, generator=g, device=device) < 0.5)
            follows = torch.where(has, likeliest, candidates.gather(1, first))
            candidates = candidates.scatter(1, torch.where(has, first, 0), follows)
        found.append(
            Batch(
                logits=logits,
                row_start=torch.arange(B + 1, dtype=torch.int32, device=device) * N,
                candidates=candidates,
                next_tokens=torch.zeros(B, dtype=torch.int64, device=device),
                tree=tree,
                temperature=torch.ones(B, device=device) if "sampled" in rule else None,
            )
        )
    return found


def tree_of(B: int, N: int, device: torch.device) -> Tree:
    """The same full tree for every request: node i has the children 2 i + 1 and 2 i + 2."""
    node = torch.arange(N, device=device)
    first = BRANCHES * node + 1
    links = {
        "next_token": torch.where(first < N, first, -1),
        "next_sibling": torch.where((node > 0) & (node % BRANCHES == 1) & (node + 1 < N),
                                    node + 1, -1),
    }  # fmt: skip
    empty = {name: torch.empty(0, device=device) for name in Tree._fields if name not in links}
    each = {name: x.expand(B, N).contiguous() for name, x in links.items()}
    return Tree(**empty, **each)


# ---- Candidates: each makes the calls, and says where the emitted tokens are ---------------------


class Candidate(NamedTuple):
    """Calls on the batches, and what the last of them emits: [B, N] with -1 past the end."""

    calls: list[Call]
    tokens: Callable[[], Tensor]


def ours(batches: list[Batch]) -> Candidate:
    """`ops.verify`."""
    batch = batches[0]
    workspace = verify_workspace(batch.logits.device, *batch.logits.shape)
    samplings = [x.sampling for x in batches]

    def run(i: int, out: Any = None) -> Any:  # noqa: ANN401
        x = batches[i]
        return ops.verify(
            x.logits, x.row_start, x.candidates, x.next_tokens, samplings[i], tree=x.tree, out=out,
            workspace=workspace,
        )  # fmt: skip

    out = run(0)
    out = out._replace(next_tokens=batch.next_tokens)
    calls = [
        lambda i=i, x=x: run(i, out._replace(next_tokens=x.next_tokens))
        for i, x in enumerate(batches)
    ]
    return Candidate(calls, lambda: out.tokens)


def in_torch(batches: list[Batch]) -> Candidate:
    """A chain, in torch's ops."""
    B, N = batches[0].candidates.shape
    V, device = batches[0].logits.shape[1], batches[0].logits.device
    out = torch.empty(B, N, dtype=torch.int64, device=device)
    column = torch.arange(N, device=device)

    def run(x: Batch) -> None:
        logits, drafts = x.logits.view(B, N, V), x.candidates[:, 1:]
        if x.temperature is None:
            follows = logits.argmax(dim=-1)
            accepted = (follows[:, :-1] == drafts).cumprod(dim=1)
        else:
            law = torch.softmax(logits.float() / x.temperature[:, None, None], dim=-1)
            share = law[:, :-1].gather(2, drafts[..., None])[..., 0]
            accepted = (torch.rand_like(share) < share).long().cumprod(dim=1)
            law[:, :-1].scatter_(2, drafts[..., None], 0.0)
            race = torch.empty_like(law[:, 0]).exponential_().clamp_(min=RACE_FLOOR)
            follows = law.div_(race[:, None]).argmax(dim=-1)
        count = accepted.sum(dim=1, keepdim=True)
        tokens = torch.cat([drafts, drafts[:, :1]], dim=1)
        tokens = torch.where(column == count, follows, tokens)
        out.copy_(torch.where(column <= count, tokens, -1))

    return Candidate([lambda x=x: run(x) for x in batches], lambda: out)


def of_sgl_kernel(batches: list[Batch]) -> Candidate:
    """sgl-kernel's, for trees; softmax and argmax by torch."""
    import sgl_kernel

    B, N = batches[0].candidates.shape
    V, device = batches[0].logits.shape[1], batches[0].logits.device
    assert batches[0].tree is not None
    predicts = torch.full((B * N,), -1, dtype=torch.int32, device=device)
    index = torch.full((B, N), -1, dtype=torch.int32, device=device)
    count = torch.zeros(B, dtype=torch.int32, device=device)
    rows = torch.arange(B * N, device=device).view(B, N)
    zeros = torch.zeros(B, N, V, device=device) if batches[0].temperature is not None else None

    def run(x: Batch) -> None:
        assert x.tree is not None
        index.fill_(-1)
        shared = {
            "predicts": predicts, "accept_index": index, "accept_token_num": count,
            "candidates": x.candidates, "retrive_index": rows,
            "retrive_next_token": x.tree.next_token, "retrive_next_sibling": x.tree.next_sibling,
        }  # fmt: skip
        if x.temperature is None:
            follows = x.logits.argmax(dim=-1).view(B, N)
            sgl_kernel.verify_tree_greedy(**shared, target_predict=follows)
            return
        law = torch.softmax(x.logits.view(B, N, V).float() / x.temperature[:, None, None], dim=-1)
        sgl_kernel.tree_speculative_sampling_target_only(
            **shared, uniform_samples=torch.rand(B, N, device=device),
            uniform_samples_for_final_sampling=torch.rand(B, device=device), target_probs=law,
            draft_probs=zeros.zero_(), threshold_single=1.0, threshold_acc=1.0, deterministic=True,
        )  # fmt: skip

    def tokens() -> Tensor:
        found = predicts[index.long().clamp(min=0)].long()
        return torch.where(index >= 0, found, -1)

    return Candidate([lambda x=x: run(x) for x in batches], tokens)


def of_vllm(batches: list[Batch]) -> Candidate:
    """The V1 sampler of vLLM, for chains; without draft probabilities, as for P-EAGLE."""
    from types import SimpleNamespace

    from vllm.v1.sample.rejection_sampler import rejection_sample

    B, N = batches[0].candidates.shape
    device = batches[0].logits.device
    draft_rows = torch.arange(B * N, device=device).view(B, N)[:, :-1].flatten()
    ends = torch.arange(1, B + 1, dtype=torch.int32, device=device) * (N - 1)
    out = torch.empty(B, N, dtype=torch.int64, device=device)
    greedy = batches[0].temperature is None
    metadata = SimpleNamespace(
        all_greedy=greedy, all_random=not greedy, temperature=batches[0].temperature, generators={}
    )
    drafts = [x.candidates[:, 1:].reshape(-1).int() for x in batches]

    def run(x: Batch, drafted: Tensor) -> None:
        rows = x.logits.view(B, N, -1)
        last = rows[:, -1].float()
        if greedy:
            bonus = last.argmax(dim=-1, keepdim=True)
        else:
            race = torch.empty_like(last).exponential_().clamp_(min=RACE_FLOOR)
            bonus = last.softmax(dim=-1).div_(race).argmax(dim=-1, keepdim=True)
        found = rejection_sample(
            drafted, [N - 1] * B, N - 1, ends, None, x.logits[draft_rows].float(), bonus.int(),
            metadata,
        )  # fmt: skip
        out.copy_(found)

    calls = [lambda x=x, d=d: run(x, d) for x, d in zip(batches, drafts, strict=True)]
    return Candidate(calls, lambda: out)


CANDIDATES: dict[str, tuple[str, Callable[[list[Batch]], Candidate]]] = {
    "ours": ("", ours),
    "torch": ("chain", in_torch),
    "sgl_kernel": ("tree", of_sgl_kernel),
    "vllm": ("chain", of_vllm),
}


def measure(
    options: Namespace, report: dict[str, Any], device: torch.device
) -> Iterator[dict[str, Any]]:
    """A row for each case; what cannot be used, and why, goes to the report."""
    left_out: dict[str, str] = report["left_out"]
    for V in options.vocab_size:
        for N in options.nodes:
            for B in options.batch:
                for rule in options.rule:
                    what = {"rule": rule, "batch": B, "nodes": N, "vocab_size": V}
                    try:
                        batches = make_batches(rule, B, N, V, device)
                        usable = _candidates(rule, batches, left_out, device)
                        if "greedy" in rule:
                            _must_agree(usable)
                        calls = {name: found.calls for name, found in usable.items()}
                        timings = time_candidates(calls, min_seconds=0.05)
                    except (PEagleError, RuntimeError) as error:  # the others may go well
                        report["errors"].append({**what, "error": str(error).splitlines()[0]})
                        continue
                    us = timings["ours"].median_us
                    read = B * N * V * 2
                    yield {
                        **what, "bytes": read, "gb_per_s": round(read / us / 1e3, 1),
                        **{name: timing.as_json() for name, timing in timings.items()},
                    }  # fmt: skip


def _candidates(
    rule: str, batches: list[Batch], left_out: dict[str, str], device: torch.device
) -> dict[str, Candidate]:
    """Those that know the rule and run here; each has run once, on the last batch."""
    usable = {}
    for name, (kind, make) in CANDIDATES.items():
        if kind not in rule:
            continue
        if name not in ("ours", "torch") and device.type != "cuda":
            left_out[name] = "needs a GPU"
            continue
        try:
            usable[name] = make(batches)
            usable[name].calls[-1]()
        except Exception as error:
            if name in ("ours", "torch"):
                raise
            left_out[name] = str(error).splitlines()[0]  # not installed, or of another version
            usable.pop(name, None)
    return usable


def _must_agree(usable: dict[str, Candidate]) -> None:
    expected = usable["ours"].tokens()
    for name, candidate in usable.items():
        if not torch.equal(candidate.tokens(), expected):
            raise PEagleError(f"{name} emits other tokens than ours, not worth timing")


def table(report: dict[str, Any]) -> str:
    """Markdown, a line for each case."""
    names = list(CANDIDATES)
    lines = [
        "| Rule | Batch | Nodes | Vocabulary | " + " | ".join(f"{x} us" for x in names)
        + " | GB/s |",
        "|" + " --- |" * (5 + len(names)),
    ]  # fmt: skip
    for row in report["results"]:
        us = [f"{row[x]['median_us']:.1f}" if x in row else "-" for x in names]
        lines.append(
            f"| {row['rule']} | {row['batch']} | {row['nodes']} | {row['vocab_size']} | "
            + " | ".join(us) + f" | {row['gb_per_s']:.0f} |"
        )  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Measure, print a table, write the JSON that was asked for as it grows."""
    options = _parser().parse_args()
    try:
        device = device_to_time(dry_run=options.dry_run)
        bandwidth = copy_bandwidth(device)
        report: dict[str, Any] = {
            **environment(), "copy_gb_per_s": round(bandwidth / 1e9, 1), "results": [],
            "left_out": {}, "errors": [],
        }  # fmt: skip
        with ClockWatch() as clocks:
            for row in tqdm(measure(options, report, device), unit="case"):
                report["results"].append(row)
                write_json(options.json, report)
        clocks.note(report)
        write_json(options.json, report)
        print(table(report))
    except (PEagleError, OSError) as error:
        print(f"bench_verify: error: {error}", file=sys.stderr)
        return 2
    for name, why in report["left_out"].items():
        print(f"bench_verify: without {name}: {why}", file=sys.stderr)
    for failed in report["errors"]:
        print(f"bench_verify: error: {failed}", file=sys.stderr)
    return 1 if report["errors"] else 0


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--rule", choices=RULES, nargs="+", default=list(RULES))
    parser.add_argument("--batch", type=positive_int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--nodes", type=positive_int, nargs="+", default=[8, 32])
    parser.add_argument("--vocab-size", type=positive_int, nargs="+", default=[201088])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU; measures nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
