"""FP8 weights and caches by name: how they are made, what a pass gives, what is kept on disk."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints import write_drafter
from drafter_passes import PROMPTS, SIZES, TOP_K, K, passes, propose, reference_pass
from drafter_variants import VARIANTS
from numerics import assert_as_accurate_as_torch
from p_eagle_cuda import Drafter, quantized_cache, weights
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.errors import CheckpointError, ConfigError
from p_eagle_cuda.precision import kv_cache_dtype, quantize_activations, quantize_rows
from p_eagle_cuda.reference import dequantize
from p_eagle_cuda.weights import DrafterWeights, load_drafter_weights

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BF16 = torch.bfloat16


def load(path: Path, **options: Any) -> DrafterWeights:
    return load_drafter_weights(path, DrafterConfig.from_pretrained(path), **options)


def tensors_of(x: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor in a dataclass, by its path."""
    if isinstance(x, Tensor):
        return {name: x}
    items = enumerate(x) if isinstance(x, tuple) else ()
    if hasattr(x, "__dataclass_fields__"):
        items = ((field.name, getattr(x, field.name)) for field in fields(x))
    found: dict[str, Tensor] = {}
    for key, value in items:
        found |= tensors_of(value, f"{name}.{key}" if name else str(key))
    return found


def assert_same_weights(found: DrafterWeights, expected: DrafterWeights) -> None:
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(_bits(tensor), _bits(theirs[name])), name


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == E4M3 else x


# ---- Quantising ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32], ids=str)
def test_rows_have_the_least_scale_and_round_once(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    magnitude = torch.logspace(-7, 4, 5000)[:, None]  # more rows than are quantised at a time
    matrix = (torch.randn(5000, 24, generator=g) * magnitude).to(dtype)
    matrix[7] = 0
    values, scale = quantize_rows(matrix)
    assert (values.dtype, scale.dtype, scale.shape) == (E4M3, torch.float32, (5000,))
    exact, rounded = matrix.double(), dequantize(values, scale, torch.float64)
    assert torch.equal(scale.log2(), scale.log2().round()), "powers of two"
    largest = exact.abs().amax(dim=1)
    assert (largest <= 448 * scale).all()
    assert (largest > 224 * scale)[largest > 0].all()
    assert scale[7] == 1
    assert not rounded[7].any()
    bound = torch.maximum(exact.abs() / 16, scale[:, None].double() / 1024)
    assert ((rounded - exact).abs() <= bound).all()
    assert torch.equal(dequantize(values, scale, BF16).double(), rounded), "exact in bfloat16"


def test_what_e4m3_holds_is_kept() -> None:
    """All finite values, in rows whose largest is the largest of all, or a power of two."""
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    codes = codes[codes.isfinite()]
    for factor in (2.0**-126, 2.0**-9, 1.0, 2.0**30):
        values, scale = quantize_rows((codes * factor)[None])
        assert torch.equal(values[0].float(), codes)
        assert scale.item() == factor
    values, scale = quantize_rows(torch.tensor([[1e-42, 3e-45]]))
    assert scale.item() == 2.0**-126
    assert not values.float().any()


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float64], ids=str)
def test_activations_have_a_scale_for_each_128_columns(dtype: torch.dtype) -> None:
    """As a matrix of such rows would have, whatever the others hold; the last may be shorter."""
    g = torch.Generator().manual_seed(0)
    magnitude = torch.logspace(-4, 3, 3)[:, None]
    blocks = [(torch.randn(3, n, generator=g) * magnitude).to(dtype) for n in (128, 128, 40)]
    blocks[1][1] = 0
    found = quantize_activations(torch.cat(blocks, dim=1))
    assert found.dtype == dtype
    expected = [dequantize(*quantize_rows(block), dtype) for block in blocks]
    assert torch.equal(found, torch.cat(expected, dim=1))
    assert torch.equal(quantize_activations(found), found)


def test_the_least_scale_of_activations() -> None:
    x = torch.tensor([[2.0**-64 * 448, 2.0**-73], [2.0**-90, 2.0**-74]], dtype=torch.float64)
    expected = torch.tensor([[2.0**-64 * 448, 2.0**-73], [0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(quantize_activations(x), expected)


# ---- Drafters ------------------------------------------------------------------------------------


MATRICES = ("fc", "qkv", "o", "gate_up", "down", "lm_head")


@pytest.mark.parametrize("name", ["auto", "bf16", "fp8_head", "fp8", "w8a8"])
def test_which_matrices_are_quantised(name: str, tmp_path: Path) -> None:
    write_drafter(tmp_path, dtype=BF16)
    found = tensors_of(load(tmp_path, precision=name))
    quantised = {n.split(".")[-1] for n, x in found.items() if x.dtype == E4M3}
    every = set(MATRICES)
    expected = {"fp8": every, "w8a8": every, "fp8_head": {"lm_head"}}.get(name, set())
    assert quantised == expected
    assert {n.split(".")[-1] for n in found if n.endswith("_scale")} == {
        f"{n}_scale" for n in expected
    }
    wide = ("rope", "mask_heads", "_scale")
    assert {x.dtype for n, x in found.items() if n.split(".")[-1] not in MATRICES
            and not n.endswith(wide)} == {BF16}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_quantised_drafter_is_that_of_the_rounded_matrices(variant: str, tmp_path: Path) -> None:
    """Mask rows too, which are computed when loading: bit for bit, in weights and in drafts."""
    before, after = tmp_path / "before", tmp_path / "after"
    tensors = write_drafter(before, dtype=BF16, **VARIANTS[variant])
    write_drafter(after, dtype=BF16, **VARIANTS[variant])
    rounded = {
        name: dequantize(*quantize_rows(x), torch.float32)
        if x.ndim == 2 and "embed" not in name and "mask" not in name and "norm" not in name
        else x
        for name, x in tensors.items()
    }
    assert sum(not torch.equal(x, tensors[name]) for name, x in rounded.items()) >= 9
    save_file(rounded, after / "model.safetensors")
    drafters = [
        Drafter.from_pretrained(path, dtype=torch.float64, weights=name, linear="fused", **SIZES)
        for path, name in ((before, "fp8"), (after, "auto"))
    ]
    assert torch.equal(drafters[0].weights.mask_hidden, drafters[1].weights.mask_hidden)
    assert torch.equal(drafters[0].weights.mask_heads, drafters[1].weights.mask_heads)
    for step in passes(drafters[0].config, torch.float64):
        ours, theirs = (propose(drafter, step) for drafter in drafters)
        assert torch.equal(ours.top_ids, theirs.top_ids)
        assert torch.equal(ours.top_logits, theirs.top_logits)


def test_the_working_dtype_does_not_change_what_is_quantised(tmp_path: Path) -> None:
    tensors = write_drafter(tmp_path)  # float32: rounding to 16 bits first would show
    found = [tensors_of(load(tmp_path, dtype=x, precision="fp8")) for x in (torch.float32, BF16)]
    for name, tensor in found[0].items():
        if tensor.dtype == E4M3 or name.endswith("_scale"):
            assert torch.equal(_bits(tensor), _bits(found[1][name])), name
    assert torch.equal(_bits(found[0]["fc"]), _bits(quantize_rows(tensors["fc.weight"])[0]))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "of the target"])
def test_a_head_from_elsewhere_is_quantised(tied: bool, tmp_path: Path) -> None:
    tensors = write_drafter(tmp_path, tie_word_embeddings=tied, dtype=BF16)
    head = tensors["embed_tokens.weight" if tied else "lm_head.weight"]
    kept = {name: x for name, x in tensors.items() if name != "lm_head.weight"}
    save_file(kept, tmp_path / "model.safetensors")
    found = load(tmp_path, precision="fp8_head", target_lm_head=None if tied else head)
    values, scale = quantize_rows(head)
    assert found.lm_head_scale is not None
    assert torch.equal(_bits(found.lm_head), _bits(values))
    assert torch.equal(found.lm_head_scale, scale)
    assert found.embedding.dtype == BF16


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8", E5M2], ids=str)
@pytest.mark.parametrize("name", ["fp8_head", "fp8", "w8a8"])
def test_drafts_match_the_reference(
    name: str, kv_dtype: str | torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    write_drafter(tmp_path)
    drafter = Drafter.from_pretrained(
        tmp_path, dtype=dtype, weights=name, kv_dtype=kv_dtype, **SIZES
    )
    steps = passes(drafter.config, dtype)
    for step in steps:
        drafts = propose(drafter, step)
    stored = {"auto": None, "fp8": E4M3}.get(kv_dtype, kv_dtype)  # type: ignore[call-overload]
    assert drafter.caches[0].k.dtype == (stored or dtype)
    exact, unfused = (
        reference_pass(tmp_path, steps, x, stored or x, precision=name)
        for x in (torch.float64, dtype)
    )
    shape = (len(PROMPTS), K, TOP_K)
    for what, i in (("logits", 1), ("lse", 2)):
        found = drafts.top_logits if i == 1 else drafts.lse
        want, budget = (x[i].view(shape[: found.ndim]) for x in (exact, unfused))
        assert_as_accurate_as_torch(what, found, want, budget)
    without = {"w8a8": "fp8"}.get(name, "auto")
    plain = reference_pass(
        tmp_path, steps, torch.float64, stored or torch.float64, precision=without
    )
    assert not torch.allclose(plain[1], exact[1], rtol=1e-3), "nothing was quantised"


# ---- Names ---------------------------------------------------------------------------------------


def test_names_of_caches() -> None:
    for dtype in (BF16, torch.float16, torch.float32, torch.float64):
        assert kv_cache_dtype("auto", dtype) == kv_cache_dtype(dtype, dtype) == dtype
        assert kv_cache_dtype("fp8", dtype) == kv_cache_dtype(E4M3, dtype) == E4M3
        assert kv_cache_dtype(E5M2, dtype) == E5M2
    assert kv_cache_dtype("bf16", BF16) == BF16


BAD_NAMES: dict[str, tuple[dict[str, Any], str]] = {
    "weights": (
        {"weights": "int8"},
        'weights must be "auto", "bf16", "fp8_head", "fp8" or "w8a8", got \'int8\'',
    ),
    "kv": (
        {"kv_dtype": "fp4"},
        'kv_dtype must be "auto", "bf16" or "fp8", or one of the dtypes float32 (the working '
        "dtype), float8_e4m3fn and float8_e5m2, got 'fp4'",
    ),
    "kv dtype": ({"kv_dtype": torch.float16}, "and float8_e5m2, got torch.float16"),
    "bf16 weights": (
        {"weights": "bf16"}, 'weights="bf16" needs the working dtype bfloat16, got float32; "auto" '
    ),
    "bf16 kv": (
        {"kv_dtype": "bf16"}, 'kv_dtype="bf16" needs the working dtype bfloat16, got float32'
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_one_sentence(name: str, tmp_path: Path) -> None:
    write_drafter(tmp_path)
    options, sentence = BAD_NAMES[name]
    with pytest.raises(ConfigError) as error:
        Drafter.from_pretrained(tmp_path, dtype=torch.float32, **options, **SIZES)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


# ---- The cache on disk ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_drafter(tmp_path, dtype=BF16)
    return tmp_path


def cached(path: Path, name: str = "fp8") -> Path:
    return path / f"p_eagle_cuda-{name.replace('w8a8', 'fp8')}.cache"  # the same matrices


def forbid_quantising(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Tensor) -> None:
        raise AssertionError("quantised again")

    monkeypatch.setattr(weights, "quantize_rows", refuse)


@pytest.mark.parametrize("name", ["fp8_head", "fp8", "w8a8"])
@pytest.mark.filterwarnings("error")
def test_the_second_load_takes_the_file(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(folder, precision=name)
    assert not cached(folder, name).exists(), "written unasked"
    assert_same_weights(load(folder, precision=name, quantized_cache=True), expected)
    written = cached(folder, name).stat().st_mtime_ns
    forbid_quantising(monkeypatch)
    assert_same_weights(load(folder, precision=name, quantized_cache=True), expected)
    assert cached(folder, name).stat().st_mtime_ns == written
    with pytest.raises(AssertionError, match="quantised again"):
        load(folder, precision=name)
    assert [x.name for x in folder.iterdir() if "cache" in x.name] == [cached(folder, name).name]


@pytest.mark.filterwarnings("error")
def test_a_folder_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = folder / "a" / "b"
    options = {"weights": "fp8", "quantized_cache": own, **SIZES}
    expected = Drafter.from_pretrained(folder, **options).weights
    assert cached(own).exists()
    assert not cached(folder).exists()
    forbid_quantising(monkeypatch)
    assert_same_weights(Drafter.from_pretrained(folder, **options).weights, expected)


@pytest.mark.filterwarnings("error")
def test_a_cache_is_no_part_of_a_checkpoint(folder: Path) -> None:
    """Nor where any .safetensors file would be one."""
    (folder / "model.safetensors").rename(folder / "drafter.safetensors")
    load(folder, precision="fp8", quantized_cache=True)
    assert cached(folder).exists()
    load(folder, precision="fp8", quantized_cache=True)
    load(folder)


def test_nothing_is_kept_that_is_not_the_checkpoints(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors")
    load(folder, precision="fp8", quantized_cache=True, target_lm_head=head)
    with safe_open(cached(folder), framework="pt") as handle:
        assert set(handle.keys()) == {
            f"{prefix}{name}{end}"
            for end in ("", "_scale")
            for prefix, names in (
                ("", ["fc"]),
                *((f"layers.{i}.", ["qkv", "o", "gate_up", "down"]) for i in range(3)),
            )
            for name in names
        }
    other = load(folder, precision="fp8", quantized_cache=True, target_lm_head=-head)
    assert torch.equal(_bits(other.lm_head), _bits(quantize_rows(-head)[0]))


def another_checkpoint(folder: Path) -> None:
    write_drafter(folder, seed=5, dtype=BF16)


def flipped_bit(folder: Path) -> None:
    content = bytearray(cached(folder).read_bytes())
    content[-100] ^= 1
    cached(folder).write_bytes(content)


def truncated(folder: Path) -> None:
    cached(folder).write_bytes(cached(folder).read_bytes()[:-1])


def empty(folder: Path) -> None:
    cached(folder).write_bytes(b"")


def of_another_dtype(folder: Path) -> None:
    """The same bytes, called something else."""
    content = cached(folder).read_bytes()
    cached(folder).write_bytes(content.replace(b'"F8_E4M3"', b'"F8_E5M2"'))


def of_another_version(folder: Path) -> None:
    content = cached(folder).read_bytes()
    cached(folder).write_bytes(content.replace(b"matrices, 1", b"matrices, 0"))


def of_another_precision(folder: Path) -> None:
    load(folder, precision="fp8_head", quantized_cache=True)
    cached(folder, "fp8_head").replace(cached(folder))


def a_folder(folder: Path) -> None:
    cached(folder).unlink()
    (cached(folder) / "x").mkdir(parents=True)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (another_checkpoint, "has checkpoint_sha256 '.*', expected '.*'; it is made again"),
        (flipped_bit, "is damaged: its tensors are not those that its checksum is of; it is made"),
        (of_another_dtype, "is damaged: its tensors are not those that its checksum is of"),
        (truncated, r"cannot be read \(.*\); it is made again"),
        (empty, r"cannot be read \(.*\); it is made again"),
        (of_another_version, "has format 'p_eagle_cuda quantised matrices, 0', expected"),
        (of_another_precision, "has weights 'fp8_head', expected 'fp8'; it is made again"),
        (a_folder, r"cannot be written \(.*\); the next load quantises again"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_file_that_is_wrong_is_made_again(
    damage: Any, problem: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, precision="fp8", quantized_cache=True)
    damage(folder)
    expected = load(folder, precision="fp8")
    with pytest.warns(UserWarning, match=rf"p_eagle_cuda-fp8\.cache: {problem}") as caught:
        assert_same_weights(load(folder, precision="fp8", quantized_cache=True), expected)
    assert all("\n" not in str(x.message) for x in caught)
    if damage is not a_folder:
        forbid_quantising(monkeypatch)
        assert_same_weights(load(folder, precision="fp8", quantized_cache=True), expected)


def test_where_nothing_can_be_written(folder: Path) -> None:
    expected = load(folder, precision="fp8")
    nowhere = folder / "config.json" / "x"
    with pytest.warns(
        UserWarning, match=r"cannot be written \(.*\); the next load quant"
    ) as caught:
        found = load(folder, precision="fp8", quantized_cache=nowhere)
    assert len(caught) == 1
    assert_same_weights(found, expected)


def test_a_write_that_fails_leaves_the_old_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder, precision="fp8", quantized_cache=True)
    flipped_bit(folder)
    before = {x.name: x.read_bytes() for x in folder.iterdir()}

    def fill_the_disk(_: object, path: Path, __: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantized_cache, "save_file", fill_the_disk)
    with pytest.warns(UserWarning, match="No space left on device"):
        load(folder, precision="fp8", quantized_cache=True)
    assert {x.name: x.read_bytes() for x in folder.iterdir()} == before


def test_a_cached_matrix_must_still_fit_the_configuration(folder: Path) -> None:
    load(folder, precision="fp8", quantized_cache=True)
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"mlp\.gate_proj\.weight` has shape .*, expected"):
        load(folder, precision="fp8", quantized_cache=True)
