"""Tokens per second of the real vLLM with and without this package, without any checkpoint.

Target and drafter have the sizes of `--drafter` and dummy weights, and vLLM accepts drafts at the
rate that `--acceptance-length` says (its synthetic rejection sampling), whatever is drafted. So
what is measured is time: of the target, of drafting, of the engine around them. The target is dense
Llama with `--target-layers` layers; a mixture of experts of the same name is another target.

Each variant serves in a process of its own, all requests of a concurrency at a time:

* `plain`: no speculation
* `vllm`: vLLM's own P-EAGLE, this package switched off, on the V1 runner
* `v1`, `v2`: this package on either runner
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.errors import PEagleError
from shapes import DRAFTERS, DrafterShape
from timing import device_to_time, environment, write_json

VARIANTS = ("plain", "vllm", "v1", "v2")
SECONDS = 900  # for a variant
ON_A_CPU = {  # what vLLM needs there
    "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_TARGET_DEVICE": "cpu",
}  # fmt: skip
LOG_LINES = 15  # of a variant that fails


def configs(shape: DrafterShape, target_layers: int, positions: int) -> dict[str, dict[str, Any]]:
    """The config.json of a target and of a drafter for it, by name."""
    common = {
        "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": positions, "attention_bias": False,
        "mlp_bias": False, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip
    taps = [1, target_layers // 2, target_layers - 1]
    return {
        "target": {
            **common, "architectures": ["LlamaForCausalLM"], "num_hidden_layers": target_layers,
        },
        "drafter": {
            **common, "architectures": ["LlamaForCausalLMEagle3"],
            "num_hidden_layers": shape.num_layers, "draft_vocab_size": shape.vocab_size,
            "target_hidden_size": shape.hidden_size, "ptd_token_id": shape.vocab_size - 1,
            "norm_before_residual": False, "eagle_aux_hidden_state_layer_ids": taps,
        },
    }  # fmt: skip


def engine_arguments(options: Namespace, folder: Path, variant: str) -> dict[str, Any]:
    """Of `vllm.LLM`, for a variant."""
    most = max(options.concurrency)
    engine: dict[str, Any] = {
        "model": str(folder / "target"), "load_format": "dummy", "skip_tokenizer_init": True,
        "dtype": "bfloat16", "max_model_len": options.input_tokens + options.output_tokens,
        "max_num_seqs": most, "enable_prefix_caching": False, "kv_cache_dtype": options.kv,
        "seed": 0,
    }  # fmt: skip
    if options.eager:
        engine["enforce_eager"] = True
    if variant != "plain":
        engine["speculative_config"] = {
            "method": "eagle3", "model": str(folder / "drafter"), "parallel_drafting": True,
            "num_speculative_tokens": options.k, "rejection_sample_method": "synthetic",
            "synthetic_acceptance_length": options.acceptance_length,
        }  # fmt: skip
        if options.weights != "auto":
            engine["additional_config"] = {"p_eagle_cuda": {"weights": options.weights}}
    return engine


def run_variant(options: Namespace, folder: Path, variant: str) -> dict[str, Any]:
    """Serve in another process; what it tells, or how it failed."""
    case, result = folder / f"{variant}.json", folder / f"{variant}-result.json"
    case.write_text(
        json.dumps({
            "engine": engine_arguments(options, folder, variant),
            "concurrency": options.concurrency, "input_tokens": options.input_tokens,
            "output_tokens": options.output_tokens, "rounds": options.rounds,
            "vocab_size": DRAFTERS[options.drafter].vocab_size,
        })
    )  # fmt: skip
    variables = {
        **os.environ,
        "P_EAGLE_CUDA_DISABLE": "1" if variant in ("plain", "vllm") else "0",
        "VLLM_USE_V2_MODEL_RUNNER": "1" if variant == "v2" else "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "HF_HUB_OFFLINE": "1",
        **(ON_A_CPU if options.dry_run else {}),
    }
    command = [sys.executable, __file__, "--serve", str(case), str(result)]
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {SECONDS} s"}
    log = (done.stdout + done.stderr).splitlines()
    if done.returncode != 0 or not result.exists():
        return {"error": f"exit {done.returncode}", "log": log[-LOG_LINES:]}
    found: dict[str, Any] = json.loads(result.read_text())
    ours = [
        line for line in log if "p_eagle_cuda" in line and ("drafts" in line or "aside" in line)
    ]
    if variant in ("v1", "v2") and not any("p_eagle_cuda drafts" in line for line in ours):
        return {"error": "this package did not draft", "log": ours or log[-LOG_LINES:]}
    return {**found, "log": ours}


def serve(case_file: Path, result_file: Path) -> None:
    """In the process of a variant: time each concurrency and write what came of it."""
    import torch
    from vllm.inputs import TokensPrompt

    from vllm import LLM, SamplingParams

    case = json.loads(case_file.read_text())
    llm = LLM(**case["engine"], disable_log_stats=False)
    sampling = SamplingParams(
        temperature=0.0, max_tokens=case["output_tokens"], ignore_eos=True, detokenize=False
    )
    g = torch.Generator().manual_seed(0)

    def counter(name: str) -> float:
        metrics = (x for x in llm.get_metrics() if x.name == f"vllm:spec_decode_{name}")
        return float(sum(x.value for x in metrics))

    rows = []
    for concurrency in case["concurrency"]:
        size = concurrency, case["input_tokens"]
        prompts = [
            TokensPrompt(prompt_token_ids=ids)
            for ids in torch.randint(1, case["vocab_size"] - 1, size, generator=g).tolist()
        ]
        llm.generate(prompts, sampling, use_tqdm=False)  # warm
        before = counter("num_drafts"), counter("num_accepted_tokens")
        seconds = []
        for _ in range(case["rounds"]):
            start = time.perf_counter()
            done = llm.generate(prompts, sampling, use_tqdm=False)
            seconds.append(time.perf_counter() - start)
            assert all(len(x.outputs[0].token_ids) == case["output_tokens"] for x in done)
        drafts, accepted = (
            counter(name) - old
            for name, old in zip(("num_drafts", "num_accepted_tokens"), before, strict=True)
        )
        tokens = concurrency * case["output_tokens"]
        rows.append({
            "concurrency": concurrency, "tokens_per_s": round(tokens / min(seconds), 1),
            "seconds": [round(x, 4) for x in seconds],
            "acceptance_length": round(1 + accepted / drafts, 3) if drafts else None,
        })  # fmt: skip
    result_file.write_text(json.dumps({"rows": rows}))


def table(report: dict[str, Any]) -> str:
    """Markdown: tokens per second by concurrency and variant."""
    names = [name for name in VARIANTS if "rows" in report["variants"].get(name, {})]
    lines = [
        "| Requests at a time | " + " | ".join(f"{x} tokens/s" for x in names) + " | v1 / vllm |",
        "|" + " --- |" * (2 + len(names)),
    ]
    for i, concurrency in enumerate(report["concurrency"]):
        rates = {name: report["variants"][name]["rows"][i]["tokens_per_s"] for name in names}
        both = {"v1", "vllm"} <= set(rates)
        ratio = f"{rates['v1'] / rates['vllm']:.2f}" if both else "-"
        cells = " | ".join(f"{rates[name]:.0f}" for name in names)
        lines.append(f"| {concurrency} | {cells} | {ratio} |")
    return "\n".join(lines)


def main() -> int:
    """Serve with every variant, print a table, write the JSON that was asked for as it grows."""
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), Path(sys.argv[3]))
        return 0
    options = _parser().parse_args()
    found = environment()
    try:
        device_to_time(dry_run=options.dry_run)
        report: dict[str, Any] = {
            **found, "drafter": options.drafter, "target_layers": options.target_layers,
            "k": options.k, "weights": options.weights, "kv": options.kv,
            "concurrency": options.concurrency, "input_tokens": options.input_tokens,
            "output_tokens": options.output_tokens, "variants": {},
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            positions = options.input_tokens + options.output_tokens + 2 * options.k
            files = configs(DRAFTERS[options.drafter], options.target_layers, positions)
            for model, config in files.items():
                (folder / model).mkdir()
                (folder / model / "config.json").write_text(json.dumps(config))
            for variant in tqdm(options.variant, unit="variant"):
                report["variants"][variant] = run_variant(options, folder, variant)
                write_json(options.json, report)
        print(table(report))
    except (PEagleError, OSError) as error:
        print(f"bench_serving: error: {error}", file=sys.stderr)
        return 2
    failed = {name: x for name, x in report["variants"].items() if "error" in x}
    for name, x in failed.items():
        print("\n".join(x.get("log", [])), file=sys.stderr)
        print(f"bench_serving: error: {name}: {x['error']}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--drafter", choices=DRAFTERS, default="gpt-oss-20b")
    parser.add_argument("--target-layers", type=positive_int, default=24)
    parser.add_argument("--variant", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    parser.add_argument("--k", type=positive_int, default=5)
    parser.add_argument("--acceptance-length", type=float, default=3.0, help="1 to K + 1")
    parser.add_argument("--weights", choices=("auto", "fp8_head", "fp8", "w8a8"), default="auto")
    parser.add_argument("--kv", choices=("auto", "fp8"), default="auto", help="of both caches")
    parser.add_argument("--concurrency", type=positive_int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--input-tokens", type=positive_int, default=1024)
    parser.add_argument("--output-tokens", type=positive_int, default=256)
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU; measures nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
