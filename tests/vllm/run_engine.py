"""Serve requests with the real vLLM engine in this process, and tell what it drafted.

    python run_engine.py CASE.json RESULT.json

The case: `engine`, arguments of `vllm.LLM`; `batches`, each a list of {"prompt": token ids,
"sampling": arguments of SamplingParams, "join_after" and "abort_after": engine steps}. The result:
token ids of each request, those that the aborted ones had, logprobs of the tokens where they were
asked for, what each worker recorded (the drafts of each step, what is launched in steps of decoding
beside our drafter's pass, each kind once, and how often our kernels verified), and vLLM's counters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(case_path: str, result_path: str) -> None:
    """Run a case."""
    case = json.loads(Path(case_path).read_text())
    from vllm import LLM

    llm = LLM(
        **case["engine"], disable_log_stats=False, worker_extension_cls="worker_recorder.Recorder"
    )
    aborted: list[list[int]] = []
    logprobs: list[list[list[float] | None]] = []
    outputs = [_serve(llm, batch, aborted, logprobs) for batch in case["batches"]]
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    counters = {
        metric.name.removeprefix("vllm:spec_decode_"): getattr(metric, "value", None)
        or getattr(metric, "values", None)
        for metric in metrics.values()
        if "spec_decode" in metric.name
    }
    result = {
        "outputs": outputs, "aborted": aborted, "logprobs": logprobs,
        "of_ranks": llm.collective_rpc("recorded"), "counters": counters,
        "num_preemptions": metrics["vllm:num_preemptions"].value,
    }  # fmt: skip
    Path(result_path).write_text(json.dumps(result))


def _serve(
    llm: Any,
    batch: list[dict[str, Any]],
    aborted: list[list[int]],
    logprobs: list[list[list[float] | None]],
) -> list[list[int] | None]:
    """Token ids of each request; None of one that was aborted, whose tokens are put aside."""
    from vllm.inputs import TokensPrompt

    from vllm import SamplingParams

    engine = llm.llm_engine
    so_far: list[list[int]] = [[] for _ in batch]
    logprobs.append([None for _ in batch])
    to_abort = {
        i: request["abort_after"] for i, request in enumerate(batch) if "abort_after" in request
    }
    to_join = {i: request.get("join_after", 0) for i, request in enumerate(batch)}
    step = 0
    while to_join or engine.has_unfinished_requests():
        for i in [i for i, at in to_join.items() if at <= step]:
            del to_join[i]
            sampling = SamplingParams(ignore_eos=True, detokenize=False, **batch[i]["sampling"])
            prompt = TokensPrompt(prompt_token_ids=batch[i]["prompt"])
            engine.add_request(str(i), prompt, sampling)
        for output in engine.step():
            index, found = int(output.request_id), output.outputs[0]
            so_far[index] = list(found.token_ids)
            if found.logprobs is not None:
                logprobs[-1][index] = [
                    of_token[token].logprob
                    for token, of_token in zip(found.token_ids, found.logprobs, strict=True)
                ]
        step += 1
        now = [i for i, at in to_abort.items() if at == step]
        engine.abort_request([str(i) for i in now])
        aborted += [so_far[i] for i in now]
    return [None if i in to_abort else tokens for i, tokens in enumerate(so_far)]


if __name__ == "__main__":
    main(*sys.argv[1:3])
