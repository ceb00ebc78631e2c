"""`p-eagle-cuda eval`: acceptance on a running vLLM server, as the model cards report it."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from p_eagle_cuda.arguments import positive_int
from p_eagle_cuda.errors import EvaluationError, PromptError
from p_eagle_cuda.evaluation.datasets import KNOWN, Dataset, Prompt, load_dataset
from p_eagle_cuda.evaluation.report import Result, check_plot, plot, table
from p_eagle_cuda.evaluation.server import Counters, Server
from p_eagle_cuda.statistics import Acceptance

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
PATIENCE = 5.0  # seconds for the last tokens to be counted

DESCRIPTION = """\
Send a dataset's prompts to a running vLLM server and read its counters of speculation before and
after: acceptance length and acceptance by position, as on the cards of the P-EAGLE models.

Datasets are local files. Of the known ones the prompts are those that `vllm bench serve` sends:
HumanEval's `prompt`, the first of MT-Bench's `turns`, GSM8K's `question`. Other files are JSON
Lines with `prompt`, a text, or `messages`, a chat. The counters are the server's, so nobody else
should use it meanwhile; a note says so if somebody did. OPENAI_API_KEY is sent if it is set.
"""


def add_command(commands: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Add it to a parser's commands."""
    parser = commands.add_parser(
        "eval",
        help="acceptance on a running vLLM server, as the model cards report it",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--dataset", nargs="+", required=True, metavar="NAME",
        help=f"{', '.join(KNOWN)} or a JSON Lines file; several are a table",
    )  # fmt: skip
    parser.add_argument("--base-url", default="http://localhost:8000", help="default: %(default)s")
    parser.add_argument("--endpoint", choices=PATHS, default="chat", help="default: %(default)s")
    parser.add_argument("--model", help="name to ask for (the first that the server names)")
    parser.add_argument("--data-dir", default=".", help="folder of the known datasets' files")
    parser.add_argument("--num-prompts", type=positive_int, help="of each dataset (all)")
    parser.add_argument(
        "--max-tokens", type=positive_int, default=2048, help="for each prompt (%(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument(
        "--concurrency", type=positive_int, default=16, help="requests at a time (%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds for a request (%(default)g)"
    )
    parser.add_argument(
        "--extra-body", default="{}", metavar="JSON",
        help="""more of a request, as '{"reasoning_effort": "low"}'""",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument(
        "--plot", metavar="FILE", help="picture of the acceptance by position; needs matplotlib"
    )


def run(options: argparse.Namespace) -> int:
    """Carry it out; returns the exit code.

    Raises:
        PEagleError: Something is wrong with an option, a dataset or the server.
    """
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        raise PromptError(
            f"--temperature must be a finite number, 0 or above, got {options.temperature}"
        )
    if not (math.isfinite(options.timeout) and options.timeout > 0):
        raise EvaluationError(f"--timeout must be a finite number above 0, got {options.timeout}")
    if options.plot is not None:
        check_plot(options.plot)
    datasets = [
        load_dataset(name, options.data_dir, options.num_prompts) for name in options.dataset
    ]
    server = Server(options.base_url, options.timeout, os.environ.get("OPENAI_API_KEY"))
    common = {
        "model": server.model() if options.model is None else options.model,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
    }
    common |= _extra_body(options.extra_body, known=common)
    results = [_evaluate(server, dataset, common, options) for dataset in datasets]
    for result in results:
        if result.note is not None:
            print(f"p-eagle-cuda: note: {result.note}", file=sys.stderr)
    if options.json:
        settings = {"endpoint": options.endpoint, "concurrency": options.concurrency, **common}
        found = [result.as_json() for result in results]
        print(json.dumps({"base_url": server.base_url, **settings, "datasets": found}))
    else:
        print(
            f"{common['model']}: at most {options.max_tokens} new tokens, temperature "
            f"{options.temperature:g}, {options.endpoint}\n\n{table(results)}"
        )
    if options.plot is not None:
        plot(results, common["model"], options.plot)
    return 0


def _extra_body(text: str, known: Iterable[str]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EvaluationError(f"--extra-body: expected a JSON object, got {text!r:.60}")
    for name in known:
        if name in value:
            option = name.replace("_", "-")
            raise EvaluationError(f"--extra-body: give {name} as --{option}")
    return value


def _evaluate(
    server: Server, dataset: Dataset, common: dict[str, Any], options: argparse.Namespace
) -> Result:
    bodies = [{**common, **_content(prompt, options.endpoint)} for prompt in dataset.prompts]
    before, start = server.counters(), time.monotonic()
    with tqdm(total=len(bodies), desc=dataset.title, unit="prompt", disable=None) as bar:
        own = server.complete_all(
            PATHS[options.endpoint], bodies, options.concurrency, on_finish=bar.update
        )
    seconds = time.monotonic() - start
    spent = _read_settled(server, before, own)
    if not spent.num_drafts:
        raise EvaluationError(
            f"{dataset.title}: the server verified no draft for {own} tokens of {len(bodies)} "
            "prompts; expected answers of two tokens and more, within the drafter's context"
        )
    return Result(
        dataset=dataset.title,
        num_prompts=len(bodies),
        acceptance=Acceptance(
            length=1 + spent.num_accepted_tokens / spent.num_drafts,
            per_position=[x / spent.num_drafts for x in spent.accepted_per_position],
            steps=spent.num_drafts,
        ),
        num_draft_tokens=spent.num_draft_tokens,
        num_accepted_tokens=spent.num_accepted_tokens,
        num_generated_tokens=spent.num_generated_tokens,
        num_own_tokens=own,
        seconds=seconds,
    )


def _content(prompt: Prompt, endpoint: str) -> dict[str, Any]:
    if endpoint == "chat":
        is_text = isinstance(prompt, str)
        return {"messages": [{"role": "user", "content": prompt}] if is_text else prompt}
    if not isinstance(prompt, str):
        raise EvaluationError("a dataset of messages needs --endpoint chat")
    return {"prompt": prompt}


def _read_settled(server: Server, before: Counters, num_tokens: int) -> Counters:
    """What was counted since; vLLM counts a step after it has handed out its tokens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        spent = server.counters().since(before)
        if spent.num_generated_tokens >= num_tokens or time.monotonic() > deadline:
            return spent
        time.sleep(0.05)
