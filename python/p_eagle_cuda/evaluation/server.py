"""A running vLLM server: its completions, and its counters of speculation."""

from __future__ import annotations

import http.client
import json
import queue
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import sub
from typing import Any

from p_eagle_cuda.errors import EvaluationError

# A sample of Prometheus' text format: name, labels, value.
_SAMPLE = re.compile(
    r"^vllm:(spec_decode_num_\w+|generation_tokens_total)(?:\{(.*)\})? (\S+)(?: -?\d+)?$",
    re.MULTILINE,
)
_POSITION = re.compile(r'position="(\d+)"')  # quotes in other labels are escaped


@dataclass(frozen=True)
class Counters:
    """What vLLM has counted, summed over its engines.

    Attributes:
        num_drafts: Verification steps, each of one request.
        num_draft_tokens: Drafted tokens that were verified.
        num_accepted_tokens: Those of them that were accepted.
        accepted_per_position: Accepted tokens at each position of a draft.
        num_generated_tokens: Tokens handed out to whoever asked.
        created: When counting began, in seconds of the epoch for each engine; empty where vLLM
            does not tell.
    """

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    accepted_per_position: tuple[int, ...]
    num_generated_tokens: int
    created: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, place: str) -> Counters:
        """Read them from what `/metrics` answers.

        Args:
            text: The answer.
            place: Where it comes from, for messages.

        Raises:
            EvaluationError: A counter is missing or not a number.
        """
        totals: dict[str, int] = {}
        accepted: dict[int, int] = {}
        created = []
        for name, labels, value in _SAMPLE.findall(text):
            try:
                number = float(value)
                count = int(number)
            except (ValueError, OverflowError):
                raise EvaluationError(f"{place}: vllm:{name} is {value!r}, no count") from None
            totals[name] = totals.get(name, 0) + count
            position = _POSITION.search(labels)
            if name == "spec_decode_num_drafts_created":
                created.append(number)
            elif name == "spec_decode_num_accepted_tokens_per_pos_total" and position:
                accepted[int(position[1])] = accepted.get(int(position[1]), 0) + count

        def total(name: str) -> int:
            if f"{name}_total" not in totals:
                raise EvaluationError(
                    f"{place}: has no vllm:{name}_total, expected a vLLM server that runs with "
                    "--speculative-config and without --disable-log-stats"
                )
            return totals[f"{name}_total"]

        return cls(
            num_drafts=total("spec_decode_num_drafts"),
            num_draft_tokens=total("spec_decode_num_draft_tokens"),
            num_accepted_tokens=total("spec_decode_num_accepted_tokens"),
            accepted_per_position=tuple(count for _, count in sorted(accepted.items())),
            num_generated_tokens=total("generation_tokens"),
            created=tuple(sorted(created)),
        )

    def since(self, before: Counters) -> Counters:
        """What was counted after an earlier reading.

        Raises:
            EvaluationError: The counters began anew in between.
        """
        spent = Counters(
            self.num_drafts - before.num_drafts,
            self.num_draft_tokens - before.num_draft_tokens,
            self.num_accepted_tokens - before.num_accepted_tokens,
            tuple(map(sub, self.accepted_per_position, before.accepted_per_position)),
            self.num_generated_tokens - before.num_generated_tokens,
            self.created,
        )
        is_same = self.created == before.created and (
            len(self.accepted_per_position) == len(before.accepted_per_position)
        )
        totals = (spent.num_drafts, spent.num_draft_tokens, spent.num_accepted_tokens)
        if not is_same or min(*totals, spent.num_generated_tokens) < 0:
            raise EvaluationError(
                "the server's counters were reset during the run, as by a restart: repeat it"
            )
        return spent


class Server:
    """An OpenAI server of vLLM.

    Args:
        base_url: As `http://host:port`; `/v1` at its end is left out.
        timeout: Seconds that an answer may take.
        api_key: What the server asks for, if it does.
    """

    def __init__(self, base_url: str, timeout: float, api_key: str | None = None) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise EvaluationError(f"expected a URL as http://localhost:8000, got {base_url!r}")
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def model(self) -> str:
        """The name of the model that is served; of the first, should there be more.

        Raises:
            EvaluationError: The server cannot be reached, or is none of OpenAI's kind.
        """
        answer = self._ask_json("/v1/models")
        try:
            return str(answer["data"][0]["id"])
        except (LookupError, TypeError):
            raise EvaluationError(f"{self.base_url}/v1/models: names no model") from None

    def counters(self) -> Counters:
        """What it has counted until now.

        Raises:
            EvaluationError: It cannot be reached, or does not count speculation.
        """
        return Counters.parse(
            self._ask("/metrics").decode(errors="replace"), f"{self.base_url}/metrics"
        )

    def complete(self, path: str, body: dict[str, Any]) -> int:
        """Have a prompt continued; returns how many tokens it got.

        Raises:
            EvaluationError: The server cannot be reached, or refuses.
        """
        answer = self._ask_json(path, body)
        try:
            return int(answer["usage"]["completion_tokens"])
        except (LookupError, TypeError, ValueError):
            raise EvaluationError(
                f"{self.base_url}{path}: the answer has no usage.completion_tokens"
            ) from None

    def complete_all(
        self,
        path: str,
        bodies: Sequence[dict[str, Any]],
        concurrency: int,
        on_finish: Callable[[], object] = lambda: None,
    ) -> int:
        """Have prompts continued, several at a time; returns how many tokens they got in all.

        The first failure ends it. Threads that still wait for an answer end with the process.

        Raises:
            EvaluationError: A request failed; the message tells which.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        finished: queue.SimpleQueue[tuple[int, int | EvaluationError]] = queue.SimpleQueue()
        stopped = threading.Event()
        for index in range(len(bodies)):
            waiting.put(index)

        def work() -> None:
            while not stopped.is_set():
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    finished.put((index, self.complete(path, bodies[index])))
                except EvaluationError as error:
                    finished.put((index, error))

        for _ in range(min(concurrency, len(bodies))):
            threading.Thread(target=work, daemon=True).start()
        num_tokens = 0
        try:
            for _ in bodies:
                index, outcome = finished.get()
                if isinstance(outcome, EvaluationError):
                    raise EvaluationError(f"prompt {index}: {outcome}")
                num_tokens += outcome
                on_finish()
        finally:
            stopped.set()
        return num_tokens

    def _ask_json(self, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        answer = self._ask(path, body)
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            raise EvaluationError(
                f"{self.base_url}{path}: expected JSON, got {answer[:60]!r}"
            ) from None

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        url = self.base_url + path
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(url, data, self._headers)
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            raise EvaluationError(f"{url}: answered {error.code} ({_reason(error)})") from None
        except TimeoutError:
            raise EvaluationError(f"{url}: no answer within {self._timeout:g} s") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):  # while connecting
                reason = f"no connection within {self._timeout:g} s"
            message = " ".join(str(reason).split()) or type(error).__name__
            raise EvaluationError(f"{url}: cannot be reached ({message})") from None


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says about it, in a line."""
    try:
        content = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        content = str(json.loads(content)["error"]["message"])
    return " ".join(content.split())[:300] or error.reason
