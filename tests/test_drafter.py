"""The drafter as users call it, pass by pass, against the reference's whole pass in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints import write_drafter, write_target
from drafter_passes import PROMPTS, SIZES, TOP_K, K, padded, passes, propose, reference_pass
from drafter_variants import VARIANTS
from numerics import assert_as_accurate_as_torch
from p_eagle_cuda import Drafter, ops
from p_eagle_cuda.drafter import Drafts
from p_eagle_cuda.drafter_pass import PASS_OPS
from p_eagle_cuda.errors import CheckpointError
from p_eagle_cuda.kv_cache import allocate_cache
from pass_cases import Pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_drafts_match_the_reference(dtype: torch.dtype, tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = Drafter.from_pretrained(tmp_path, dtype=dtype, **SIZES)
    steps = passes(drafter.config, dtype)
    for step in steps:
        drafts = propose(drafter, step)
    ids, logits, lse = reference_pass(tmp_path, steps, torch.float64, torch.float64)
    _, unfused, unfused_lse = reference_pass(tmp_path, steps, dtype, dtype)
    B = len(PROMPTS)
    if dtype != torch.bfloat16:  # two logits may change places when rounded to 8 bits
        assert torch.equal(drafts.top_ids, ids.view(B, K, TOP_K))
        assert torch.equal(drafts.token_ids, ids.view(B, K, TOP_K)[..., 0])
    if dtype == torch.float64:  # nothing here is more exact, and orders of summation differ by CPU
        torch.testing.assert_close(drafts.top_logits, logits.view(B, K, TOP_K))
        torch.testing.assert_close(drafts.lse, lse.view(B, K))
        return
    assert_as_accurate_as_torch(
        "logits", drafts.top_logits, logits.view(B, K, TOP_K), unfused.view(B, K, TOP_K)
    )
    assert_as_accurate_as_torch("lse", drafts.lse, lse.view(B, K), unfused_lse.view(B, K))


def test_the_ops_of_a_pass_are_listed(tmp_path: Path) -> None:
    """What decides whether a build can draft on CUDA; by any backend, and nothing else."""
    write_drafter(tmp_path)
    called: set[str] = set()

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            name = str(func)
            if name.startswith("p_eagle."):
                called.add(name.split(".")[1])
            return func(*args, **(kwargs or {}))

    for linear in ("fused", "torch", "cutlass"):
        options = {"dtype": torch.float32, "linear": linear, "prune_above": 0, **SIZES}
        drafter = Drafter.from_pretrained(tmp_path, **options)
        with Calls():
            for step in passes(drafter.config, torch.float32, num_steps=1):
                propose(drafter, step)
    # For callers who prepare their rows themselves.
    assert called | {"plan_attention"} == set(PASS_OPS)


def test_all_layers_of_a_pass_share_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_drafter(tmp_path)
    drafter = Drafter.from_pretrained(tmp_path, **SIZES)
    num_layers, seen = drafter.config.num_layers, []

    def record(name: str) -> None:
        op = getattr(ops, name)

        def recording(*args: Any, **kwargs: Any) -> Any:
            work = kwargs["work"]
            seen.append((name, (work.data_ptr(), work.numel())))
            return op(*args, **kwargs)

        monkeypatch.setattr(ops, name, recording)

    record("prepare_inputs")
    record("paged_attention")
    for step in passes(drafter.config, drafter.weights.fc.dtype):
        seen.clear()
        propose(drafter, step)
        assert [name for name, _ in seen] == ["prepare_inputs", *["paged_attention"] * num_layers]
        assert len({where for _, where in seen}) == 1


@pytest.mark.parametrize("prune_above", [0, 192])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_checkpoint(variant: str, prune_above: int, tmp_path: Path) -> None:
    """No option of a checkpoint is lost between the reference and the ops."""
    write_drafter(tmp_path, **VARIANTS[variant])
    options = {"dtype": torch.float64, "prune_above": prune_above, **SIZES}
    drafter = Drafter.from_pretrained(tmp_path, **options)
    steps = passes(drafter.config, torch.float64)
    for step in steps:
        drafts = propose(drafter, step)
    ids, logits, _ = reference_pass(tmp_path, steps, torch.float64, torch.float64)
    assert torch.equal(drafts.top_ids.flatten(0, 1), ids)
    torch.testing.assert_close(drafts.top_logits.flatten(0, 1), logits)


@pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_fp8_cache(cache_dtype: torch.dtype, tmp_path: Path) -> None:
    """An FP8 cache moves the logits by no more than rounding each key and value would.

    The scales are powers of two, so all but subnormal values round alike with any of them, and the
    logits hardly change. Using one scale for the other, or none, changes them.
    """
    write_drafter(tmp_path)
    results = []
    for k_scale, v_scale in ((1.0, 1.0), (0.5, 0.25)):
        drafter = Drafter.from_pretrained(
            tmp_path, dtype=torch.float32, kv_dtype=cache_dtype, k_scale=k_scale,
            v_scale=v_scale, **SIZES,
        )  # fmt: skip
        steps = passes(drafter.config, torch.float32)
        for step in steps:
            drafts = propose(drafter, step)
        results.append(drafts.top_logits.flatten(0, 1).clone())
        (first, *_) = drafter.caches
        assert float(first.k.float().abs().max()) > 1 / k_scale, "the keys are stored divided"
    _, exact, _ = reference_pass(tmp_path, steps, torch.float64, torch.float64)
    distance = float((results[0] - exact).abs().max())
    # Three layers, each adding a relative error of half a unit in the last place of FP8.
    assert float((results[0] - results[1]).abs().max()) < distance / 10
    assert 0 < distance < 3 * torch.finfo(cache_dtype).eps * float(exact.abs().max())


def test_what_was_rejected_does_not_matter(tmp_path: Path) -> None:
    """Tokens and taps of rejected rows are noise: changing them changes no bit of a draft."""
    write_drafter(tmp_path)
    results = []
    for poison in (False, True):
        drafter = Drafter.from_pretrained(tmp_path, dtype=torch.float32, **SIZES)
        for step in passes(drafter.config, torch.float32, num_steps=3):
            if poison:
                for b, rejected in enumerate(step.num_rejected.tolist()):
                    end = int(step.query_start[b + 1])
                    step.target_tokens[end - rejected : end] = 0
                    for tap in step.taps:
                        tap[end - rejected : end] = float("nan")
            drafts = propose(drafter, step)
        results.append((drafts.token_ids.clone(), drafts.top_logits.clone()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


BUCKET = {"max_requests": len(PROMPTS) + 2, "max_target_rows": sum(PROMPTS) + 5}


def test_padding_drops_out_of_the_pass(tmp_path: Path) -> None:
    """Requests and rows of a bucket that are nobody's, whatever they hold: nothing changes."""
    write_drafter(tmp_path)
    plain = Drafter.from_pretrained(tmp_path, dtype=torch.float64, **SIZES)
    bucket = Drafter.from_pretrained(tmp_path, dtype=torch.float64, **(SIZES | BUCKET))
    for cache in (*plain.caches, *bucket.caches):
        cache.k.fill_(7.0)
        cache.v.fill_(7.0)
    B = len(PROMPTS)
    for step in passes(plain.config, torch.float64):
        expected = propose(plain, step)
        rows = len(step.target_tokens) + 5
        drafts = propose(bucket, padded(step, B + 2, rows))
        assert torch.equal(drafts.top_ids[:B], expected.top_ids)
        torch.testing.assert_close(drafts.top_logits[:B], expected.top_logits)
        torch.testing.assert_close(drafts.lse[:B], expected.lse)
        assert_no_drafts(drafts, slice(B, None))
        for ours, theirs in zip(bucket.caches, plain.caches, strict=True):
            torch.testing.assert_close(ours.k, theirs.k)
            torch.testing.assert_close(ours.v, theirs.v)
            assert (ours.k == 7.0).any(), "expected slots of nobody"


@pytest.mark.parametrize("absent", range(len(PROMPTS)))
def test_a_request_without_rows_drops_out_alone(absent: int, tmp_path: Path) -> None:
    """It has ended, say; wherever it stands in the batch."""
    write_drafter(tmp_path)
    drafters = [Drafter.from_pretrained(tmp_path, dtype=torch.float64, **SIZES) for _ in range(2)]
    prompt, step = passes(drafters[0].config, torch.float64, num_steps=1)
    for drafter in drafters:
        propose(drafter, prompt)
    expected = propose(drafters[0], step)
    drafts = propose(drafters[1], padded(step, len(PROMPTS), len(step.target_tokens), [absent]))
    others = [b for b in range(len(PROMPTS)) if b != absent]
    assert torch.equal(drafts.top_ids[others], expected.top_ids[others])
    torch.testing.assert_close(drafts.top_logits[others], expected.top_logits[others])
    assert_no_drafts(drafts, [absent])


def test_positions_past_the_rope_table_have_no_drafts(tmp_path: Path) -> None:
    """A request that comes there drops out, draft by draft; the batch goes on."""
    write_drafter(tmp_path)
    free, bounded = (
        Drafter.from_pretrained(tmp_path, dtype=torch.float64, max_position=limit, **SIZES)
        for limit in (None, 42)
    )
    missing = []
    for step in passes(free.config, torch.float64):
        expected, drafts = propose(free, step), propose(bounded, step)
        assert torch.equal(drafts.top_ids[:2], expected.top_ids[:2])
        torch.testing.assert_close(drafts.top_logits[:2], expected.top_logits[:2])
        last_valid = step.num_valid[2] - 1
        num_drafts = min(max(42 - last_valid, 0), K)
        assert torch.equal(drafts.top_ids[2, :num_drafts], expected.top_ids[2, :num_drafts])
        assert_no_drafts(drafts, (2, slice(num_drafts, None)))
        missing.append(K - num_drafts)
    assert missing == sorted(missing)
    assert 0 < missing[0] < missing[-1] == K, missing


def assert_no_drafts(drafts: Drafts, where: Any) -> None:
    assert (drafts.token_ids[where] == -1).all()
    assert (drafts.top_ids[where] == -1).all()
    assert (drafts.top_logits[where] == -torch.inf).all()
    assert (drafts.lse[where] == -torch.inf).all()


def test_a_request_alone_or_in_a_batch(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = Drafter.from_pretrained(tmp_path, dtype=torch.float64, **SIZES)
    (step,) = passes(drafter.config, torch.float64, num_steps=0)
    together = propose(drafter, step).top_logits.clone()
    for b in range(len(PROMPTS)):
        alone = Drafter.from_pretrained(tmp_path, dtype=torch.float64, **SIZES)
        rows = slice(int(step.query_start[b]), int(step.query_start[b + 1]))
        length = rows.stop - rows.start
        single = Pass(
            target_tokens=step.target_tokens[rows],
            target_positions=step.target_positions[rows],
            taps=[t[rows] for t in step.taps],
            query_start=torch.tensor([0, length], dtype=torch.int32),
            num_rejected=step.num_rejected[b : b + 1],
            next_tokens=step.next_tokens[b : b + 1],
            block_table=step.block_table[b : b + 1],
        )
        torch.testing.assert_close(propose(alone, single).top_logits[0], together[b])


def test_prompt_in_chunks_equals_prompt_at_once(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = Drafter.from_pretrained(tmp_path, dtype=torch.float64, **SIZES)
    (step,) = passes(drafter.config, torch.float64, num_steps=0)
    b, first = 2, int(step.query_start[2])
    expected = propose(drafter, step).top_logits[b].clone()
    chunked = Drafter.from_pretrained(tmp_path, dtype=torch.float64, **SIZES)
    for start, end in ((0, 7), (7, 8), (8, PROMPTS[b])):
        rows = slice(first + start, first + end)
        is_last = end == PROMPTS[b]
        following = step.next_tokens[b] if is_last else step.target_tokens[first + end]
        drafts = chunked.propose(
            step.target_tokens[rows], step.target_positions[rows], [t[rows] for t in step.taps],
            torch.tensor([0, end - start], dtype=torch.int32), torch.zeros(1, dtype=torch.int32),
            following[None], step.block_table[b : b + 1],
        )  # fmt: skip
    torch.testing.assert_close(drafts.top_logits[0], expected)


def test_embedding_and_head_of_the_target(tmp_path: Path) -> None:
    """A checkpoint without its own takes the target's, or says that it needs them."""
    tensors = write_drafter(tmp_path, target_hidden_size=64)
    kept = {n: t for n, t in tensors.items() if n not in ("embed_tokens.weight", "lm_head.weight")}
    from safetensors.torch import save_file

    save_file(kept, tmp_path / "model.safetensors")
    shared = Drafter.from_pretrained(
        tmp_path, target_embedding=tensors["embed_tokens.weight"],
        target_lm_head=tensors["lm_head.weight"], **SIZES,
    )  # fmt: skip
    assert torch.equal(shared.weights.embedding, tensors["embed_tokens.weight"])
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight"):
        Drafter.from_pretrained(tmp_path, **SIZES)


def test_limits_are_refused(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = Drafter.from_pretrained(tmp_path, **SIZES)
    (step,) = passes(drafter.config, torch.float32, num_steps=0)
    with pytest.raises(ValueError, match="reads 3 taps, got 2"):
        propose(drafter, replace(step, taps=step.taps[:2]))
    small = Drafter.from_pretrained(tmp_path, **{**SIZES, "max_requests": 2})
    with pytest.raises(ValueError, match="at most 2 requests, got 3"):
        propose(small, step)
    for name in ("num_speculative_tokens", "max_requests", "max_target_rows", "top_k"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Drafter.from_pretrained(tmp_path, **{**SIZES, name: 0})
    with pytest.raises(ValueError, match="prune_above must be at least 0, got -1"):
        Drafter.from_pretrained(tmp_path, prune_above=-1, **SIZES)


@pytest.mark.parametrize("name", ["num_blocks", "block_size", "k_scale", "v_scale"])
def test_a_cache_must_have_a_size(name: str, tmp_path: Path) -> None:
    write_drafter(tmp_path)
    with pytest.raises(ValueError, match=f"allocate_cache: {name} must be above 0, got 0"):
        Drafter.from_pretrained(tmp_path, **{**SIZES, name: 0})


def test_caches_must_fit(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    good = Drafter.from_pretrained(tmp_path, **SIZES)
    sizes = {"num_speculative_tokens": K, "max_requests": 1, "max_target_rows": 8}
    with pytest.raises(ValueError, match="a cache for each of 3 layers, got 2"):
        Drafter(good.config, good.weights, good.caches[:2], **sizes)
    other = allocate_cache(1, 20, 1, 8, 64, torch.float32)
    with pytest.raises(ValueError, match=r"`k` of cache 1 must have shape \[20, 1, 16, 64\], got"):
        Drafter(good.config, good.weights, [good.caches[0], *other, good.caches[2]], **sizes)
    ours = Drafter(
        good.config, good.weights, allocate_cache(3, 5, 1, 8, 64, torch.float32), **sizes
    )
    assert ours.block_size == 8


def test_wrong_tap_width_names_the_tap(tmp_path: Path) -> None:
    write_drafter(tmp_path / "drafter")
    write_target(tmp_path / "target")
    drafter = Drafter.from_pretrained(tmp_path / "drafter", **SIZES)
    (step,) = passes(drafter.config, torch.float32, num_steps=0)
    narrow = [tap[:, :-1].contiguous() for tap in step.taps]
    with pytest.raises(ValueError, match=r"`taps\[0\]` must have shape \[58, 128\], got \[58, 127"):
        propose(drafter, replace(step, taps=narrow))
