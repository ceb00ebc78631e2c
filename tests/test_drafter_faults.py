"""The buffers of a `Drafter`, what it refuses, and whom it blames for an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints import write_drafter
from drafter_passes import SIZES, passes, propose
from p_eagle_cuda import _C, Drafter, ops
from p_eagle_cuda.buffers import DeviceSize, plan_buffers

F64 = torch.float64


def load(path: Path, **options: Any) -> Drafter:
    return Drafter.from_pretrained(path, **{**SIZES, "dtype": F64, **options})


# ---- Buffers -------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Operators that return memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        is_new = isinstance(result, torch.Tensor) and "out" not in (kwargs or {})
        if is_new and result.untyped_storage().data_ptr() not in inputs:
            self.names.add(str(func))
        return result


def test_a_padded_pass_allocates_nothing(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path)
    steps = passes(drafter.config, F64)
    propose(drafter, steps[0])
    allocations = Allocations()
    with allocations:
        propose(drafter, steps[1])
    assert allocations.names == set()


def test_the_plan_is_what_is_allocated(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path, linear="torch")
    for name, spec in drafter.buffer_plan.items():
        if name.startswith("torch_"):
            buffer = getattr(drafter._pass.linear._torch, name.removeprefix("torch"))
        else:
            buffer = getattr(drafter._buffers, name)
        assert (tuple(buffer.shape), buffer.dtype) == (spec.shape, spec.dtype), name
        assert buffer.numel() * buffer.element_size() == spec.num_bytes
    lines = drafter.describe_buffers().splitlines()
    assert len(lines) == len(drafter.buffer_plan) + 1
    total = sum(spec.num_bytes for spec in drafter.buffer_plan.values())
    assert lines[-1].split() == ["total", f"{total / 2**20:.3f}", "MiB"]
    assert "static_block_table" in drafter.describe_buffers()


def test_the_plan_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path)
    plan = plan_buffers(drafter.config, drafter.limits, torch.bfloat16, DeviceSize(132, 264))
    assert plan["linear_workspace"].num_bytes == _C.linear_workspace_bytes(132)
    assert plan["attention_workspace"].num_bytes > 264 * 2 * 128 * 64 * 4
    assert drafter.buffer_plan["linear_workspace"].num_bytes == 0


# ---- Faults --------------------------------------------------------------------------------------


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path)
    step = passes(drafter.config, F64, num_steps=1)[1]
    table = step.block_table
    for name, bad, reason in (
        ("block_table", table.t().contiguous().t(), "must be contiguous, got strides"),
        ("block_table", table[:2], r"must have shape \[3, 4\], got \[2, 4\]"),
        ("block_table", table[0], r"must be \[B, max_blocks\], got \[4\]"),
        ("target_tokens", step.target_tokens.short(), "have dtype torch.int64, got torch.int16"),
        ("query_start", step.query_start[:-1], r"must have shape \[4\], got \[3\]"),
        ("num_rejected", step.num_rejected.long(), "must have dtype torch.int32"),
        ("next_tokens", step.next_tokens.to("meta"), "on the drafter's device cpu, got meta"),
        ("target_positions", step.target_positions[:-1], r"must have shape \[15\], got \[14\]"),
        ("target_tokens", step.target_tokens[None], "must be 1-D, got shapes"),
    ):
        with pytest.raises(ValueError, match=reason) as error:
            propose(drafter, replace(step, **{name: bad}))
        assert str(error.value).startswith("Drafter.propose: ")
        assert f"`{name}`" in str(error.value)
    narrow = [x.float() for x in step.taps]
    with pytest.raises(ValueError, match=r"`taps\[0\]` must have dtype torch.float64, got"):
        propose(drafter, replace(step, taps=narrow))


def test_contents_are_checked_when_debugging(tmp_path: Path) -> None:
    write_drafter(tmp_path)
    drafter = load(tmp_path, debug=True)
    good = passes(drafter.config, F64, num_steps=1)[1]
    V = len(drafter.weights.embedding)

    def changed(tensor: torch.Tensor, index: Any, value: int) -> torch.Tensor:
        new = tensor.clone()
        new[index] = value
        return new

    for name, bad, reason in (
        ("query_start", changed(good.query_start, 1, 11), "must ascend from 0 to at most T = 15"),
        ("query_start", changed(good.query_start, 3, 16), "must ascend from 0 to at most T = 15"),
        ("num_rejected", changed(good.num_rejected, 2, 6), "of request 2 must be 0 to its 5 rows"),
        ("num_rejected", changed(good.num_rejected, 0, -1), "of request 0 must be 0 to its 5 rows"),
        ("target_tokens", changed(good.target_tokens, 6, V), rf"0 to {V - 1}, got {V} at \[6\]"),
        ("next_tokens", changed(good.next_tokens, 1, -1), r"got -1 at \[1\]"),
        ("target_positions", changed(good.target_positions, 7, 0), "of request 1 must be consec"),
        ("block_table", changed(good.block_table, (2, 0), 20), r"-1 to 19, got 20 at \[0\]"),
    ):
        with pytest.raises(ValueError, match=reason) as error:
            propose(drafter, replace(good, **{name: bad}))
        assert f"`{name}" in str(error.value)
    propose(drafter, good)


@pytest.mark.parametrize("at_launch", [True, False])
def test_an_error_names_the_op_when_debugging(
    at_launch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether launching fails, or waiting for what was launched."""
    write_drafter(tmp_path)
    drafter = load(tmp_path, debug=True)
    (step,) = passes(drafter.config, F64, num_steps=0)
    calls, attend, failed = 0, ops.paged_attention, False

    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nwith details")

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, failed
        calls += 1
        if calls == 2:
            failed = True
            if at_launch:
                fail()
        return attend(*args, **kwargs)

    monkeypatch.setattr(ops, "paged_attention", failing)
    if not at_launch:
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: fail() if failed else None)
        drafter._pass.tracer._is_cuda = True
    message = "^Drafter: layer 1, paged_attention: CUDA error: an illegal memory access$"
    with pytest.raises(RuntimeError, match=message):
        propose(drafter, step)


def test_nvtx_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's range holds those of its ops."""
    write_drafter(tmp_path)
    drafter = load(tmp_path, nvtx=True)
    assert not drafter._pass.tracer._nvtx, "there is no NVTX without CUDA"
    drafter._pass.tracer._nvtx = True
    ranges: list[str] = []
    open_ranges: list[str] = []

    def push(name: str) -> None:
        open_ranges.append(name)
        ranges.append("/".join(open_ranges))

    monkeypatch.setattr(torch.cuda.nvtx, "range_push", push)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", open_ranges.pop)
    (step,) = passes(drafter.config, F64, num_steps=0)
    propose(drafter, step)
    assert ranges[0] == "prepare_inputs"
    assert ranges[-1] == "lm_head_topk"
    assert [r for r in ranges if r.startswith("layer 1")] == [
        "layer 1", "layer 1/qkv_rope_cache", "layer 1/paged_attention", "layer 1/linear_residual",
        "layer 1/norm_swiglu", "layer 1/linear_residual",
    ]  # fmt: skip
    assert open_ranges == []
