"""The command line: `p-eagle-cuda generate`, `eval`, `plan` and `info`.

A user's error is one line on standard error and exit code 2; an output that differs from that of
the target alone is exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

import p_eagle_cuda
from p_eagle_cuda import ops
from p_eagle_cuda.arguments import OneLineParser
from p_eagle_cuda.bundled import bundled_drafter, bundled_target
from p_eagle_cuda.draft_tree import TREE_KINDS
from p_eagle_cuda.errors import PEagleError, PromptError
from p_eagle_cuda.evaluation import command as evaluation
from p_eagle_cuda.generation import (
    DEFAULT_NODES,
    Generator,
    Report,
    check_k,
    check_tree,
    num_runs,
)
from p_eagle_cuda.linear_table import LinearTable, format_paths, linear_paths
from p_eagle_cuda.planning import command as planning
from p_eagle_cuda.precision import KV_DTYPES, WEIGHT_PRECISIONS
from p_eagle_cuda.text import TextStream, read_prompts

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except PEagleError as error:
        print(f"p-eagle-cuda: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left
        sys.stderr.close()
        return 1
    except OSError as error:
        print(f"p-eagle-cuda: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\np-eagle-cuda: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="p-eagle-cuda", description=p_eagle_cuda.__doc__)
    parser.add_argument(
        "--version", action="version", version=f"p_eagle_cuda {p_eagle_cuda.__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser(
        "generate",
        help="continue a prompt with and without speculation, and compare",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    generate.set_defaults(run=_generate)
    generate.add_argument("prompt", nargs="?", help="text to continue")
    generate.add_argument(
        "--prompts", metavar="FILE", help='JSON Lines of {"prompt": "..."}, run as a batch'
    )
    generate.add_argument("--target", help="model folder (bundled pair's target if not given)")
    generate.add_argument("--drafter", help="drafter folder (bundled pair's drafter if not given)")
    generate.add_argument("--k", type=int, default=5, help="tokens drafted in each step")
    generate.add_argument(
        "--dynamic-k",
        action="store_true",
        help="draft fewer tokens where that pays, by batch size and recent acceptance",
    )
    generate.add_argument(
        "--tree",
        choices=TREE_KINDS,
        default="chain",
        help="what is drafted: a tree is compared with the chain; static is the best shape for the "
        "chain's drafts, dynamic the likeliest nodes",
    )
    generate.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="most nodes verified in a step, the last known token included: 2 to 64, of a chain "
        f"to K + 1 (if not given: {DEFAULT_NODES}, of a chain K + 1)",
    )
    generate.add_argument("--max-tokens", type=int, default=200, help="most new tokens per prompt")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    generate.add_argument("--seed", type=int, default=0, help="of the random numbers")
    generate.add_argument("--batch-size", type=int, default=8, help="prompts in flight at a time")
    generate.add_argument("--dtype", choices=_DTYPES, default="float32", help="working dtype")
    generate.add_argument(
        "--weights", choices=WEIGHT_PRECISIONS, default="auto", help="precision of the drafter's"
    )
    generate.add_argument(
        "--kv-dtype", choices=KV_DTYPES, default="auto", help="of the drafter's keys and values"
    )
    generate.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both models")
    generate.add_argument("--json", action="store_true", help="print one JSON object, no text")

    evaluation.add_command(commands)
    planning.add_command(commands)

    info = commands.add_parser("info", help="versions, device, architectures, implementations")
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _generate(options: argparse.Namespace) -> int:
    texts = _prompts(options)
    for name, value in (("max-tokens", options.max_tokens), ("batch-size", options.batch_size)):
        if value < 1:
            raise PromptError(f"--{name} must be at least 1, got {value}")
    if not 0 <= options.temperature < float("inf"):
        raise PromptError(
            f"--temperature must be a finite number, 0 or above, got {options.temperature}"
        )
    check_k(options.k)
    check_tree(options.tree, options.nodes, options.k, options.dynamic_k)
    if (options.target is None) != (options.drafter is None):
        raise PromptError("--target and --drafter go together: a drafter is trained for one target")
    generator = Generator(
        bundled_target() if options.target is None else options.target,
        bundled_drafter() if options.drafter is None else options.drafter,
        num_speculative_tokens=options.k,
        dtype=_DTYPES[options.dtype],
        device=options.device,
        weights=options.weights,
        kv_dtype=options.kv_dtype,
    )
    for note in generator.notes:
        print(f"p-eagle-cuda: note: {note}", file=sys.stderr)
    prompts = generator.encode(texts, options.max_tokens)
    sampling = {
        "temperature": options.temperature,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "dynamic_k": options.dynamic_k,
        "tree": options.tree,
        "num_nodes": options.nodes,
    }
    if options.prompts is None and not options.json:
        report = _run_streaming(generator, texts[0], prompts, options.max_tokens, sampling)
    else:
        total = num_runs(options.tree) * len(prompts)
        with tqdm(total=total, unit="prompt", disable=len(prompts) == 1) as bar:

            def advance(_: int) -> None:
                bar.update()

            report = generator.run(prompts, options.max_tokens, on_finish=advance, **sampling)
    if options.json:
        print(json.dumps(report.as_json()))
    else:
        if options.prompts is not None:
            for text, continuation in zip(texts, report.texts, strict=True):
                print(f"{text}{continuation}\n")
        _print_report(report, options.k, options.temperature)
    return 0 if report.lossless else 1


def _prompts(options: argparse.Namespace) -> list[str]:
    if (options.prompt is None) == (options.prompts is None):
        raise PromptError("expected a prompt or --prompts FILE, and not both")
    if options.prompts is not None:
        return read_prompts(options.prompts)
    return [options.prompt]


def _run_streaming(
    generator: Generator,
    text: str,
    prompts: list[list[int]],
    max_tokens: int,
    sampling: dict[str, Any],
) -> Report:
    stream = TextStream(generator.tokenizer)
    print(text, end="", flush=True)
    report = generator.run(
        prompts,
        max_tokens,
        on_tokens=lambda _, tokens: print(stream.add(tokens), end="", flush=True),
        **sampling,
    )
    print(stream.finish() + "\n")
    return report


def _print_report(report: Report, k: int, temperature: float) -> None:
    overall, early = report.acceptance, report.acceptance_not_looping
    tokens = sum(map(len, report.outputs))
    if overall.length is None:
        print("acceptance length  no draft was verified")
    else:
        looping = ""
        if early.length is not None and early.steps < overall.steps:
            looping = f" ({early.length:.2f} before the text loops)"
        positions = " ".join(f"{share:.2f}" for share in overall.per_position)
        print(f"acceptance length  {overall.length:.2f} tokens per step at K = {k}{looping}")
        print(f"per position       {positions}")
        of = {"static": "static tree, shaped by the chain's run", "dynamic": "dynamic tree"}
        print(f"nodes per step     {report.nodes_per_step:.1f} ({of.get(report.tree, 'chain')})")
    if report.break_even is not None:
        print(
            f"the chain's        {report.chain_acceptance_length:.2f} tokens per step with "
            f"{k + 1} nodes"
        )
        print(
            f"break-even         {report.break_even:.2f} times the cost of verifying the chain; "
            "dearer, and the tree is slower"
        )
    print(f"target steps       {report.target_steps} for {tokens} tokens")
    print(
        f"tokens per second  {report.tokens_per_s:.1f} with speculation, "
        f"{report.tokens_per_s_plain:.1f} without"
    )
    plain = "greedy decoding" if temperature == 0 else "sampling with the same seed"
    if report.first_difference is None:
        print(f"lossless           yes, equal to plain {plain} token for token")
    else:
        prompt, token = report.first_difference
        print(f"lossless           NO, prompt {prompt} differs from plain {plain} at token {token}")


def _info(options: argparse.Namespace) -> int:
    from p_eagle_cuda import _C

    has_cuda = torch.cuda.is_available()
    information = {
        "version": p_eagle_cuda.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if has_cuda else "cpu",
        "architectures": list(_C.cuda_archs),
        "cuda": _C.cuda_version,
        "cutlass": _C.cutlass_version,
        "ops": ops.implementations(),
        "linear_layers": [dataclasses.asdict(path) for path in linear_paths(LinearTable.read())],
        "bundled": {"target": str(bundled_target()), "drafter": str(bundled_drafter())},
    }
    if options.json:
        print(json.dumps(information))
        return 0
    for name in ("version", "python", "torch", "device", "cuda", "cutlass"):
        print(f"{name:14} {information[name]}")
    print(f"{'architectures':14} {', '.join(_C.cuda_archs)}")
    print(f"\n{'op':20} cpu  cuda")
    for name, has in ops.implementations().items():
        print(f"{name:20} {'yes' if has['cpu'] else 'no':4} {'yes' if has['cuda'] else 'no'}")
    print(f"\n{format_paths(linear_paths(LinearTable.read()))}")
    print(f"\nbundled target   {bundled_target()}\nbundled drafter  {bundled_drafter()}")
    return 0
