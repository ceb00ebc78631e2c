"""The command line: what it prints, and one line with exit code 2 for every user's error."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from checkpoints import write_drafter, write_target
from command_errors import assert_one_line
from p_eagle_cuda import ops
from p_eagle_cuda.cli import main
from p_eagle_cuda.draft_length import DraftLengthPolicy
from p_eagle_cuda.ops import verify

V = 300


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy target and drafter over bytes; its texts are nonsense."""
    path = tmp_path_factory.mktemp("pair")
    write_target(path / "target", vocab_size=V)
    write_drafter(path / "drafter", vocab_size=V, draft_vocab_size=V, ptd_token_id=V - 1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=V - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["def quicksort(xs): return xs"] * 2, trainer)
    tokenizer.save(str(path / "target" / "tokenizer.json"))
    return path


@pytest.fixture
def run(pair: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `p-eagle-cuda generate` on the toy pair: (exit code, output, errors)."""

    def run(*arguments: str, target: Path | None = None, drafter: Path | None = None) -> Any:
        folders = [
            "--target", str(target or pair / "target"), "--drafter",
            str(drafter or pair / "drafter"),
        ]  # fmt: skip
        try:
            code = main(["generate", *arguments, *folders])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_dynamic_k_chooses_in_every_step(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []

    def choose(self: DraftLengthPolicy, batch_size: int) -> int:
        chosen.append(batch_size)
        return 1

    monkeypatch.setattr(DraftLengthPolicy, "choose", choose)
    results = []
    for flags in ([], ["--dynamic-k"]):
        assert chosen == []
        code, out, err = run("def f(", "--max-tokens", "20", "--json", *flags)
        assert code == 0, err
        results.append(json.loads(out))
    assert results[0]["texts"] == results[1]["texts"]
    assert results[1]["lossless"]
    assert chosen == [1] * len(chosen)
    assert len(chosen) >= 10
    assert len(results[0]["per_position"]) == 5


def test_streams_the_text_and_reports(run: Callable[..., Any]) -> None:
    code, out, err = run("def f(", "--max-tokens", "20")
    assert code == 0, err
    assert out.startswith("def f(")
    assert "at K = 5" in out
    assert "for 20 tokens" in out
    assert "yes, equal to plain greedy decoding token for token" in out


def test_json_report(run: Callable[..., Any]) -> None:
    code, out, _ = run("def f(", "--max-tokens", "20", "--json", "--k", "3")
    report = json.loads(out)
    assert code == 0
    assert report["lossless"] is True
    assert len(report["outputs"]) == len(report["texts"]) == 1
    assert len(report["outputs"][0]) == 20
    assert len(report["per_position"]) == 3
    expected = 1 + sum(report["per_position"])
    assert report["acceptance_length"] == pytest.approx(expected)
    assert 20 / 4 <= report["target_steps"] <= 20
    assert report["tokens_per_s"] > 0
    assert report["tokens_per_s_plain"] > 0


def test_sampling_is_reproducible_and_lossless(run: Callable[..., Any]) -> None:
    def outputs(*arguments: str) -> list[list[int]]:
        code, out, err = run("x", "--max-tokens", "30", "--json", "--temperature", "1", *arguments)
        assert code == 0, err
        report = json.loads(out)
        assert report["lossless"]
        return report["outputs"]

    assert outputs("--seed", "3") == outputs("--seed", "3", "--k", "2")
    assert outputs("--seed", "3") != outputs("--seed", "4")


@pytest.mark.parametrize("tree", ["static", "dynamic"])
def test_a_tree_is_compared_with_the_chain(tree: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On the bundled pair, whose drafts are sometimes right."""

    def generate(*arguments: str) -> str:
        assert main(["generate", "class Stack:", "--k", "3", "--max-tokens", "24", *arguments]) == 0
        return capsys.readouterr().out

    chain = json.loads(generate("--json"))
    assert (chain["tree"], chain["nodes_per_step"]) == ("chain", 4)
    assert chain["chain_acceptance_length"] is chain["break_even"] is None

    report = json.loads(generate("--tree", tree, "--nodes", "20", "--json"))
    assert report["lossless"]
    assert report["outputs"] == chain["outputs"]
    assert report["tree"] == tree
    assert report["chain_acceptance_length"] == chain["acceptance_length"]
    length = report["acceptance_length"]
    assert length > chain["acceptance_length"]
    assert report["break_even"] == pytest.approx(length / chain["acceptance_length"])
    # A shape has only what was right in the run that made it.
    assert 4 < report["nodes_per_step"] <= 20
    assert tree == "static" or report["nodes_per_step"] == 20

    out = generate("--tree", tree, "--nodes", "20")
    for line in (
        f"acceptance length  {length:.2f} tokens per step at K = 3",
        f"nodes per step     {report['nodes_per_step']:.1f} ({tree} tree",
        f"the chain's        {chain['acceptance_length']:.2f} tokens per step with 4 nodes",
        f"break-even         {report['break_even']:.2f} times the cost of verifying the chain",
    ):
        assert line in out


def test_a_chain_of_fewer_nodes_is_a_shorter_chain(run: Callable[..., Any]) -> None:
    arguments = ("def f(", "--max-tokens", "20", "--json", "--k", "5")
    short, cut = (
        json.loads(run(*arguments, *more)[1]) for more in (["--k", "2"], ["--nodes", "3"])
    )
    assert cut["outputs"] == short["outputs"]
    assert cut["nodes_per_step"] == short["nodes_per_step"]
    assert cut["per_position"][2:] == [0, 0, 0]


def test_a_tree_of_no_steps(run: Callable[..., Any]) -> None:
    """There is nothing to shape a tree by, and nothing to compare."""
    for tree in ("static", "dynamic"):
        code, out, err = run("def f(", "--max-tokens", "1", "--tree", tree)
        assert code == 0, err
        assert "no draft was verified" in out
        assert "break-even" not in out


@pytest.mark.parametrize("weights", ["fp8", "w8a8"])
def test_fp8_changes_drafts_but_no_text(weights: str, run: Callable[..., Any]) -> None:
    arguments = ("def f(", "--k", "3", "--max-tokens", "40", "--json")
    plain, fp8 = (
        json.loads(run(*arguments, *more)[1])
        for more in ((), ("--weights", weights, "--kv-dtype", "fp8"))
    )
    assert fp8["lossless"]
    assert fp8["outputs"] == plain["outputs"]


def test_a_file_of_prompts(run: Callable[..., Any], tmp_path: Path) -> None:
    prompts = ["def a(", "class B:", "", "déjà"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n\n".join(json.dumps({"prompt": p}) for p in prompts), encoding="utf-8")
    batch = ("--prompts", str(file), "--max-tokens", "12", "--json")
    reports = [json.loads(run(*batch, "--batch-size", n)[1]) for n in ("1", "3")]
    assert reports[0]["outputs"] == reports[1]["outputs"]
    assert len(reports[0]["outputs"]) == 4
    code, out, _ = run("--prompts", str(file), "--max-tokens", "12")
    assert code == 0
    for prompt, text in zip(prompts, reports[0]["texts"], strict=True):
        assert prompt + text in out
    code, out, _ = run("déjà", "--max-tokens", "12", "--json")
    assert code == 0
    assert json.loads(out)["outputs"][0] == reports[0]["outputs"][3]


def test_a_different_text_is_exit_code_1(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break verification: every draft counts as accepted."""

    def accept_all(
        logits: Tensor, row_start: Tensor, candidates: Tensor, *rest: Any, **options: Any
    ) -> Any:
        for b, (start, end) in enumerate(itertools.pairwise(row_start.tolist())):
            drafts = candidates[b, 1 : end - start]
            logits[start : end - 1] = torch.eye(logits.shape[1])[drafts]
        return verify(logits, row_start, candidates, *rest, **options)

    monkeypatch.setattr("p_eagle_cuda.engine.verify", accept_all)
    code, out, _ = run("def f(", "--max-tokens", "20")
    assert code == 1
    assert "NO, prompt 0 differs from plain greedy decoding at token" in out


def test_k_beyond_training_is_noted_and_works(
    run: Callable[..., Any], pair: Path, tmp_path: Path
) -> None:
    tensors_of = pair / "drafter" / "model.safetensors"
    config = json.loads((pair / "drafter" / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(tensors_of)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_depths": 4}))
    code, out, err = run("a", "--k", "7", "--max-tokens", "9", "--json", drafter=tmp_path)
    assert code == 0
    assert "trained for 4 tokens a step" in err
    assert len(json.loads(out)["per_position"]) == 7


BAD_CALLS = {
    "no prompt": ([], "expected a prompt or --prompts FILE"),
    "both": (["x", "--prompts", "y"], "expected a prompt or --prompts FILE, and not both"),
    "k 0": (["x", "--k", "0"], "k must be 1 to 32, got 0"),
    "k 33": (["x", "--k", "33"], "k must be 1 to 32, got 33"),
    "k word": (["x", "--k", "many"], "argument --k: invalid int value: 'many'"),
    "weights": (
        ["x", "--weights", "int8"],
        "argument --weights: invalid choice: 'int8'",
    ),
    "kv": (["x", "--kv-dtype", "fp4"], "argument --kv-dtype: invalid choice: 'fp4'"),
    "bf16 weights": (
        ["x", "--weights", "bf16"],
        'weights="bf16" needs the working dtype bfloat16, got float32',
    ),
    "bf16 kv": (
        ["x", "--kv-dtype", "bf16"],
        'kv_dtype="bf16" needs the working dtype bfloat16, got float32',
    ),
    "no tree": (["x", "--tree", "bush"], "argument --tree: invalid choice: 'bush'"),
    "nodes word": (["x", "--nodes", "few"], "argument --nodes: invalid int value: 'few'"),
    "1 node": (
        ["x", "--tree", "dynamic", "--nodes", "1"],
        "the nodes of a dynamic tree, with the token before them, must be 2 to 64, got 1",
    ),
    "65 nodes": (
        ["x", "--tree", "static", "--nodes", "65"],
        "the nodes of a static tree, with the token before them, must be 2 to 64, got 65",
    ),
    "chain too long": (
        ["x", "--k", "3", "--nodes", "5"],
        "the nodes of a chain of k drafts, with the token before them, must be 2 to 4, got 5",
    ),
    "tree of dynamic k": (
        ["x", "--tree", "dynamic", "--dynamic-k"],
        "a dynamic k chooses the length of a chain: it goes with no other tree",
    ),
    "nodes of dynamic k": (
        ["x", "--nodes", "4", "--dynamic-k"],
        "it goes with no other tree, and with no number of nodes",
    ),
    "no tokens": (["x", "--max-tokens", "0"], "--max-tokens must be at least 1, got 0"),
    "no batch": (["x", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    "cold": (
        ["x", "--temperature", "-1"],
        "--temperature must be a finite number, 0 or above, got -1.0",
    ),
    "nan": (
        ["x", "--temperature", "nan"],
        "--temperature must be a finite number, 0 or above, got nan",
    ),
    "long": (
        ["x" * 250],
        "prompt 0 has 250 tokens; with 200 new ones that exceeds the target's context of 256",
    ),
    "no file": (["--prompts", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    "not utf-8": (["caf\udce9"], "the prompt is not Unicode text: character 3 is '\\udce9'"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call_is_one_line(name: str, run: Callable[..., Any]) -> None:
    arguments, message = BAD_CALLS[name]
    assert_one_line(run(*arguments), message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(run: Callable[..., Any]) -> None:
    assert_one_line(run("x", "--device", "cuda"), "this PyTorch sees no CUDA device")


BAD_PROMPT_FILES = {
    "not json": (b'{"prompt": "a"}\nprompt', ":2: is not JSON"),
    "no prompt": (b'{"text": "a"}', ':1: expected {"prompt": "..."}'),
    "no string": (b'{"prompt": 5}', ':1: expected {"prompt": "..."}'),
    "list": (b'["a"]', ':1: expected {"prompt": "..."}'),
    "not utf-8": (b'{"prompt": "\xff"}', "is not UTF-8 (byte 12)"),
    "empty": (b"\n", "holds no prompts"),
    "half a character": (b'{"prompt": "\\ud800 x"}', "the prompt is not Unicode text"),
    "deep": (b"[" * 100_000, ":1: is not JSON"),
    "huge number": (b'{"prompt": ' + b"1" * 5000 + b"}", ":1: is not JSON"),
}


@pytest.mark.parametrize("name", BAD_PROMPT_FILES)
def test_bad_prompt_file_is_one_line(name: str, run: Callable[..., Any], tmp_path: Path) -> None:
    content, message = BAD_PROMPT_FILES[name]
    (tmp_path / "p.jsonl").write_bytes(content)
    assert_one_line(run("--prompts", str(tmp_path / "p.jsonl")), message)


def test_a_folder_of_prompts_is_one_line(run: Callable[..., Any], tmp_path: Path) -> None:
    assert_one_line(run("--prompts", str(tmp_path)), "cannot be read")


def test_models_that_do_not_fit(run: Callable[..., Any], tmp_path: Path) -> None:
    wide, few, deep = tmp_path / "wide", tmp_path / "few", tmp_path / "deep"
    sizes = {"vocab_size": V, "draft_vocab_size": V, "ptd_token_id": V - 1}
    write_drafter(wide, **sizes, target_hidden_size=192)
    write_drafter(few)
    write_drafter(deep, **sizes, eagle_aux_hidden_state_layer_ids=[2, 4, 7])
    assert_one_line(run("x", drafter=wide), "width 192, the target's are 128 wide")
    assert_one_line(run("x", drafter=few), "the drafter knows 50 tokens, the target 300")
    assert_one_line(run("x", drafter=deep), "the drafter taps layer 7, expected at most 6")


def test_broken_folders(run: Callable[..., Any], pair: Path, tmp_path: Path) -> None:
    assert_one_line(run("x", target=tmp_path), "config.json: not found")
    write_target(tmp_path / "bare", vocab_size=V)
    assert_one_line(run("x", target=tmp_path / "bare"), "tokenizer.json: not found")
    (tmp_path / "bare" / "tokenizer.json").write_text("{}")
    assert_one_line(run("x", target=tmp_path / "bare"), "tokenizer.json: is not a tokenizer")
    (tmp_path / "bare" / "tokenizer.json").write_bytes(
        (pair / "target" / "tokenizer.json").read_bytes()
    )
    tensors = tmp_path / "bare" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    assert_one_line(run("x", target=tmp_path / "bare"), "model.safetensors: ")
    # A target in place of a drafter has no mask token.
    assert_one_line(run("x", drafter=pair / "target"), "no mask token, expected one of")


def test_an_empty_prompt_starts_a_text_or_says_why_not(
    run: Callable[..., Any], pair: Path, tmp_path: Path
) -> None:
    code, out, _ = run("", "--max-tokens", "5", "--json")
    assert code == 0
    assert len(json.loads(out)["outputs"][0]) == 5
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(pair / "target" / name)
    config = json.loads((pair / "target" / "config.json").read_text())
    del config["bos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_one_line(run("", target=tmp_path), "the prompt is empty and the target has no token")


def test_another_target_is_noted(run: Callable[..., Any], pair: Path, tmp_path: Path) -> None:
    config = json.loads((pair / "drafter" / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(pair / "drafter" / "model.safetensors")
    found = hashlib.sha256((pair / "target" / "model.safetensors").read_bytes()).hexdigest()
    for tied_to, noted in (("0" * 64, True), (found, False)):
        (tmp_path / "config.json").write_text(json.dumps({**config, "target_sha256": tied_to}))
        code, _, err = run("a", "--max-tokens", "3", "--json", drafter=tmp_path)
        assert code == 0
        assert ("was trained for the target with sha256 000000000000" in err) == noted


def test_a_drafter_with_a_padded_vocabulary(run: Callable[..., Any], tmp_path: Path) -> None:
    """Drafts that the target does not know end the chain."""
    write_drafter(tmp_path, vocab_size=4000, draft_vocab_size=4000, ptd_token_id=3999)
    code, out, _ = run("def f(", "--max-tokens", "30", "--json", drafter=tmp_path)
    assert code == 0
    assert json.loads(out)["lossless"]


def test_a_tokenizer_that_truncates_and_pads(
    run: Callable[..., Any], pair: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(pair / "target" / name)
    tokenizer = Tokenizer.from_file(str(pair / "target" / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    outputs = [
        json.loads(run("def merge", "--max-tokens", "8", "--json", target=target)[1])["outputs"]
        for target in (None, tmp_path)
    ]
    assert outputs[0] == outputs[1]


def test_nan_logits_are_not_lossless(run: Callable[..., Any], pair: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(pair / "target" / name)
    config = json.loads((pair / "target" / "config.json").read_text())
    scaling = {"rope_type": "linear", "factor": 1e-320}
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
    assert_one_line(run("abc", "--json", target=tmp_path), "the target computed NaN logits")


def test_one_model_without_the_other(capsys: pytest.CaptureFixture[str], pair: Path) -> None:
    code = main(["generate", "x", "--target", str(pair / "target")])
    assert_one_line((code, *capsys.readouterr()), "--target and --drafter go together")


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    information = json.loads(capsys.readouterr().out)
    assert information["ops"] == ops.implementations()
    assert information["architectures"]
    for folder in information["bundled"].values():
        assert (Path(folder) / "model.safetensors").is_file()
    (hopper,) = (
        path
        for path in information["linear_layers"]
        if (path["architecture"], path["weight"], path["first_rows"]) == ("sm_90", "16-bit", 33)
    )
    assert (hopper["by_table"], hopper["fused"], hopper["last_rows"]) == ("cuBLAS", "wgmma", None)
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ops.implementations())
    assert "sm_90          16-bit  33-     cuBLAS        wgmma     wgmma    all\n" in text


def test_interruption_is_not_a_traceback(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("p_eagle_cuda.engine.SpeculativeEngine._step", interrupted)
    code, _, err = run("x", "--json")
    assert code == 130
    assert err == "\np-eagle-cuda: interrupted\n"


def test_as_a_program() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "p_eagle_cuda", "generate"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr == (
        "p-eagle-cuda: error: expected a prompt or --prompts FILE, and not both\n"
    )
