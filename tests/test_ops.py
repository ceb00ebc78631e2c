"""Every op: its result, what it reads and writes, its contract, its registration.

On the CPU an op *is* the reference, so these tests check plumbing there (`test_reference.py` checks
the reference); on a GPU, and on its emulator, the same tests check the kernels.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from devices import DEVICES, Device
from numerics import assert_as_accurate_as_torch, assert_rounded_once, double
from op_cases import CASES, N_REAL, OUTPUTS, SCRATCH, SENTINEL, Arguments, plan
from p_eagle_cuda import attention_work, ops, reference
from p_eagle_cuda.noise import Noise
from p_eagle_cuda.penalties import Occurrences, Penalties, apply_penalties
from p_eagle_cuda.tree import Topology, build_tree, compact_cache
from p_eagle_cuda.verification import RULES, Drafts, logit_floors, verify

OPS = sorted(CASES)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]

# Sizes are taken from these, so a wrong one is reported as a mismatch of another argument.
DEFINES_SIZES = {
    "prepare_inputs": {"target_tokens", "num_rejected"},
    "project_taps": {"taps", "source_row", "weight"},
    "embed_norm_concat": {"hidden", "embedding"},
    "qkv_rope_cache": {"x", "q", "k_cache"},
    "plan_attention": {"seq_lens", "positions"},
    "paged_attention": {"q", "k_cache", "block_table"},
    **{op: {"x", "weight"} for op in ("linear_residual", "gemm", "gemm_residual")},
    **{op: {"x", "gate_up"} for op in ("norm_swiglu", "gemm_swiglu")},
    "lm_head_topk": {"x", "weight", "ids"},
    "gather_taps": {"taps", "source_row"},
    "norm_rows": {"x"},
    "gate_rows": {"gate_up"},
    "rope_cache": {"heads", "q", "k_cache"},
    "prune_rows": {"x", "sample_rows", "seq_lens"},
    "build_tree": {"ids", "candidates", "shape_parents"},
    "verify": {"logits", "candidates", "draft_ids"},
    "logit_floors": {"logits", "temperature"},
    "apply_penalties": {"logits", "candidates", "token_ids"},
    "compact_cache": {"path", "slots", "k_cache"},
}

# Of these ops all elements of the outputs are written, however many rows exist.
WHOLE_OUTPUTS = {
    "prepare_inputs", "plan_attention", "lm_head_topk", "build_tree", "verify", "logit_floors",
    "apply_penalties",
}  # fmt: skip

# These are written whole by an op that writes others only as far as there are rows.
WHOLE_WITH_ROWS = {"pruned_row_start", "pruned_sample_rows", "work"}

CPU = DEVICES["cpu"]


def case(name: str, device: Device, dtype: torch.dtype = torch.bfloat16) -> Arguments:
    """Arguments for `device`; skips where this build has no such kernel or the device no dtype."""
    if not device.has(name):
        pytest.skip(f"{name} has no CUDA kernel in this build")
    if device.runs_kernels and dtype == torch.float32:
        pytest.skip("CUDA kernels work in 16 bits")
    return CASES[name](device.name, dtype)


def clone(arguments: Arguments) -> Arguments:
    def copy(x: Any) -> Any:
        return [t.clone() for t in x] if isinstance(x, list) else x

    # A cache that is half of a larger tensor becomes contiguous; ops get the originals.
    return {n: x.clone() if isinstance(x, Tensor) else copy(x) for n, x in arguments.items()}


def run_reference(name: str, a: Arguments) -> dict[str, Tensor]:
    """The op's outputs by `reference` alone, for the rows that exist."""
    n = N_REAL
    if name == "prepare_inputs":
        outputs = reference.prepare_inputs(*list(a.values())[:10])._asdict()
        max_keys = a["block_table"].shape[1] * a["block_size"]
        rows = {x: outputs[x] for x in ("row_start", "seq_lens", "positions")}
        heads = {x: a[x] for x in ("num_heads", "num_kv_heads")}
        causal = {"max_keys": max_keys, "window": a["window"], "is_tree": False}
        return outputs | {"work": planned(rows | heads | causal | {"work": a["work"]})}
    if name == "project_taps":
        out = reference.project_taps(
            a["taps"], a["source_row"][:n], a["weight"], a["input_norm"], a["fc_norms"], a["eps"]
        )
        return {"out": out}
    if name == "embed_norm_concat":
        out, residual = reference.embed_norm_concat(
            a["token_ids"][:n], a["source_row"][:n], a["embedding"], a["hidden"][:n],
            a["mask_hidden"], a["embed_weight"], a["hidden_weight"], a["eps"],
            a["norm_before_residual"],
        )  # fmt: skip
        return {"out": out, "residual": residual}
    if name == "qkv_rope_cache":
        q, k, v = reference.qkv_rope(
            a["x"][:n], a["norm_weight"], a["weight"], a["bias"], a["q_norm"], a["k_norm"],
            a["rope"], a["positions"][:n], a["k_cache"].shape[1], a["eps"], None, a["mask_heads"],
            a["source_row"][:n],
        )  # fmt: skip
        return {"q": q, **written_caches(a, k, v)}
    if name == "paged_attention":
        out = reference.paged_attention(
            a["q"][:n], a["k_cache"], a["v_cache"], a["k_scale"], a["v_scale"], a["block_table"],
            a["row_start"], a["seq_lens"], a["positions"][:n], a["softmax_scale"], a["tree_mask"],
            a["sinks"], a["window"],
        )  # fmt: skip
        return {"out": out}
    if name == "plan_attention":
        return {"work": planned(a)}
    if name == "gemm":
        return {"out": torch.addmm(a["bias"], a["x"][:n], a["weight"].T)}
    if name in ("linear_residual", "gemm_residual"):
        residual = reference.linear_residual(a["x"][:n], a["weight"], a["bias"], a["residual"][:n])
        return {"residual": residual, "sum_squares": reference.sum_squares(residual)}
    if name == "norm_swiglu":
        return {"out": reference.norm_swiglu(a["x"][:n], a["norm_weight"], a["gate_up"], a["eps"])}
    if name == "gather_taps":
        norms = a["input_norm"], a["fc_norms"]
        return {"out": reference.gather_taps(a["taps"], a["source_row"][:n], *norms, a["eps"])}
    if name == "norm_rows":
        return {"out": reference.rms_norm(a["x"][:n], a["norm_weight"], a["eps"])}
    if name in ("gate_rows", "gemm_swiglu"):
        product = a["gate_up"][:n] if name == "gate_rows" else a["x"][:n] @ a["gate_up"].T
        return {"out": reference.gate_rows(product)}
    if name == "rope_cache":
        q, k, v = reference.rope_heads(
            a["heads"][:n], a["q_norm"], a["k_norm"], a["rope"], a["positions"][:n],
            a["k_cache"].shape[1], a["eps"],
        )  # fmt: skip
        return {"q": q, **written_caches(a, k, v)}
    if name == "prune_rows":
        rows = reference.prune_rows(a["x"], a["positions"], a["row_start"], a["sample_rows"])
        positions = torch.cat([rows.positions, rows.positions.new_zeros(9 - N_REAL)])
        inputs = {"row_start": rows.row_start, "seq_lens": a["seq_lens"], "positions": positions}
        heads = {x: a[x] for x in ("num_heads", "num_kv_heads", "max_keys", "window")}
        work = planned(inputs | heads | {"is_tree": False, "work": a["work"]})
        return dict(zip(OUTPUTS[name], (*rows, work), strict=True))
    if name == "build_tree":
        shape = Topology(a["shape_parents"], a["shape_ranks"])
        return build_tree(
            a["ids"], a["logits"], a["lse"], a["root_tokens"], a["root_positions"],
            a["candidates"].shape[1], a["vocab_size"], shape, a["budgets"],
             a["noise_keys"], a["temperature"],
        )._asdict()  # fmt: skip
    if name == "verify":
        return verify(
            a["logits"], a["row_start"], a["candidates"], a["next_tokens"], a["temperature"],
            a["keys"], a["root_positions"], None, a["floors"],
            Drafts(a["draft_ids"], a["draft_logits"], a["draft_temperature"]), RULES[a["rule"]],
        )._asdict()  # fmt: skip
    if name == "compact_cache":
        caches = a["k_cache"].clone(), a["v_cache"].clone()
        compact_cache(a["path"], a["row_start"], a["slots"], caches)
        return {"k_cache": caches[0], "v_cache": caches[1]}
    if name == "logit_floors":
        return {"floors": logit_floors(*list(a.values())[:6])}
    if name == "apply_penalties":
        occurrences = Occurrences(a["token_ids"], a["token_counts"])
        penalties = Penalties(*(a[x] for x in Penalties._fields))
        nodes = a["row_start"], a["candidates"]
        logits = apply_penalties(a["logits"], *nodes, occurrences, penalties, a["parents"])
        return {"logits": logits}
    noise = Noise(*(a[x] for x in ("noise_keys", "noise_positions", "temperature")))
    found = reference.lm_head_topk(
        a["x"], a["sample_rows"], a["norm_weight"], a["weight"], a["draft_to_target"],
        a["ids"].shape[1], a["eps"], vocab_subset=a["vocab_subset"], noise=noise,
    )  # fmt: skip
    return dict(zip(OUTPUTS["lm_head_topk"], found, strict=True))


def planned(a: Arguments) -> Tensor:
    """The map as csrc/common/attention_layout.h lays it out."""
    R, B, group = len(a["positions"]), len(a["seq_lens"]), a["num_heads"] // a["num_kv_heads"]
    max_segments = B + R * group // 128
    num_blocks = len(a["work"]) - 8 - 8 * max_segments - B
    work = attention_work.plan_attention(*list(a.values())[:8], num_blocks, max_segments)
    segments = torch.zeros(max_segments, 8, dtype=torch.int32)
    segments[: len(work.segments), :7] = work.segments
    header = [len(work.segments), work.num_tiles, work.tiles_per_block, 0, 0, 0, 0, 0]
    parts = [torch.tensor(header), segments.flatten(), work.request_segment, work.first_segment]
    return torch.cat([part.int() for part in parts])


def written_caches(a: Arguments, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Copies of the caches with the keys and values of the rows that exist."""
    k_cache, v_cache = a["k_cache"].clone(), a["v_cache"].clone()
    reference.write_cache(k, a["slots"][: len(k)], k_cache, a["k_scale"])
    reference.write_cache(v, a["slots"][: len(v)], v_cache, a["v_scale"])
    return {"k_cache": k_cache, "v_cache": v_cache}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_matches_reference(name: str, dtype: torch.dtype, device: Device) -> None:
    arguments = case(name, device, dtype)
    exact = run_reference(name, {n: double(x) for n, x in clone(arguments).items()})
    unfused = run_reference(name, clone(arguments))
    device.call(name, arguments)
    for output in OUTPUTS[name]:
        expected = exact[output]
        actual = arguments[output][: len(expected)]
        if output == "sum_squares":  # of what was written, [groups, R]
            written = reference.sum_squares(arguments["residual"][:N_REAL])
            assert_rounded_once(output, actual[:, :N_REAL], written.double())
            continue
        if not expected.is_floating_point():
            assert torch.equal(actual, expected), output
        elif name in ("lm_head_topk", "logit_floors"):
            present = expected.isfinite()
            assert torch.equal(actual[~present].double(), expected[~present])
            assert_as_accurate_as_torch(
                output, actual[present], expected[present], unfused[output][present]
            )
        elif name in ("embed_norm_concat", "gather_taps", "norm_rows", "gate_rows", "prune_rows"):
            assert_rounded_once(output, actual, expected)
        elif name == "project_taps":
            real = arguments["source_row"][: len(expected)] >= 0
            assert_as_accurate_as_torch(output, actual[real], expected[real], unfused[output][real])
        else:
            assert_as_accurate_as_torch(output, actual, expected, unfused[output])


@pytest.mark.parametrize("name", OPS)
def test_writes_only_its_outputs_and_rows(name: str, device: Device) -> None:
    arguments = case(name, device)
    before = clone(arguments)
    device.call(name, arguments)
    for argument, x in arguments.items():
        if argument not in (*OUTPUTS[name], *SCRATCH) and isinstance(x, Tensor):
            assert torch.equal(x.nan_to_num(), before[argument].nan_to_num()), argument
    has_row_count = "num_rows" in arguments or "row_start" in arguments
    for output in OUTPUTS[name]:
        x = arguments[output]
        if output == "sum_squares":
            x = x.T
        is_whole = name in WHOLE_OUTPUTS or output in WHOLE_WITH_ROWS or output.endswith("_cache")
        if not is_whole and has_row_count:
            assert (x[N_REAL:] == SENTINEL).all(), f"{output}: wrote rows that do not exist"
        if output.endswith("_cache") and name != "compact_cache":
            slots = arguments["slots"][:N_REAL]
            written = torch.zeros(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
            written[slots[slots >= 0] // x.shape[2], slots[slots >= 0] % x.shape[2]] = True
            untouched = x.transpose(1, 2)[~written]
            assert (untouched == SENTINEL).all(), f"{output}: wrote slots of nobody"
            assert not (x.transpose(1, 2)[written] == SENTINEL).all(dim=(-1, -2)).any()


@pytest.mark.parametrize("name", OPS)
def test_no_rows(name: str, device: Device) -> None:
    """A captured pass may find that no row exists."""
    arguments = case(name, device)
    if name == "prepare_inputs":
        arguments["query_start"].zero_()
    elif name == "lm_head_topk":
        arguments["sample_rows"].fill_(-1)
    elif name == "build_tree":
        arguments["budgets"].zero_()
    elif name == "compact_cache":
        arguments["path"].fill_(-1)
    elif "num_rows" in arguments:
        arguments["num_rows"].zero_()
    else:
        arguments["row_start"].zero_()
    if name == "paged_attention":
        plan(arguments)
    before = clone(arguments)
    device.call(name, arguments)
    if name == "prepare_inputs":
        assert arguments["work"][:2].tolist() == [0, 0]
        assert arguments["row_start"].tolist() == [0, 0, 0]
        assert (arguments["slots"] == -1).all()
    elif name == "lm_head_topk":
        assert (arguments["ids"] == -1).all()
    elif name == "prune_rows":
        assert not arguments["pruned_row_start"].any()
        assert (arguments["pruned_sample_rows"] == -1).all()
        assert (arguments["out"] == SENTINEL).all()
    elif name == "plan_attention":
        assert arguments["work"][:2].tolist() == [0, 0]
    elif name == "build_tree":
        assert (arguments["num_nodes"] == 0).all()
        assert (arguments["candidates"] == -1).all()
    elif name == "verify":
        assert (arguments["tokens"] == -1).all()
        assert torch.equal(arguments["next_tokens"], before["next_tokens"])
    elif name == "logit_floors":
        assert (arguments["floors"] == float("-inf")).all()
    else:
        for output in OUTPUTS[name]:
            assert torch.equal(arguments[output].nan_to_num(), before[output].nan_to_num())


def bad_calls() -> list[tuple[str, str, str]]:
    """(op, argument, what is wrong with it), for every tensor argument of every op."""
    found = []
    for name in OPS:
        for argument, x in CASES[name]("cpu", torch.bfloat16).items():
            if isinstance(x, Tensor):
                found += [(name, argument, "dtype"), (name, argument, "shape")]
                if x.numel() > 1 and not argument.endswith("_cache"):
                    found.append((name, argument, "strides"))
    return found


@pytest.mark.parametrize(("name", "argument", "wrong"), bad_calls())
def test_rejects_bad_argument(name: str, argument: str, wrong: str, device: Device) -> None:
    arguments = case(name, device)
    x = arguments[argument]
    if wrong == "dtype":
        changed = x.to(torch.int16) if not x.is_floating_point() else x.to(torch.complex64)
    elif wrong == "shape":
        changed = x[None]
    else:
        changed = torch.stack([x, x], dim=-1)[..., 0]
    arguments[argument] = changed
    defines = argument in DEFINES_SIZES[name]
    match = f"{name}: " if defines else f"{name}: `{argument}` must"
    if {argument} & {"q_norm", "k_norm", "k_cache", "v_cache"}:
        match = f"{name}: `"
    with pytest.raises((ValueError, RuntimeError), match=match):
        device.call(name, arguments)


@pytest.mark.parametrize("name", OPS)
def test_registration(name: str, device: Device) -> None:
    """Schema, fake implementation and tracing agree with what the op does."""
    if device.is_emulated:
        pytest.skip("the emulator borrows the schemas")
    arguments = case(name, device)
    torch.library.opcheck(getattr(torch.ops.p_eagle, name).default, tuple(arguments.values()))


@pytest.mark.parametrize("name", OPS)
def test_public_function_allocates_what_it_returns(name: str, device: Device) -> None:
    """The documented call, without outputs, gives the same as the op with them."""
    if device.is_emulated:
        pytest.skip("the public functions know nothing of the emulator")
    arguments = case(name, device)
    plain = clone(arguments)
    given = {n: x for n, x in plain.items() if n not in OUTPUTS[name] or n.endswith("_cache")}
    given.pop("workspace", None)
    if name in ("linear_residual", "gemm_residual"):
        given["residual"] = plain["residual"]
    if name in ("plan_attention", "prepare_inputs", "prune_rows"):
        given["work"] = plain["work"]
    if name == "lm_head_topk":
        given["top_k"] = plain["ids"].shape[1]
    if name == "build_tree":
        given["shape"] = Topology(given.pop("shape_parents"), given.pop("shape_ranks"))
        given["off_spine_discount"] = math.exp(given.pop("log_discount"))
        given["num_nodes"] = plain["candidates"].shape[1]
    if name == "verify":
        del given["next_token"], given["next_sibling"]
        given["sampling"] = ops.Sampling(*(given.pop(x) for x in ops.Sampling._fields))
        given["drafts"] = Drafts(*(given.pop(f"draft_{x}") for x in Drafts._fields))
        given["rule"], given["next_tokens"] = RULES[given["rule"]], plain["next_tokens"]
    if name == "apply_penalties":  # in place alone, of chains as there is no tree
        arguments["parents"] = None
        given = {n: plain[n] for n in ("logits", "row_start", "candidates")}
        given["occurrences"] = Occurrences(plain["token_ids"], plain["token_counts"])
        given["penalties"] = Penalties(*(plain[x] for x in Penalties._fields))
    returned = getattr(ops, name)(**given)
    device.call(name, arguments)
    results = returned if isinstance(returned, tuple) else (returned,)
    if name in ("prepare_inputs", "prune_rows"):
        results = (*results, plain["work"])
    results = () if name == "compact_cache" else results  # in place alone
    if name == "apply_penalties":
        results = (plain["logits"],)
    names = [n for n in OUTPUTS[name] if not n.endswith("_cache")]
    for output, result in zip(names, results, strict=True):
        rows = slice(None) if name in WHOLE_OUTPUTS else slice(N_REAL)
        at = (slice(None), rows) if output == "sum_squares" else rows
        assert torch.equal(result[at], arguments[output][at]), output


@pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_attention_over_an_fp8_cache_uses_each_scale(
    cache_dtype: torch.dtype, device: Device
) -> None:
    """Against the same attention over the dequantised cache, k and v scaled apart."""
    quantised = case("paged_attention", device)
    for name, scale in (("k", 0.5), ("v", 0.125)):
        cache, stored = quantised[f"{name}_cache"], None
        stored = cache.nan_to_num().to(cache_dtype)
        quantised[f"{name}_cache"] = stored
        quantised[f"{name}_scale"] = torch.full((1,), scale, device=device.name)
    plain = clone(quantised)
    for name in "kv":
        values = plain[f"{name}_cache"].double() * plain[f"{name}_scale"].double()
        plain[f"{name}_cache"], plain[f"{name}_scale"] = values, torch.ones(1, device=device.name)
    plain["q"] = plain["q"].double()
    exact = run_reference("paged_attention", plain)["out"]
    unfused = run_reference("paged_attention", clone(quantised))["out"]
    device.call("paged_attention", quantised)
    actual = quantised["out"][:N_REAL]
    assert_as_accurate_as_torch("out", actual, exact, unfused)
    if not device.runs_kernels:  # they round the weights of the softmax, too
        assert_rounded_once("out", actual, exact)


@pytest.mark.parametrize("rows", [-1, 10])
def test_row_counts_out_of_range(rows: int) -> None:
    arguments = CASES["norm_swiglu"]("cpu", torch.bfloat16)
    arguments["num_rows"].fill_(rows)
    with pytest.raises(ValueError, match=f"the number of rows must be 0 to 9, got {rows}"):
        CPU.call("norm_swiglu", arguments)


@pytest.mark.parametrize("name", ["num_heads", "num_kv_heads", "window"])
def test_numbers_of_a_map_that_is_not_wanted(name: str, device: Device) -> None:
    """Who forgets the map must not go on with an old one."""
    for op in ("prepare_inputs", "prune_rows"):
        arguments = case(op, device)
        numbers = [x for x in ("num_heads", "num_kv_heads", "max_keys", "window") if x in arguments]
        arguments |= {"work": None, **dict.fromkeys(numbers, 0)}
        device.call(op, arguments)
        with pytest.raises(
            (ValueError, RuntimeError), match=rf"{op}: .* are of a `work` map, got .* without one"
        ):
            device.call(op, arguments | {name: 8})


WRONG_NUMBERS_OF_A_MAP = {
    "num_kv_heads": (0, "`num_kv_heads` must be above 0, got 0"),
    "num_heads": (3, "`num_heads` must be a multiple of num_kv_heads = 2, got 3"),
    "window": (-1, "`window` must be 0 to 1073741824, got -1"),
}


@pytest.mark.parametrize("number", WRONG_NUMBERS_OF_A_MAP)
@pytest.mark.parametrize("name", ["prepare_inputs", "plan_attention", "prune_rows"])
def test_maps_that_cannot_be(name: str, number: str, device: Device) -> None:
    value, message = WRONG_NUMBERS_OF_A_MAP[number]
    arguments = case(name, device)
    with pytest.raises((ValueError, RuntimeError), match=f"{name}: {message}"):
        device.call(name, arguments | {number: value})


@pytest.mark.parametrize("block_size", [2**30, 2**62])
def test_more_keys_than_a_map_can_have(block_size: int, device: Device) -> None:
    arguments = case("prepare_inputs", device) | {"block_size": block_size}
    with pytest.raises((ValueError, RuntimeError), match="up to 1073741824 keys, the block table"):
        device.call("prepare_inputs", arguments)


def test_rows_without_a_request() -> None:
    arguments = CASES["prepare_inputs"]("cpu", torch.bfloat16)
    for name in ("num_rejected", "next_tokens", "seq_lens", "sample_rows"):
        arguments[name] = arguments[name][:0]
    for name in ("query_start", "row_start"):
        arguments[name] = arguments[name][:1]
    arguments["block_table"] = arguments["block_table"][:0]
    with pytest.raises(ValueError, match="must have a request for the 5 target rows"):
        CPU.call("prepare_inputs", arguments)


def test_hidden_sizes_that_only_kernels_refuse() -> None:
    out, residual = ops.embed_norm_concat(
        torch.zeros(2, dtype=torch.int64), torch.tensor([0, -1], dtype=torch.int32),
        torch.tensor([2], dtype=torch.int32), torch.ones(3, 100), torch.ones(2, 100),
        torch.ones(100), torch.ones(100), torch.ones(100), 1e-5,
    )  # fmt: skip
    assert out.shape == (2, 200)
    assert residual.shape == (2, 100)


def test_top_k_out_of_range() -> None:
    arguments = CASES["lm_head_topk"]("cpu", torch.bfloat16)
    for k in (0, 17):
        arguments["ids"] = torch.zeros(4, k, dtype=torch.int64)
        with pytest.raises(ValueError, match=f"top_k must be 1 to 16, got {k}"):
            CPU.call("lm_head_topk", arguments)
    arguments["ids"] = torch.zeros(4, 3, dtype=torch.int64)
    arguments["vocab_subset"] = torch.tensor([7, 9], dtype=torch.int32)
    with pytest.raises(ValueError, match="top_k must be 1 to 2, got 3"):
        CPU.call("lm_head_topk", arguments)


def test_half_given_noise() -> None:
    arguments = CASES["lm_head_topk"]("cpu", torch.bfloat16)
    arguments["temperature"] = None
    with pytest.raises(ValueError, match="must all be given or all be None"):
        CPU.call("lm_head_topk", arguments)


def test_half_given_head_norms() -> None:
    arguments = CASES["qkv_rope_cache"]("cpu", torch.bfloat16)
    arguments["k_norm"] = None
    with pytest.raises(ValueError, match="both be given or both be None"):
        CPU.call("qkv_rope_cache", arguments)
