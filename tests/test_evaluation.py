"""`p-eagle-cuda eval` against a server in this process: figures, datasets, errors of one line."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_errors import assert_one_line
from fake_vllm import FakeVllm, serving
from p_eagle_cuda.cli import main
from p_eagle_cuda.evaluation import command, report

Run = Callable[..., tuple[int, str, str]]

HUMANEVAL = [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n"} for i in range(5)]
MTBENCH = [{"question_id": 81 + i, "turns": [f"Question {i}?", "And then?"]} for i in range(3)]
GSM8K = [{"question": f"How many are {i} and 1?", "answer": f"#### {i + 1}"} for i in range(4)]
NAMES = ["humaneval", "mtbench", "gsm8k"]


def write_lines(file: Path, values: list[Any]) -> Path:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return file


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    lines = "".join(json.dumps(x) + "\n" for x in HUMANEVAL)
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    write_lines(tmp_path / "question.jsonl", MTBENCH)
    write_lines(tmp_path / "test.jsonl", GSM8K)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["eval", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_figures_are_those_of_the_run(run: Run, data_dir: Path) -> None:
    """Of two engines together, without what was counted before; K = 3, accepted 0, 2 and 3."""
    with serving(FakeVllm()) as fake:
        code, out, err = run(
            "--dataset", *NAMES, "--data-dir", data_dir, "--base-url", fake.base_url,
            "--max-tokens", 20, "--json",
        )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["model"] == fake.model
    assert (found["endpoint"], found["max_tokens"], found["temperature"]) == ("chat", 20, 0.0)
    titles = [(x["dataset"], x["num_prompts"]) for x in found["datasets"]]
    assert titles == [("HumanEval", 5), ("MT-Bench", 3), ("GSM-8K", 4)]
    for x in found["datasets"]:
        n = x["num_prompts"]
        assert x["acceptance_length"] == pytest.approx(1 + 5 / 3)
        assert x["per_position"] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
        assert (x["num_drafts"], x["num_draft_tokens"]) == (3 * n, 9 * n)
        assert x["num_accepted_tokens"] == 5 * n
        assert x["num_generated_tokens"] == x["num_own_tokens"] == 8 * n
        assert x["seconds"] > 0


def test_the_table(run: Run, data_dir: Path) -> None:
    with serving(FakeVllm(accepted=(1, 0), num_speculative_tokens=2, model="m")) as fake:
        code, out, err = run(
            "--dataset", "gsm8k", "mtbench", "--data-dir", data_dir,
            "--base-url", f"{fake.base_url}/v1/",
        )  # fmt: skip
    assert (code, err) == (0, "")
    assert out == (
        "m: at most 2048 new tokens, temperature 0, chat\n\n"
        "| Dataset  | Prompts | K   | Acceptance length | Accepted by position |\n"
        "| ---      | ---     | --- | ---               | ---                  |\n"
        "| GSM-8K   | 4       | 2   | 1.50              | 0.50 0.00            |\n"
        "| MT-Bench | 3       | 2   | 1.50              | 0.50 0.00            |\n"
    )


def test_what_is_asked_as_a_chat(run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    own = write_lines(data_dir / "own.jsonl", [{"messages": chat}, {"prompt": "Plain"}])
    with serving(FakeVllm()) as fake:
        code, _, _ = run(
            "--dataset", *NAMES, own, "--data-dir", data_dir, "--base-url", fake.base_url,
            "--num-prompts", 2, "--concurrency", 1, "--temperature", 0.5, "--extra-body",
            '{"reasoning_effort": "low"}',
        )  # fmt: skip
    assert code == 0
    texts = ["def f0():\n", "def f1():\n", "Question 0?", "Question 1?"]
    texts += ["How many are 0 and 1?", "How many are 1 and 1?"]
    expected: list[Any] = [[{"role": "user", "content": text}] for text in texts]
    expected += [chat, [{"role": "user", "content": "Plain"}]]
    assert [body["messages"] for _, body, _ in fake.requests] == expected
    for path, body, key in fake.requests:
        assert path == "/v1/chat/completions"
        assert key == "Bearer secret"
        del body["messages"]
        assert body == {
            "model": fake.model, "max_tokens": 2048, "temperature": 0.5, "reasoning_effort": "low"
        }  # fmt: skip
    assert fake.most_in_flight == 1


def test_plain_completions_several_at_a_time(run: Run, data_dir: Path) -> None:
    with serving(FakeVllm()) as fake:
        code, out, _ = run(
            "--dataset", "humaneval", "--data-dir", data_dir, "--base-url", fake.base_url,
            "--endpoint", "completions", "--concurrency", 3, "--model", "mine", "--json",
        )  # fmt: skip
    assert code == 0
    assert json.loads(out)["datasets"][0]["num_prompts"] == 5
    assert {path for path, _, _ in fake.requests} == {"/v1/completions"}
    assert {body["model"] for _, body, _ in fake.requests} == {"mine"}
    assert sorted(body["prompt"] for _, body, _ in fake.requests) == [
        x["prompt"] for x in HUMANEVAL
    ]
    assert fake.most_in_flight == 3


def test_tokens_that_are_counted_late_are_waited_for(run: Run, data_dir: Path) -> None:
    with serving(FakeVllm(lag=4)) as fake:
        code, out, err = run(
            "--dataset", "gsm8k", "--data-dir", data_dir, "--base-url", fake.base_url, "--json"
        )
    assert (code, err) == (0, "")
    assert json.loads(out)["datasets"][0]["num_drafts"] == 12


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeVllm(others=5), "counted 52 tokens, ours are 32: it served others too"),
        (FakeVllm(lag=1000), "counted 24 tokens, ours are 32: expected the /metrics of the one"),
    ],
)
def test_what_is_not_ours_alone_is_noted(
    fake: FakeVllm, reason: str, run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PATIENCE", 0.1)
    with serving(fake):
        code, out, err = run(
            "--dataset", "gsm8k", "--data-dir", data_dir, "--base-url", fake.base_url
        )
    assert code == 0
    assert "| GSM-8K" in out
    assert err.startswith("p-eagle-cuda: note: GSM-8K: the server ")
    assert reason in err
    assert err.count("\n") == 1


def test_a_plot(run: Run, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figures.Figure.savefig

    def saving(figure: Any, file: str) -> None:
        drawn.extend(
            (line.get_label(), *map(list, line.get_data())) for line in figure.axes[0].lines
        )
        save(figure, file)

    monkeypatch.setattr(figures.Figure, "savefig", saving)
    file = data_dir / "acceptance.png"
    with serving(FakeVllm()) as fake:
        code, _, _ = run(
            "--dataset", "gsm8k", "mtbench", "--data-dir", data_dir, "--base-url", fake.base_url,
            "--plot", file,
        )  # fmt: skip
    assert code == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [label for label, _, _ in drawn] == [
        f"{name}, acceptance length 2.67" for name in ("GSM-8K", "MT-Bench")
    ]
    assert [x for _, x, _ in drawn] == [[1, 2, 3]] * 2
    assert [y for _, _, y in drawn] == [pytest.approx([2 / 3, 2 / 3, 1 / 3])] * 2


# ---- One line for each mistake -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_dataset_says_where_to_get_it(name: str, run: Run, tmp_path: Path) -> None:
    result = run("--dataset", name, "--data-dir", tmp_path)
    assert_one_line(result, f"{tmp_path}/")
    known = command.KNOWN[name]
    for part in (known.files[0], f"not found; get it from {known.origin}", "--data-dir"):
        assert part in result[2]


BAD_FILES = {
    "not json": (b'{"prompt": "a"}\nprompt', ":2: is not JSON"),
    "other fields": (b'{"question": "a"}', ':1: expected an object with a text "prompt"'),
    "no object": (b'{"prompt": "a"}\n"b"\n', ':2: expected an object with a text "prompt"'),
    "no text": (b'{"prompt": ["a"]}', ':1: expected an object with a text "prompt"'),
    "empty text": (b'{"prompt": ""}', ':1: expected an object with a text "prompt"'),
    "messages": (b'{"messages": "a"}', ':1: expected "messages" to be a list of objects'),
    "no messages": (b'{"messages": []}', ':1: expected "messages" to be a list of objects'),
    "empty": (b"\n\n", "holds no prompts"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name: str, run: Run, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    for file, stored in (("x.jsonl", content), ("x.jsonl.gz", gzip.compress(content))):
        (tmp_path / file).write_bytes(stored)
        result = run("--dataset", tmp_path / file)
        assert_one_line(result, message)
        assert file in result[2]


def test_bad_known_files(run: Run, tmp_path: Path) -> None:
    """A file of the right name that is something else, or no gzip."""
    write_lines(tmp_path / "question.jsonl", [MTBENCH[0], {"turns": []}])
    result = run("--dataset", "mtbench", "--data-dir", tmp_path)
    assert_one_line(result, 'question.jsonl:2: expected an object with a text "turns"')
    for damaged in (b'{"prompt": "a"}', gzip.compress(b"x" * 1000)[:20]):
        (tmp_path / "HumanEval.jsonl.gz").write_bytes(damaged)
        result = run("--dataset", "humaneval", "--data-dir", tmp_path)
        assert_one_line(result, "HumanEval.jsonl.gz: cannot be read (")


BAD_CALLS = {
    "no dataset": ([], "the following arguments are required: --dataset"),
    "unknown": (
        ["--dataset", "humanevil"],
        "expected one of humaneval, mtbench, gsm8k or a JSON Lines file, got 'humanevil'",
    ),
    "prompts": (["--dataset", "x", "--num-prompts", 0], "expected an integer of at least 1"),
    "tokens": (["--dataset", "x", "--max-tokens", "-3"], "expected an integer of at least 1"),
    "concurrency": (["--dataset", "x", "--concurrency", "a"], "expected an integer of at least 1"),
    "temperature": (
        ["--dataset", "x", "--temperature", "nan"], "--temperature must be a finite number"
    ),
    "timeout": (["--dataset", "x", "--timeout", "0"], "--timeout must be a finite number above 0"),
    "endpoint": (["--dataset", "x", "--endpoint", "embed"], "invalid choice: 'embed'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name: str, run: Run) -> None:
    arguments, message = BAD_CALLS[name]
    assert_one_line(run(*arguments), message)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"p{i}"} for i in range(4)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON object, got '{'"),
        ("[1]", "expected a JSON object, got '[1]'"),
        ('{"max_tokens": 3}', "give max_tokens as --max-tokens"),
    ],
)
def test_bad_extra_body(text: str, message: str, run: Run, prompts: Path) -> None:
    with serving(FakeVllm()) as fake:
        result = run("--dataset", prompts, "--base-url", fake.base_url, "--extra-body", text)
    assert_one_line(result, f"--extra-body: {message}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "expected a URL as http://localhost:8000, got 'localhost:8000'"),
        ("http://[::1", "cannot be reached (Invalid IPv6 URL)"),
        ("http://localhost:port", "cannot be reached (nonnumeric port: 'port')"),
    ],
)
def test_bad_urls(url: str, message: str, run: Run, prompts: Path) -> None:
    assert_one_line(run("--dataset", prompts, "--base-url", url), message)


def test_servers_that_do_not_answer(run: Run, prompts: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        result = run("--dataset", prompts, "--base-url", url, "--timeout", 0.1)
        assert_one_line(result, f"{url}/v1/models: no answer within 0.1 s")
    result = run("--dataset", prompts, "--base-url", url)
    assert_one_line(result, f"{url}/v1/models: cannot be reached (")
    assert "refused" in result[2]


def test_a_server_without_speculation(run: Run, prompts: Path) -> None:
    with serving(FakeVllm(speculates=False)) as fake:
        result = run("--dataset", prompts, "--base-url", fake.base_url)
    assert_one_line(result, "/metrics: has no vllm:spec_decode_num_drafts_total, expected a vLLM")
    assert "--speculative-config" in result[2]
    assert not fake.requests, "prompts were sent in vain"


def test_a_server_that_drafts_nothing(run: Run, prompts: Path) -> None:
    with serving(FakeVllm(accepted=())) as fake:
        result = run("--dataset", prompts, "--base-url", fake.base_url)
    assert_one_line(result, "prompts.jsonl: the server verified no draft for 0 tokens of 4 prompts")


@pytest.mark.parametrize("keeps_time", [False, True])
def test_counters_that_were_reset(keeps_time: bool, run: Run, prompts: Path) -> None:
    """Whether they are smaller now, or larger again but counted from another moment."""
    fake = FakeVllm()

    def restart(index: int) -> None:
        if index == 3:
            fake.earlier += -10 if keeps_time else 10
            fake.created += 0 if keeps_time else 60

    fake.answer = restart
    with serving(fake):
        result = run("--dataset", prompts, "--base-url", fake.base_url)
    assert_one_line(result, "the server's counters were reset during the run")


REFUSALS = {
    "of vLLM": (
        400, b'{"error": {"message": "you must provide\\na chat template"}}',
        "answered 400 (you must provide a chat template)",
    ),
    "plain": (503, b"<html>\nno worker</html>", "answered 503 (<html> no worker</html>)"),
    "silent": (500, b"", "answered 500 (Internal Server Error)"),
    "no json": (200, b"hello", "expected JSON, got b'hello'"),
    "no usage": (200, b'{"usage": null}', "the answer has no usage.completion_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_prompt_that_fails_ends_it(name: str, run: Run, prompts: Path) -> None:
    status, content, message = REFUSALS[name]
    fake = FakeVllm(answer=lambda index: (status, content) if index == 1 else None)
    with serving(fake):
        result = run("--dataset", prompts, "--base-url", fake.base_url, "--concurrency", 1)
    assert_one_line(result, f"prompt 1: {fake.base_url}/v1/chat/completions: {message}")


def test_after_a_failure_no_more_prompts_are_sent(run: Run, prompts: Path) -> None:
    write_lines(prompts, [{"prompt": "p"}] * 20)
    fake = FakeVllm(answer=lambda index: (400, b"") if index == 1 else None)
    with serving(fake):
        run("--dataset", prompts, "--base-url", fake.base_url, "--concurrency", 2)
        time.sleep(0.3)  # a request takes 0.05 s
    assert len(fake.requests) <= 4


def test_messages_are_no_plain_completion(run: Run, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "m.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    with serving(FakeVllm()) as fake:
        result = run("--dataset", file, "--base-url", fake.base_url, "--endpoint", "completions")
    assert_one_line(result, "a dataset of messages needs --endpoint chat")


def test_a_plot_that_cannot_be_written_is_found_first(
    run: Run, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    for file, message in (
        ("a.txt", "--plot: expected a file that ends in ."),
        ("nowhere/a.png", "nowhere is no folder"),
    ):
        assert_one_line(run("--dataset", prompts, "--plot", file), message)
    monkeypatch.setattr(report, "find_spec", lambda _: None)
    result = run("--dataset", prompts, "--plot", "a.png")
    assert_one_line(result, "--plot needs matplotlib: pip install 'p_eagle_cuda[plot]'")
