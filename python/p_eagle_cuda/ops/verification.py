"""From the target's logits to the tokens that a step emits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from p_eagle_cuda import penalties as reference_penalties
from p_eagle_cuda import verification
from p_eagle_cuda._registry import (
    CPU_DTYPES,
    CpuBody,
    check,
    check_matrix,
    check_tensor,
    check_workspace,
    define,
    verify_workspace,
    wide_dtype,
)
from p_eagle_cuda.ops.head import MAX_TOP_K
from p_eagle_cuda.penalties import Occurrences, Penalties
from p_eagle_cuda.tree import MAX_NODES, Tree
from p_eagle_cuda.verification import RULES, Drafts, Rule, Verified


def _check_logits(op: str, logits: Tensor) -> None:
    check_matrix(op, "logits", logits)
    dtypes = CPU_DTYPES if logits.device.type == "cpu" else CPU_DTYPES[:3]
    allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    check(
        logits.dtype in dtypes,
        f"{op}: `logits` must have one of the dtypes {allowed} on {logits.device.type}, "
        f"got {logits.dtype}",
    )
    R, V = logits.shape
    check(1 <= V < 2**31, f"{op}: `logits` must have 1 to 2**31 - 1 columns, got {V}")
    check_tensor(op, "logits", logits, logits.dtype, R, V)


def _verify(
    logits: Tensor,
    row_start: Tensor,
    candidates: Tensor,
    next_token: Tensor | None,
    next_sibling: Tensor | None,
    temperature: Tensor | None,
    keys: Tensor | None,
    root_positions: Tensor | None,
    floors: Tensor | None,
    draft_ids: Tensor | None,
    draft_logits: Tensor | None,
    draft_temperature: Tensor | None,
    rule: int,
    lazy: bool,
    tokens: Tensor,
    path: Tensor,
    num_accepted: Tensor,
    num_rejected: Tensor,
    last_row: Tensor,
    next_tokens: Tensor,
    workspace: Tensor,
) -> CpuBody:
    op = "verify"
    _check_logits(op, logits)
    check_matrix(op, "candidates", candidates)
    R, (B, N) = len(logits), candidates.shape
    check(1 <= N <= MAX_NODES, f"{op}: `candidates` must have 1 to {MAX_NODES} columns, got {N}")
    check_tensor(op, "row_start", row_start, torch.int32, B + 1)
    check_tensor(op, "candidates", candidates, torch.int64, B, N)
    check(
        (next_token is None) == (next_sibling is None),
        f"{op}: `next_token` and `next_sibling` must both be given or both be None",
    )
    links = None
    if next_token is not None and next_sibling is not None:
        check_tensor(op, "next_token", next_token, torch.int64, B, N)
        check_tensor(op, "next_sibling", next_sibling, torch.int64, B, N)
        links = next_token, next_sibling
    sampling = temperature, keys, root_positions
    check(
        all(x is None for x in sampling) or all(x is not None for x in sampling),
        f"{op}: `temperature`, `keys` and `root_positions` must all be given or all be None",
    )
    if temperature is not None and keys is not None and root_positions is not None:
        check_tensor(op, "temperature", temperature, torch.float32, B)
        check_tensor(op, "keys", keys, torch.int64, B)
        check_tensor(op, "root_positions", root_positions, torch.int64, B)
    if floors is not None:
        check_tensor(op, "floors", floors, wide_dtype(logits.dtype), R)
    check(0 <= rule < len(RULES), f"{op}: `rule` must be 0 to {len(RULES) - 1}, got {rule}")
    name = RULES[rule]
    check(name != "block" or links is None, f"{op}: the rule `block` is for chains, got a tree")
    given = draft_ids, draft_logits, draft_temperature
    drafts = None
    if draft_ids is not None and draft_logits is not None and draft_temperature is not None:
        check_matrix(op, "draft_ids", draft_ids)
        rows, k = draft_ids.shape
        check(1 <= k <= MAX_TOP_K, f"{op}: `draft_ids` must have 1 to {MAX_TOP_K} columns, got {k}")
        check(
            rows % max(B, 1) == 0,
            f"{op}: `draft_ids` must have K rows for each of {B} requests, got {rows}",
        )
        is_wide = draft_logits.dtype == torch.float64 and not draft_logits.is_cuda
        check_tensor(op, "draft_ids", draft_ids, torch.int64, rows, k)
        wide = torch.float64 if is_wide else torch.float32
        check_tensor(op, "draft_logits", draft_logits, wide, rows, k)
        check_tensor(op, "draft_temperature", draft_temperature, torch.float32, B)
        drafts = Drafts(draft_ids, draft_logits, draft_temperature)
    check(
        drafts is not None or all(x is None for x in given),
        f"{op}: `draft_ids`, `draft_logits` and `draft_temperature` must all be given or all be "
        "None",
    )
    check(
        name == "target" or drafts is not None,
        f"{op}: the rule `{name}` needs the drafts' law, got no `draft_ids`",
    )
    outputs = Verified(tokens, path, num_accepted, num_rejected, last_row, next_tokens)
    check_tensor(op, "tokens", tokens, torch.int64, B, N)
    check_tensor(op, "path", path, torch.int32, B, N)
    check_tensor(op, "num_accepted", num_accepted, torch.int32, B)
    check_tensor(op, "num_rejected", num_rejected, torch.int32, B)
    check_tensor(op, "last_row", last_row, torch.int32, B)
    check_tensor(op, "next_tokens", next_tokens, torch.int64, B)
    check_workspace(op, workspace)

    def on_cpu() -> None:
        results = verification.verify(
            logits, row_start, candidates, next_tokens, temperature, keys, root_positions, links,
            floors, drafts, name,
        )  # fmt: skip
        for output, result in zip(outputs, results, strict=True):
            output.copy_(result)

    return on_cpu


define(
    "verify(Tensor logits, Tensor row_start, Tensor candidates, Tensor? next_token, "
    "Tensor? next_sibling, Tensor? temperature, Tensor? keys, Tensor? root_positions, "
    "Tensor? floors, Tensor? draft_ids, Tensor? draft_logits, Tensor? draft_temperature, int rule, "
    "bool lazy, Tensor(a!) tokens, Tensor(b!) path, Tensor(c!) num_accepted, "
    "Tensor(d!) num_rejected, Tensor(e!) last_row, Tensor(f!) next_tokens, "
    "Tensor(g!) workspace) -> ()",
    _verify,
)


class Sampling(NamedTuple):
    """How the target's tokens are drawn, and what makes them random. Of `verify`."""

    temperature: Tensor  # [B] float32; not above 0: the argmax
    keys: Tensor  # [B] int64, of the request: its seed, mixed with what tells it from others
    root_positions: Tensor  # [B] int64, absolute, of the last token before the drafts


def verify(
    logits: Tensor,
    row_start: Tensor,
    candidates: Tensor,
    next_tokens: Tensor,
    sampling: Sampling | None = None,
    drafts: Drafts | None = None,
    rule: Rule = "target",
    tree: Tree | None = None,
    out: Verified | None = None,
    *,
    floors: Tensor | None = None,
    lazy: bool = False,
    workspace: Tensor | None = None,
) -> Verified:
    """Accept the drafts that the target's law allows, and choose the token after them.

    Nodes and rows: node 0 of a request is its last known token, the others are drafts; node i has
    row ``row_start[b] + i`` of the logits, the target's law of the token after it. A request with
    one row has no drafts. A request without rows (a prompt that comes in chunks, or padding) emits
    nothing.

    The three rules, all lossless, are those of `p_eagle_cuda.verification`; "rejection" and "block"
    need to know from what the drafts were drawn. For requests whose temperature or whose draft's
    temperature is not above 0, where nothing is drawn, every rule is the first: its tokens are the
    target's own, the same whatever is drafted.

    Args:
        logits: ``[R, V]`` of the target: bfloat16, float16 or float32 (on the CPU also float64).
            Penalties are to be applied already, by `apply_penalties`.
        row_start: ``[B + 1]`` int32, the first row of each request, then the end of the last.
        candidates: ``[B, N]`` int64, tokens of the nodes, N at most 64: of a chain the root and the
            drafts in order. Rows of a request past N are not looked at.
        next_tokens: ``[B]`` int64; what it holds for requests without rows is kept, so that it can
            be the next prompt token there.
        sampling: None: every request takes the argmax.
        drafts: From what the drafts were drawn, as given to `build_tree`: `ids` and `logits` of its
            ``[B * K, k]`` entries, and its `temperature`. The law is softmax(logits / temperature)
            over the entries that exist. A draft that is none of them counts as not drafted.
        rule: "target", "rejection", or for chains "block".
        tree: Links of nodes that are no chain.
        out: Where to write, of the shapes below; `next_tokens` must be the argument. Allocated if
            None.
        floors: ``[R]`` from `logit_floors`: the smallest logit of a row that may be drawn.
        lazy: Read a row of the logits when a walk comes to its node, and no other row. The results
            are the same. As it is, all rows with a draft are read at once, which takes the least
            time for few requests; a walk reads its rows one after another, with one thread block
            for a request, and pays where requests are as many as the device has SMs, or nearly.
        workspace: Memory of this stream from `verify_workspace`, of R rows, or of B * N if `lazy`;
            allocated if None.

    Returns:
        `verification.Verified`. Its `num_rejected` and `next_tokens` are arguments of the next
        `prepare_inputs`. With ``row_start[b] = b * N``, `path` is SGLang's accept_index.

        Equal logits: the lower id first. A NaN logit counts as -inf; of a row whose largest logit
        is infinite the argmax is taken, which is id 0 where there is no number at all. Candidates
        outside of the vocabulary are never accepted; a link that does not lead on to a later node
        of the request ends a list. No content makes an access leave its tensor.

    Numerics:
        The law of what is emitted is the target's, exactly in float64 on the CPU; kernels sum
        float32 exponentials, so probabilities have relative errors of some 1e-6. What a request
        emits does not depend on the others, and all noise is keyed, see `noise.Stream`.
    """
    B, N = candidates.shape
    if out is None:

        def new(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=logits.device)

        out = Verified(
            new(B, N, dtype=torch.int64), new(B, N), new(B), new(B), new(B), next_tokens.clone()
        )
    if workspace is None:
        workspace = verify_workspace(logits.device, B * N if lazy else len(logits), logits.shape[1])
    links = (None, None) if tree is None else (tree.next_token, tree.next_sibling)
    torch.ops.p_eagle.verify(
        logits, row_start, candidates, *links, *(sampling or (None,) * 3), floors,
        *(drafts or (None,) * 3), RULES.index(rule), lazy, *out, workspace,
    )  # fmt: skip
    return out


def _logit_floors(
    logits: Tensor,
    row_start: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    floors: Tensor,
) -> CpuBody:
    op = "logit_floors"
    _check_logits(op, logits)
    check(temperature.ndim == 1, f"{op}: `temperature` must be [B], got {temperature.ndim}-D")
    B = temperature.numel()
    check_tensor(op, "row_start", row_start, torch.int32, B + 1)
    check_tensor(op, "temperature", temperature, torch.float32, B)
    if top_k is not None:
        check_tensor(op, "top_k", top_k, torch.int32, B)
    if top_p is not None:
        check_tensor(op, "top_p", top_p, torch.float32, B)
    if min_p is not None:
        check_tensor(op, "min_p", min_p, torch.float32, B)
    check_tensor(op, "floors", floors, wide_dtype(logits.dtype), len(logits))

    def on_cpu() -> None:
        floors.copy_(verification.logit_floors(logits, row_start, temperature, top_k, top_p, min_p))

    return on_cpu


define(
    "logit_floors(Tensor logits, Tensor row_start, Tensor temperature, Tensor? top_k, "
    "Tensor? top_p, Tensor? min_p, Tensor(a!) floors) -> ()",
    _logit_floors,
)


def logit_floors(
    logits: Tensor,
    row_start: Tensor,
    temperature: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The smallest logit of each row that top-k, top-p and min-p let through, for `verify`.

    All three keep the largest logits down to some value, and equal ones together:
    top-k those that fewer than k are larger than; top-p, of these, those that are preceded by less
    than the share p of their probability; min-p those with at least the share of the largest
    probability. What is kept is never nothing.

    Args:
        logits: ``[R, V]`` as for `verify`; V at most 262144 on CUDA.
        row_start: ``[B + 1]`` int32, the rows of each request. A row of several is the first one's.
        temperature: ``[B]`` float32, which the probabilities are of.
        top_k: ``[B]`` int32; below 1, or V and more: all.
        top_p: ``[B]`` float32; 1 or more, or NaN: all. 0 or less: the largest.
        min_p: ``[B]`` float32; 0 or less, or NaN: all. 1 or more: the largest.
        out: ``[R]``, written.

    Returns:
        ``[R]`` float32 (float64 for float64 logits); -inf for rows of no request, rows of one
        without filters, rows whose largest logit is infinite or which are all NaN or -inf, and
        where the temperature is not above 0. A NaN logit counts as -inf.

    Numerics:
        Top-k compares, and is exact. Top-p sums exponentials: the kernel's are integers of 37 bits,
        so a floor depends on no order and no batch, and a share is exact to 2e-6; only where it is
        hit that closely do implementations differ. The floor of min-p is rounded once.

        The kernel reads rows without filters not at all, others once for each byte that tells
        logits apart (bfloat16 2, float16 3, float32 4) for top-k, as often for top-p, and once
        more where there is no top-k.
    """
    if out is None:
        out = torch.empty(len(logits), dtype=wide_dtype(logits.dtype), device=logits.device)
    torch.ops.p_eagle.logit_floors(logits, row_start, temperature, top_k, top_p, min_p, out)
    return out


def _apply_penalties(
    logits: Tensor,
    row_start: Tensor,
    candidates: Tensor,
    parents: Tensor | None,
    token_ids: Tensor,
    token_counts: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> CpuBody:
    op = "apply_penalties"
    _check_logits(op, logits)
    check_matrix(op, "candidates", candidates)
    B, N = candidates.shape
    check(1 <= N <= MAX_NODES, f"{op}: `candidates` must have 1 to {MAX_NODES} columns, got {N}")
    check_tensor(op, "row_start", row_start, torch.int32, B + 1)
    check_tensor(op, "candidates", candidates, torch.int64, B, N)
    if parents is not None:
        check_tensor(op, "parents", parents, torch.int32, B, N)
    check_matrix(op, "token_ids", token_ids)
    M = token_ids.shape[1]
    check_tensor(op, "token_ids", token_ids, torch.int64, B, M)
    check_tensor(op, "token_counts", token_counts, torch.int32, B, M)
    penalties = Penalties(repetition, frequency, presence)
    for name, penalty in penalties._asdict().items():
        check_tensor(op, name, penalty, torch.float32, B)

    def on_cpu() -> None:
        occurrences = Occurrences(token_ids, token_counts)
        logits.copy_(
            reference_penalties.apply_penalties(
                logits, row_start, candidates, occurrences, penalties, parents
            )
        )

    return on_cpu


define(
    "apply_penalties(Tensor(a!) logits, Tensor row_start, Tensor candidates, Tensor? parents, "
    "Tensor token_ids, Tensor token_counts, Tensor repetition, Tensor frequency, "
    "Tensor presence) -> ()",
    _apply_penalties,
)


def apply_penalties(
    logits: Tensor,
    row_start: Tensor,
    candidates: Tensor,
    occurrences: Occurrences,
    penalties: Penalties,
    tree: Tree | None = None,
) -> None:
    """Penalise the tokens that have occurred, in place, before `logit_floors` and `verify`.

    The penalties are those of `p_eagle_cuda.penalties`: vLLM's repetition, frequency and presence,
    in this order. For the row of a node the output is what `occurrences` counts and the drafts on
    the path to the node, itself included: what it would be if they had been emitted. The root is
    not counted, because as a known token it is in the list already. So verification stays lossless
    for the penalised target.

    Args:
        logits: ``[R, V]`` as for `verify`, written. Rows of no node are left as they are.
        row_start: ``[B + 1]`` int32, as for `verify`.
        candidates: ``[B, N]`` int64, as for `verify`.
        occurrences: The tokens so far: `penalties.count_tokens` makes the lists,
            `penalties.add_tokens` adds what `verify` has emitted. Tokens outside of the vocabulary
            do not count, nor do counts below 0. A list's tokens must differ: one that is there
            twice is penalised once or twice, with either count.
        penalties: Of each request.
        tree: Its `parents` are used; None: chains.

    Numerics:
        float32 (float64 for float64 logits), rounded after each operation and once more to the
        logits' dtype. The same on every device, bit for bit. A kernel touches the tokens that have
        occurred and no others, and for a request without penalties nothing.
    """
    torch.ops.p_eagle.apply_penalties(
        logits, row_start, candidates, None if tree is None else tree.parents, *occurrences,
        *penalties,
    )  # fmt: skip
