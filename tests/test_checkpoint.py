"""Reading safetensors: what is in the file comes out, and every damage is one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from checkpoints import write_target
from p_eagle_cuda import checkpoint as checkpoint_module
from p_eagle_cuda.checkpoint import Checkpoint
from p_eagle_cuda.errors import CheckpointError

WEIGHTS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.arange(4.0).to(torch.bfloat16),
    "half": torch.ones(2, dtype=torch.float16),
    "ids": torch.tensor([3, -1]),
    "flags": torch.tensor([True, False]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(WEIGHTS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def write_shards(path: Path, shards: dict[str, dict[str, Tensor]]) -> None:
    """Shards and their index; a tensor that is in several is indexed in the last."""
    for file, tensors in shards.items():
        save_file(tensors, path / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    write_index(path, weight_map)


def write_index(path: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def read(path: Path, *names: str, shape: tuple[int, ...]) -> None:
    with Checkpoint.open(path) as checkpoint:
        for name in names:
            checkpoint.read(name, shape, dtype=torch.float32)


def failure(path: Path, *names: str, shape: tuple[int, ...] = (2, 3)) -> str:
    """The message of the error when opening, or when reading these tensors; a single line."""
    with pytest.raises(CheckpointError) as error:
        read(path, *names, shape=shape)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_reads_what_was_written(folder: Path) -> None:
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.names() == sorted(WEIGHTS)
        assert "a" in checkpoint
        assert "c" not in checkpoint
        assert checkpoint.shape("a") == (2, 3)
        assert checkpoint.dtype("b") == torch.bfloat16
        assert torch.equal(checkpoint.read("a", (2, 3), dtype=torch.float32), WEIGHTS["a"])
        as_double = checkpoint.read("b", (4,), dtype=torch.float64)
        assert as_double.dtype == torch.float64
        assert torch.equal(as_double, WEIGHTS["b"].double())
        assert checkpoint.read_integers("ids", (2,)).tolist() == [3, -1]
        assert checkpoint.read_integers("flags", (2,)).tolist() == [1, 0]


def test_reads_into_a_part(folder: Path) -> None:
    packed = torch.full((4, 3), 7.0)
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.read_into("a", packed[1:3])
    assert torch.equal(packed[1:3], WEIGHTS["a"])
    assert (packed[[0, 3]] == 7).all(), "wrote outside the part"


def test_tensors_outlive_the_file(folder: Path) -> None:
    """Overwriting a mapped file would change, or with fewer bytes crash, whoever still maps it."""
    with Checkpoint.open(folder) as checkpoint:
        tensor = checkpoint.read("a", (2, 3), dtype=torch.float32)
        ids = checkpoint.read_integers("ids", (2,))
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(tensor, WEIGHTS["a"])
    assert ids.tolist() == [3, -1]


def test_single_file_by_its_path(folder: Path) -> None:
    file = folder / "model.safetensors"
    with Checkpoint.open(file) as checkpoint:
        assert checkpoint.names() == sorted(WEIGHTS)


def test_model_file_is_all_where_there_is_one(folder: Path) -> None:
    save_file(WEIGHTS, folder / "consolidated.safetensors")
    write_index(folder, {"z": "consolidated.safetensors"})
    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.names() == sorted(WEIGHTS)


def test_shards(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {
            "1.safetensors": {"a": WEIGHTS["a"]},
            "2.safetensors": {name: tensor for name, tensor in WEIGHTS.items() if name != "a"},
        },
    )
    # A file that the index does not name is none of the checkpoint's.
    save_file({"a": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.names() == sorted(WEIGHTS)
        for name in ("a", "half"):
            shape = checkpoint.shape(name)
            read = checkpoint.read(name, shape, dtype=WEIGHTS[name].dtype)
            assert torch.equal(read, WEIGHTS[name])


def test_files_without_an_index(tmp_path: Path) -> None:
    save_file({"a": WEIGHTS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": WEIGHTS["b"]}, tmp_path / "two.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.names() == ["a", "b"]


def test_rename(folder: Path) -> None:
    with Checkpoint.open(folder, rename=lambda name: f"x.{name}") as checkpoint:
        assert torch.equal(checkpoint.read("x.a", (2, 3), dtype=torch.float32), WEIGHTS["a"])
    with pytest.raises(CheckpointError, match="tensor `b` is there twice, also as `a` in model"):
        Checkpoint.open(folder, rename=lambda name: "same")


def test_all_read(folder: Path) -> None:
    file = folder / "model.safetensors"
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.read("a", (2, 3), dtype=torch.float32)
        checkpoint.read_integers("ids", (2,))
        with pytest.raises(CheckpointError) as error:
            checkpoint.check_all_read(lambda name: name == "half")
        assert str(error.value) == (
            f"{file}: tensor `b` of shape [4] and 1 more found, expected only what the "
            "configuration calls for"
        )
        checkpoint.read_integers("flags", (2,))
        checkpoint.check_all_read(lambda name: name in ("half", "b"))


def test_missing_tensor(folder: Path) -> None:
    assert failure(folder, "z") == (
        f"{folder}: tensor `z` is missing, expected one with shape [2, 3]"
    )


def test_wrong_shape(folder: Path) -> None:
    assert failure(folder, "a", shape=(3, 2)) == (
        f"{folder / 'model.safetensors'}: tensor `a` has shape [2, 3], expected [3, 2]"
    )


def test_wrong_dtype(folder: Path) -> None:
    file = folder / "model.safetensors"
    assert failure(folder, "ids", shape=(2,)) == (
        f"{file}: tensor `ids` has dtype I64, expected one of BF16, F16, F32, quantised "
        "checkpoints are not supported"
    )
    with Checkpoint.open(folder) as checkpoint, pytest.raises(CheckpointError) as error:
        checkpoint.read_integers("a", (2, 3))
    assert str(error.value).startswith(f"{file}: tensor `a` has dtype F32, expected one of BOOL,")


def test_quantised_weight(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    assert "tensor `a` has dtype F8_E4M3, expected one of BF16, F16, F32, quantised" in failure(
        tmp_path, "a"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = torch.zeros(2, 3, dtype=dtype)
    weight[1, 2] = value
    save_file({"a": weight}, tmp_path / "model.safetensors")
    assert failure(tmp_path, "a") == (
        f"{tmp_path / 'model.safetensors'}: tensor `a` is {value} at [1, 2], expected finite "
        "values only"
    )


def test_too_large_for_the_dtype(tmp_path: Path) -> None:
    save_file({"a": torch.full((2,), 1e5)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(CheckpointError) as error:
        checkpoint.read("a", (2,), dtype=torch.float16)
    assert "tensor `a` holds values beyond torch.float16, expected" in str(error.value)


def test_nothing_there(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert failure(gone) == f"{gone}: not found, expected a checkpoint folder or file"
    assert failure(tmp_path) == f"{tmp_path}: no .safetensors file, expected model.safetensors"
    (tmp_path / "pytorch_model.bin").touch()
    assert failure(tmp_path) == (
        f"{tmp_path}: no .safetensors file, expected model.safetensors, found pytorch_model.bin, "
        "which is not supported"
    )


def test_truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    # Cut in the data, in the header, and in the header's length.
    for size in (len(whole) - 1, 100):
        file.write_bytes(whole[:size])
        expected = len(whole) if size > 100 else 8 + int.from_bytes(whole[:8], "little")
        assert failure(folder) == (
            f"{file}: truncated or damaged, expected {expected} bytes, found {size}"
        )
    for content in (b"", whole[:5], b"not safetensors at all"):
        file.write_bytes(content)
        assert failure(folder).startswith(f"{file}: not a safetensors file (")


def test_bad_index(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{", encoding="utf-8")
    assert failure(tmp_path).startswith(f"{index}: expected JSON, found an error in line 1")
    for weight_map in ({}, [], None):
        write_index(tmp_path, weight_map)
        assert failure(tmp_path) == f"{index}: expected an object `weight_map` from tensor to file"
    write_index(tmp_path, {"a": 1})
    assert failure(tmp_path) == f"{index}: expected the file name of tensor `a`"


def test_missing_shard(tmp_path: Path) -> None:
    shard = tmp_path / "2.safetensors"
    write_shards(tmp_path, {"1.safetensors": {"a": WEIGHTS["a"]}, shard.name: {"b": WEIGHTS["b"]}})
    shard.unlink()
    assert failure(tmp_path) == (
        f"{shard}: not found, expected a shard named by model.safetensors.index.json"
    )


def test_tensor_not_in_its_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, {"1.safetensors": {"a": WEIGHTS["a"]}})
    write_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors"})
    assert failure(tmp_path) == (
        f"{tmp_path / '1.safetensors'}: tensor `b` is missing, expected it here by "
        "model.safetensors.index.json"
    )


def test_two_shards_with_one_tensor(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {"1.safetensors": {"a": WEIGHTS["a"], "c": WEIGHTS["b"]}, "2.safetensors": dict(WEIGHTS)},
    )
    assert failure(tmp_path) == (
        f"{tmp_path / '2.safetensors'}: tensor `a` is there twice, also as `a` in 1.safetensors, "
        "expected one definition"
    )


def test_progress_bar_for_large_checkpoints_only(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(progress: bool) -> str:
        with Checkpoint.open(folder, progress=progress) as checkpoint:
            checkpoint.read("a", (2, 3), dtype=torch.float32)
        return capsys.readouterr().err

    assert shown(progress=True) == ""
    monkeypatch.setattr(checkpoint_module, "_PROGRESS_BYTES", 10)
    assert shown(progress=False) == ""
    bar = shown(progress=True)
    assert f"reading {folder.name}" in bar
    assert "| 24.0/" in bar, "expected the 24 bytes of `a` at the end"


def test_toy_target_is_what_transformers_reads(tmp_path: Path) -> None:
    """The toy checkpoints of the other tests are real ones: transformers loads every tensor."""
    from transformers import AutoModelForCausalLM

    for model_type, fields in {
        "llama": {"attention_bias": True},
        "qwen3": {"tie_word_embeddings": True},
    }.items():
        path = tmp_path / model_type
        architecture = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[model_type]
        tensors = write_target(path, model_type=model_type, architectures=[architecture], **fields)
        model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
        shutil.rmtree(path)
