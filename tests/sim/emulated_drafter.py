"""A whole `Drafter` on the emulator: Python, host layer and kernels, on the memory of the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from op_cases import EMULATED_SMS, WORK_HEADER
from p_eagle_cuda import Drafter
from p_eagle_cuda import drafter as drafter_module
from p_eagle_cuda.buffers import DeviceSize
from p_eagle_cuda.cuda_graphs import Recorder
from p_eagle_cuda.cuda_limits import cuda_refusals
from p_eagle_cuda.drafter_pass import Drafts
from p_eagle_cuda.ops import attention
from sim import torch_ops
from sim.emulator import Session, Settings

ATTENTION_BLOCKS = 5  # thread blocks that share the attention of a pass


@dataclass(frozen=True)
class AdoptedMemory:
    """Memory that torch has allocated, with no pages around it; stands for a `Buffer`."""

    name: str
    address: int
    size: int
    read_only: bool
    initialized: bool


@contextlib.contextmanager
def emulated(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, *, graphs: bool = False, **options: Any
) -> Iterator[tuple[Drafter, Session]]:
    """A drafter whose ops run on the emulator.

    Its weights may not be written, and its buffers and caches count as uninitialised until a kernel
    has written them; the static inputs may only be read. Inputs of a pass that is not padded must
    be told to the session by `give`. Copying inputs does not wait for the emulator's kernels: check
    the session after each pass.

    Args:
        monkeypatch: Of the test.
        settings: Of the emulator.
        graphs: Whether padded batches are recorded and replayed.
        options: Of `Drafter.from_pretrained`, the path among them.
    """
    with monkeypatch.context() as patch:
        # What has no size on a CPU.
        patch.setattr(attention, "attention_blocks", lambda *_: ATTENTION_BLOCKS)
        patch.setattr(DeviceSize, "of", lambda *_: DeviceSize(EMULATED_SMS, ATTENTION_BLOCKS))
        with torch_ops.emulator().session(settings) as session:
            recorder = _recorder(session) if graphs else None
            patch.setattr(drafter_module, "_recorder", lambda *_: recorder)
            # torch's own products would not wait for the emulator's kernels.
            drafter = Drafter.from_pretrained(linear="fused", **options)
            patch.setattr(torch.ops, "p_eagle", torch.ops.p_eagle_sim)
            _adopt(session, "weights", drafter.weights, read_only=True, initialized=True)
            limits = drafter.limits
            refusals = cuda_refusals(
                drafter.config, drafter.weights.norm.dtype, drafter.caches,
                limits.most_requests * limits.num_speculative_tokens, limits.top_k, "sm_90",
                ("90a",),
            )  # fmt: skip
            assert not refusals, "what runs here must not be refused on a GPU"
            _adopt(session, "caches", drafter.caches, read_only=False, initialized=False)
            for name, value in vars(drafter._buffers).items():
                is_static = name.startswith(("static_", "no_rows"))
                is_zeroed = name.endswith("workspace")
                _adopt(
                    session, name, value, read_only=is_static, initialized=is_static or is_zeroed
                )
            for name in ("attention_work", "pruned_work"):
                header = getattr(drafter._buffers, name)[:WORK_HEADER]  # it has a counter
                if drafter.buffer_plan[name].is_zeroed:
                    session.mark_initialized(
                        AdoptedMemory("header", header.data_ptr(), header.nbytes, False, True)
                    )
            yield drafter, session


def _recorder(session: Session) -> Recorder:
    def record(launch: Callable[[], Drafts]) -> tuple[Callable[[], None], Drafts]:
        with session.capture() as graph:
            drafts = launch()
        return graph.replay, drafts

    return record


def give(session: Session, **tensors: Any) -> None:
    """Let kernels read the inputs of a pass."""
    for name, value in tensors.items():
        _adopt(session, name, value, read_only=True, initialized=True)


def _adopt(session: Session, name: str, value: Any, *, read_only: bool, initialized: bool) -> None:
    """Tell the session of every tensor in `value`, one buffer for tensors that share memory."""
    known = {buffer.address for buffer in session.buffers}
    for label, tensor in _tensors(name, value):
        storage = tensor.untyped_storage()
        if storage.nbytes() > 0 and storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            memory = AdoptedMemory(
                label, storage.data_ptr(), storage.nbytes(), read_only,
                initialized or label.endswith("_scale"),
            )  # fmt: skip
            session.add(memory)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for field in value._fields:
            yield from _tensors(f"{name}.{field}", getattr(value, field))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _tensors(f"{name}[{i}]", item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(f"{name}.{field.name}", getattr(value, field.name))
