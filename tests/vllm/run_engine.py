"""Serve requests with the real vLLM engine in this process, and tell what it drafted.

    python run_engine.py CASE.json RESULT.json

The case: `engine`, arguments of `vllm.LLM`; `batches`, each a list of {"prompt": token ids,
"sampling": arguments of SamplingParams, "abort_after": engine steps}. The result: token ids of each
request, the drafts of each step, and vLLM's counters.
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

    drafts = _record_drafts()
    llm = LLM(**case["engine"], disable_log_stats=False)
    outputs = [_serve(llm, batch) for batch in case["batches"]]
    counters = {
        metric.name.removeprefix("vllm:spec_decode_"): getattr(metric, "value", None)
        or getattr(metric, "values", None)
        for metric in llm.get_metrics()
        if "spec_decode" in metric.name
    }
    result = {"outputs": outputs, "drafts": drafts, "counters": counters}
    Path(result_path).write_text(json.dumps(result))


def _record_drafts() -> list[Any]:
    """Wrap whatever drafts in this process."""
    drafts: list[Any] = []

    def wrap(owner: Any) -> None:
        propose = owner.propose

        def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = propose(self, *args, **kwargs)
            if not kwargs.get("dummy_run"):
                drafts.append(result.tolist())
            return result

        owner.propose = recording

    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from vllm.v1.spec_decode import eagle

    wrap(eagle.EagleProposer)
    if "--v2" in sys.argv:
        from p_eagle_cuda.vllm_plugin.speculator import PEagleSpeculator

        wrap(PEagleSpeculator)
    return drafts


def _serve(llm: Any, batch: list[dict[str, Any]]) -> list[list[int] | None]:
    """Token ids of each request; None of one that was aborted."""
    from vllm.inputs import TokensPrompt

    from vllm import SamplingParams

    engine = llm.llm_engine
    done: dict[str, list[int]] = {}
    for i, request in enumerate(batch):
        sampling = SamplingParams(ignore_eos=True, detokenize=False, **request["sampling"])
        engine.add_request(str(i), TokensPrompt(prompt_token_ids=request["prompt"]), sampling)
    step = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                done[output.request_id] = list(output.outputs[0].token_ids)
        step += 1
        aborted = [str(i) for i, request in enumerate(batch) if request.get("abort_after") == step]
        if aborted:
            engine.abort_request(aborted)
            for name in aborted:
                done.pop(name, None)
    return [done.get(str(i)) for i in range(len(batch))]


if __name__ == "__main__":
    main(*sys.argv[1:3])
