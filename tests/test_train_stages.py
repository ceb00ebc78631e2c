"""The training from the outside: resumption to the bit, refusals, the command line."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from p_eagle_cuda.errors import CheckpointError, ConfigError
from p_eagle_cuda.train import checkpointing, continuations, corpus, drafter, export
from p_eagle_cuda.train import target as target_module
from p_eagle_cuda.train.__main__ import main
from toy_training import (
    CONTINUATIONS,
    DRAFTER,
    SHAPE,
    TARGET,
    copy_stages,
    random_target,
)

pytest_plugins = ["toy_training_fixtures"]


class KilledError(Exception):
    """Stands for the process being killed."""


def run_stage(stage: str, folder: Path, small_corpus: corpus.Corpus) -> None:
    if stage == "target":
        target_module.train_target(folder, small_corpus, TARGET, SHAPE, save_every=2)
    elif stage == "continuations":
        continuations.write_continuations(folder, small_corpus, CONTINUATIONS, SHAPE)
    else:
        drafter.train_drafter(folder, small_corpus, DRAFTER, SHAPE, save_every=2)


def tensors_in(value: Any, path: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        name: tensor
        for key, part in items
        if isinstance(part, (Tensor, dict, list))
        for name, tensor in tensors_in(part, f"{path}/{key}").items()
    }


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("target", "killed"),
        ("target", "interrupted"),
        ("continuations", "killed"),
        ("drafter", "killed"),
        ("drafter", "interrupted"),
    ],
)
def test_resumed_run_ends_with_the_same_bits(
    stage: str,
    how: str,
    trained: Path,
    small_corpus: corpus.Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_stages(trained, tmp_path, "tokenizer", "target")
    if stage == "drafter":
        copy_stages(trained, tmp_path, "continuations.ckpt")
    calls = 0
    stop_at = 2 if stage == "continuations" else {"killed": 4, "interrupted": 3}[how]

    def stopping(*arguments: Any) -> torch.Generator:
        nonlocal calls
        calls += arguments[1] == stage
        if calls == stop_at:
            if how == "killed":
                raise KilledError
            os.kill(os.getpid(), signal.SIGINT)
        return checkpointing.generator_for(*arguments)

    module = {"target": target_module, "continuations": continuations, "drafter": drafter}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(module, "generator_for", stopping)
        with pytest.raises(KilledError if how == "killed" else KeyboardInterrupt):
            run_stage(stage, tmp_path, small_corpus)
    halfway = torch.load(tmp_path / f"{stage}.ckpt", weights_only=True)
    if stage != "continuations":
        # Checkpoints come every two steps; a kill loses one, an interruption saves its own.
        assert halfway["step"] == {"killed": 2, "interrupted": 3}[how]
    run_stage(stage, tmp_path, small_corpus)

    resumed = tensors_in(torch.load(tmp_path / f"{stage}.ckpt", weights_only=True))
    straight = tensors_in(torch.load(trained / f"{stage}.ckpt", weights_only=True))
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert not list(tmp_path.glob("*.tmp"))


def test_refuses_to_resume_with_other_settings(trained: Path, small_corpus: corpus.Corpus) -> None:
    with pytest.raises(
        CheckpointError, match=r"target\.ckpt: was made with matrix_lr=0\.01, .*0\.5"
    ):
        target_module.train_target(trained, small_corpus, replace(TARGET, matrix_lr=0.5), SHAPE)
    with pytest.raises(CheckpointError, match=r"continuations\.ckpt: was made with branch_rate"):
        continuations.write_continuations(
            trained, small_corpus, replace(CONTINUATIONS, branch_rate=0.5), SHAPE
        )
    with pytest.raises(CheckpointError, match=r"drafter\.ckpt: was made with depths=4, .* 5"):
        drafter.train_drafter(trained, small_corpus, replace(DRAFTER, depths=5), SHAPE)


def test_export_writes_what_the_stages_wrote(trained: Path, tmp_path: Path) -> None:
    copy_stages(trained, tmp_path, "tokenizer", "target.ckpt", "drafter.ckpt")
    export.export_checkpoints(tmp_path, SHAPE)
    for name in ("target", "drafter"):
        written = sorted(path.name for path in (trained / name).iterdir())
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == written
        for file in written:
            assert (tmp_path / name / file).read_bytes() == (trained / name / file).read_bytes()


def test_refuses_another_target(trained: Path, small_corpus: corpus.Corpus, tmp_path: Path) -> None:
    names = ("tokenizer", "continuations.ckpt", "drafter.ckpt", "drafter")
    copy_stages(trained, tmp_path, *names)
    export.export_target(tmp_path / "target", random_target(7), tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="was written by the target with sha256"):
        drafter.train_drafter(tmp_path, small_corpus, DRAFTER, SHAPE)
    with pytest.raises(CheckpointError, match=r"continuations\.ckpt: was made with target_sha256"):
        continuations.write_continuations(tmp_path, small_corpus, CONTINUATIONS, SHAPE)
    with pytest.raises(CheckpointError, match="drafter: was trained for the target with sha256"):
        export.load_drafter(tmp_path / "drafter", tmp_path / "target", SHAPE)
    checkpointing.write_atomically(
        tmp_path / "target.ckpt", {"model": random_target(8).state_dict()}
    )
    with pytest.raises(CheckpointError, match=r"drafter\.ckpt: was trained for the target"):
        export.export_checkpoints(tmp_path, SHAPE)


def test_a_failing_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "target.ckpt"
    checkpointing.write_atomically(path, {"step": 1})

    def full_disk(content: object, to: Path) -> None:
        to.write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space left"):
            checkpointing.write_atomically(path, {"step": 2})
    assert checkpointing.read_checkpoint(path, "target") == {"step": 1}


def test_refuses_a_damaged_checkpoint(
    trained: Path, small_corpus: corpus.Corpus, tmp_path: Path
) -> None:
    copy_stages(trained, tmp_path, "tokenizer", "target.ckpt")
    content = (tmp_path / "target.ckpt").read_bytes()
    (tmp_path / "target.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"target\.ckpt: not a readable checkpoint"):
        target_module.train_target(tmp_path, small_corpus, TARGET, SHAPE)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("target", "run the stage `tokenizer` first"),
        ("continuations", "run the stage `target` first"),
        ("drafter", "run the stage `target` first"),
    ],
)
def test_command_line_says_which_stage_is_missing(
    stage: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([stage, "--out", str(tmp_path)]) == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("error: ")
    assert message in last_line


def test_command_line_writes_held_out_prompts_as_json_lines(
    library: corpus.Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompts", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": prompt} for prompt in corpus.held_out_prompts(library)
    ]


def test_command_line_says_when_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["prompts", "--out", str(tmp_path / "file" / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
