"""The kernels of a pass that are no linear layers, at the drafters' sizes, each with a cold L2.

For each: microseconds, GB/s of the bytes that must move, and the share of the measured copy
bandwidth. The head is compared with what takes its place without it, a product by cuBLAS whose
logits go to memory, and argmax; attention with FlashAttention where vLLM is installed, that of a
prompt's rows with torch's; with `--compile` the head and the embedding with the reference under
torch.compile. `bench_linear` has the linear layers.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention.bias import causal_lower_right
from tqdm import tqdm

from clocks import ClockWatch
from compiled import Baseline
from drafters import BLOCK_SIZE, KV_DTYPES, Case, random_caches
from p_eagle_cuda import ops, reference
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.reference import LayerCache
from shapes import DRAFTERS, EPS, DrafterShape, config_of
from timing import (
    Call,
    copy_bandwidth,
    device_to_time,
    environment,
    num_copies,
    time_candidates,
    write_json,
)

MAX_COPIED_BYTES = 8 << 30
BASELINES = ("cublas", "sdpa", "flash_attention", "compiled")
TOLERANCE = 0.1  # of torch.compile: bf16 rounding of a result of order one, on either side
READS_CACHE = ("attention", "prompt_attention")
PROMPT_ROWS = 2048  # of a prompt, at most, in a pass


class Kernel(NamedTuple):
    """Calls to be timed, on different memory each."""

    bytes: int  # that must move
    candidates: dict[str, list[Call]]  # the kernel as "ours"
    left_out: dict[str, str] | None = None  # candidates that do not run here, and why
    baseline: Baseline | None = None  # the reference, for torch.compile
    result: torch.Tensor | None = None  # what "ours" writes, the baseline's first result


class Setting(NamedTuple):
    """What kernels are timed for."""

    shape: DrafterShape
    case: Case
    kv: str
    device: torch.device

    @property
    def num_rows(self) -> int:
        """R of the pass, all rows existing."""
        return sum(self.case.num_accepted()) + self.case.batch * self.case.k

    def bf16(self, *size: int) -> torch.Tensor:
        """Random rows or weights."""
        return torch.randn(size, dtype=torch.bfloat16, device=self.device)

    def int32(self, values: list[int]) -> torch.Tensor:
        """Counts and offsets."""
        return torch.tensor(values, dtype=torch.int32, device=self.device)


def prepare_inputs(s: Setting) -> Kernel:
    """Latency alone: it moves a few numbers per row, and the map of attention."""
    shape, (B, K) = s.shape, (s.case.batch, s.case.k)
    T, R = B * (K + 1), B * 2 * K
    columns = -(-max(s.case.positions()) // BLOCK_SIZE)
    table = torch.arange(B * columns, dtype=torch.int32, device=s.device).view(B, columns)
    tokens = torch.arange(T, device=s.device)
    positions = torch.tensor(s.case.contexts(), device=s.device)[:, None]
    positions = (positions + torch.arange(K + 1, device=s.device)).flatten()
    start = s.int32([b * (K + 1) for b in range(B + 1)])
    rejected = s.int32([K - a for a in s.case.num_accepted()])
    arguments = (tokens, positions, start, rejected, tokens[:B].clone(), table, K, 0, BLOCK_SIZE)
    out = ops.prepare_inputs(*arguments, columns * BLOCK_SIZE)
    work = ops.allocate_attention(
        R, B, shape.num_heads, shape.num_kv_heads, shape.head_dim, s.device
    ).work

    def call() -> object:
        return ops.prepare_inputs(
            *arguments, columns * BLOCK_SIZE, out=out, work=work, num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
        )  # fmt: skip

    return Kernel(T * 16 + R * 28 + B * K * 4 + work.nbytes, {"ours": [call] * 8})


def embed_norm_concat(s: Setting) -> Kernel:
    """Rows of the embedding and of hidden states, normed side by side."""
    R, H, V = s.num_rows, s.shape.hidden_size, s.shape.vocab_size
    copies = min(num_copies(R * H * 2, s.device), max(V // R, 1))
    embedding, hidden = s.bf16(V, H), s.bf16(R, H)
    norm, mask = s.bf16(H), s.bf16(H)
    source, count = s.int32(list(range(R))), s.int32([R])
    out, residual = s.bf16(R, 2 * H), s.bf16(R, H)

    every = [torch.arange(i * R, (i + 1) * R, device=s.device) % V for i in range(copies)]

    def call(ids: torch.Tensor) -> Call:
        return lambda: ops.embed_norm_concat(
            ids, source, count, embedding, hidden, mask, norm, norm, EPS, out=out,
            residual=residual,
        )  # fmt: skip

    arguments = [(ids, source, embedding, hidden, mask, norm, norm, EPS, False) for ids in every]
    return Kernel(
        R * H * 2, {"ours": [call(ids) for ids in every]}, None,
        Baseline(reference.embed_norm_concat, arguments), out,
    )  # fmt: skip


def attention(s: Setting) -> Kernel:
    """One layer's attention, with the division of the work among blocks, which all layers share."""
    counts = [a + s.case.k for a in s.case.num_accepted()]
    found = _attention(s, s.case.contexts(), counts)
    candidates, left_out = {"ours": found.calls}, {}
    try:
        candidates["flash_attention"] = _flash_attention(found)
    except Exception as error:  # not installed, of another version, or not for this GPU
        left_out["flash_attention"] = str(error).splitlines()[0]
    return Kernel(sum(s.case.contexts()) * _cache_width(s), candidates, left_out)


def prompt_attention(s: Setting) -> Kernel:
    """The last rows of one prompt, against torch's kernel for contiguous keys and values.

    The baseline is what a pass over a prompt could call if it had gathered the pages, widened FP8
    keys and knew the lengths on the host, none of which is counted.
    """
    rows = min(PROMPT_ROWS, max(s.case.context // 2, 1))
    found = _attention(s, [s.case.context - rows], [rows])
    q = found.q.transpose(0, 1)[None].contiguous()
    mask = causal_lower_right(rows, s.case.context)

    def contiguous(x: torch.Tensor) -> torch.Tensor:
        x = x[found.block_table[0].long()].transpose(0, 1).flatten(1, 2)[:, : s.case.context]
        return x.to(torch.bfloat16)[None].contiguous()

    def sdpa(cache: LayerCache) -> Call:
        k, v = contiguous(cache.k), contiguous(cache.v)
        return lambda: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=True
        )

    candidates = {"ours": found.calls, "sdpa": [sdpa(cache) for cache in found.caches]}
    return Kernel(s.case.context * _cache_width(s), candidates)


class Attention(NamedTuple):
    """A layer's attention on different caches, the same rows each time."""

    q: torch.Tensor  # [R, Nq, D]
    caches: list[LayerCache]
    block_table: torch.Tensor
    row_start: torch.Tensor
    seq_lens: torch.Tensor
    max_rows: int  # of a request
    calls: list[Call]


def _flash_attention(found: Attention) -> list[Call]:
    """The same by FlashAttention as vLLM brings it along; each has run once.

    Raises:
        Exception: Whatever it raises where it cannot run.
    """
    if not found.q.is_cuda:
        raise PEagleError("needs a GPU")
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    out, max_keys = torch.empty_like(found.q), found.block_table.shape[1] * BLOCK_SIZE

    def call(cache: LayerCache) -> Call:
        k, v = cache.k.transpose(1, 2), cache.v.transpose(1, 2)
        return lambda: flash_attn_varlen_func(
            q=found.q, k=k, v=v, out=out, cu_seqlens_q=found.row_start,
            max_seqlen_q=found.max_rows, seqused_k=found.seq_lens, max_seqlen_k=max_keys,
            block_table=found.block_table, causal=True,
        )  # fmt: skip

    calls = [call(cache) for cache in found.caches]
    calls[0]()
    return calls


def _cache_width(s: Setting) -> int:
    """Bytes of a layer's cache per position."""
    return 2 * s.shape.num_kv_heads * s.shape.head_dim * KV_DTYPES[s.kv].itemsize


def _attention(s: Setting, contexts: list[int], counts: list[int]) -> Attention:
    """Of `counts` rows per request after `contexts` positions."""
    shape, B = s.shape, len(counts)
    seq_lens = [n + rows for n, rows in zip(contexts, counts, strict=True)]
    owned = [-(-n // BLOCK_SIZE) for n in seq_lens]
    num_blocks, moved = sum(owned), sum(contexts) * _cache_width(s)
    cache_bytes = num_blocks * BLOCK_SIZE * _cache_width(s)
    copies = max(1, min(num_copies(moved, s.device), MAX_COPIED_BYTES // cache_bytes))
    config = replace(config_of(shape, max(seq_lens)), num_layers=copies)
    caches = random_caches(config, num_blocks, KV_DTYPES[s.kv], s.device)
    columns = -(-max(seq_lens) // BLOCK_SIZE)
    table = torch.full((B, columns), -1, dtype=torch.int32)
    for row, own in zip(table, torch.randperm(num_blocks).int().split(owned), strict=True):
        row[: len(own)] = own
    table = table.to(s.device)
    row_start = s.int32([sum(counts[:b]) for b in range(B + 1)])
    lens, R = s.int32(seq_lens), sum(counts)
    each = zip(contexts, counts, strict=True)
    positions = torch.tensor([n + j for n, rows in each for j in range(rows)], device=s.device)
    q = s.bf16(R, shape.num_heads, shape.head_dim)
    out = s.bf16(R, shape.num_heads * shape.head_dim)
    buffers = ops.allocate_attention(
        R, B, shape.num_heads, shape.num_kv_heads, shape.head_dim, s.device
    )
    work = ops.plan_attention(
        row_start, lens, positions, shape.num_heads, shape.num_kv_heads, columns * BLOCK_SIZE, 0,
        False, buffers.work,
    )  # fmt: skip

    def call(cache: LayerCache) -> Call:
        return lambda: ops.paged_attention(
            q, cache.k, cache.v, cache.k_scale, cache.v_scale, table, row_start, lens, positions,
            work=work, workspace=buffers.workspace, out=out,
        )  # fmt: skip

    calls = [call(cache) for cache in caches]
    return Attention(q, caches, table, row_start, lens, max(counts), calls)


def plan_attention(s: Setting) -> Kernel:
    """The map by itself, as tree verification needs it; a pass gets it with its inputs."""
    shape, B = s.shape, s.case.batch
    per_request = [a + s.case.k for a in s.case.num_accepted()]
    starts = s.int32([sum(per_request[:b]) for b in range(B + 1)])
    rows = list(zip(s.case.contexts(), per_request, strict=True))
    lens = s.int32([n + count for n, count in rows])
    at = torch.tensor([n + j for n, count in rows for j in range(count)], device=s.device)
    work = ops.allocate_attention(
        len(at), B, shape.num_heads, shape.num_kv_heads, shape.head_dim, s.device
    ).work
    most = -(-max(s.case.positions()) // BLOCK_SIZE) * BLOCK_SIZE

    def call() -> object:
        return ops.plan_attention(
            starts, lens, at, shape.num_heads, shape.num_kv_heads, most, 0, False, work
        )

    return Kernel(8 * len(at) + 8 * B + 4 * work.numel(), {"ours": [call] * 8})


def head(s: Setting) -> Kernel:
    """Norm, product and the best token, against a product and argmax."""
    H, V, N = s.shape.hidden_size, s.shape.vocab_size, s.case.batch * s.case.k
    copies = 1 if V * H * 2 > 1 << 29 else num_copies(V * H * 2, s.device)
    weights = [s.bf16(V, H).mul_(H**-0.5) for _ in range(copies)]
    x, norm = s.bf16(N, H), torch.ones(H, dtype=torch.bfloat16, device=s.device)
    rows, logits = s.int32(list(range(N))), s.bf16(N, V)
    ids = torch.empty(N, dtype=torch.int64, device=s.device)
    workspace = ops.lm_head_workspace(s.device, N, 1)
    out = ops.lm_head_topk(x, rows, norm, weights[0], None, 1, EPS, workspace=workspace)

    def ours(weight: torch.Tensor) -> Call:
        return lambda: ops.lm_head_topk(
            x, rows, norm, weight, None, 1, EPS, out=out, workspace=workspace
        )

    def cublas(weight: torch.Tensor) -> Call:
        def call() -> None:
            torch.mm(x, weight.T, out=logits)
            torch.argmax(logits, dim=1, out=ids)

        return call

    candidates = {"ours": [ours(w) for w in weights], "cublas": [cublas(w) for w in weights]}
    arguments = [(x, rows, norm, weight) for weight in weights]
    return Kernel(V * H * 2, candidates, None, Baseline(_best_logit, arguments), out[1])


def _best_logit(
    x: torch.Tensor, rows: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Logits first: ids of near-ties may differ."""
    ids, logits, lse = reference.lm_head_topk(x, rows, norm, weight, None, 1, EPS)
    return logits, ids, lse


KERNELS: dict[str, Callable[[Setting], Kernel]] = {
    "attention": attention,
    "prompt_attention": prompt_attention,
    "head": head,
    "plan_attention": plan_attention,
    "prepare_inputs": prepare_inputs,
    "embed_norm_concat": embed_norm_concat,
}


def compiled(kernel: Kernel) -> list[Call]:
    """Its baseline under torch.compile.

    Raises:
        PEagleError: There is none, or it cannot run, or computes something else.
    """
    if kernel.baseline is None or kernel.result is None:
        raise PEagleError("torch.compile: the reference of this op waits for the host")
    kernel.candidates["ours"][0]()
    return kernel.baseline.compiled(kernel.result, TOLERANCE)


def measure(
    options: Namespace, device: torch.device, bandwidth: float, errors: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for each kernel and batch; what went wrong goes to `errors`."""
    for name in options.kernel:
        for batch in [1] if name == "prompt_attention" else options.batch:
            case = Case(batch, options.k, options.context)
            for kv in options.kv if name in READS_CACHE else options.kv[:1]:
                setting = Setting(DRAFTERS[options.drafter], case, kv, device)
                what = {"kernel": name, **asdict(case), "kv": kv}
                try:
                    kernel = KERNELS[name](setting)
                    left_out = dict(kernel.left_out or {})
                    if options.compile:
                        try:
                            kernel.candidates["compiled"] = compiled(kernel)
                        except PEagleError as error:
                            left_out["compiled"] = str(error)
                    timings = time_candidates(kernel.candidates, min_seconds=0.05)
                except (PEagleError, RuntimeError) as error:  # the others may go well
                    errors.append({**what, "error": str(error).splitlines()[0]})
                    continue
                rate = kernel.bytes / (timings["ours"].median_us * 1e-6)
                yield {
                    **what, "bytes": kernel.bytes,
                    "gb_per_s": round(rate / 1e9, 1), "share_of_copy": round(rate / bandwidth, 3),
                    **{candidate: timing.as_json() for candidate, timing in timings.items()},
                    "left_out": left_out,
                }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """Markdown, a line for each case."""
    lines = [
        "| Kernel | Batch | K | Context | KV | us | GB/s | of copy | baseline us |",
        "|" + " --- |" * 9,
    ]
    for r in report["results"]:
        baseline = [f"{r[x]['median_us']:.1f} ({x})" for x in BASELINES if x in r]
        lines.append(
            f"| {r['kernel']} | {r['batch']} | {r['k']} | {r['context']} | {r['kv']} "
            f"| {r['ours']['median_us']:.2f} | {r['gb_per_s']:.0f} | {r['share_of_copy']:.0%} "
            f"| {baseline[0] if baseline else '-'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print a table, write the JSON that was asked for as it grows."""
    options = _parser().parse_args()
    try:
        device = device_to_time(dry_run=options.dry_run)
        bandwidth = copy_bandwidth(device)
        report: dict[str, Any] = {
            **environment(), "drafter": options.drafter,
            "copy_gb_per_s": round(bandwidth / 1e9, 1), "results": [], "errors": [],
        }  # fmt: skip
        with ClockWatch() as clocks:
            for row in tqdm(measure(options, device, bandwidth, report["errors"]), unit="case"):
                report["results"].append(row)
                write_json(options.json, report)
        clocks.note(report)
        write_json(options.json, report)
        print(table(report))
    except (PEagleError, OSError) as error:
        print(f"bench_kernel: error: {error}", file=sys.stderr)
        return 2
    for failed in report["errors"]:
        print(f"bench_kernel: error: {failed}", file=sys.stderr)
    return 1 if report["errors"] else 0


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--drafter", choices=DRAFTERS, default="gpt-oss-20b")
    parser.add_argument("--kernel", choices=KERNELS, nargs="+", default=list(KERNELS))
    parser.add_argument("--batch", type=positive_int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--k", type=positive_int, default=7)
    parser.add_argument("--context", type=positive_int, default=4096)
    parser.add_argument("--kv", choices=KV_DTYPES, nargs="+", default=list(KV_DTYPES))
    parser.add_argument("--compile", action="store_true", help="torch.compile, too; takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU; measures nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
