"""A server that answers as vLLM's does, in this process; what it drafts is the test's choice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What /metrics of vLLM 0.33 writes of a counter, as far as it matters.
SAMPLE = """\
# HELP vllm:{name}_total Some counter.
# TYPE vllm:{name}_total counter
vllm:{name}_total{{engine="{engine}",model_name="{model}"{more}}} {value}.0
# TYPE vllm:{name}_created gauge
vllm:{name}_created{{engine="{engine}",model_name="{model}"{more}}} {created!r}
"""


@dataclass
class FakeVllm:
    """Counters and behaviour.

    Attributes:
        accepted: Of K drafts in each step; a request takes so many steps.
        num_speculative_tokens: K.
        speculates: Whether there are counters of speculation.
        answer: What a completion does in place of its own: (status, content).
        lag: Readings of the counters that do not have the last completion yet.
        others: Tokens that somebody else is served during each completion.
    """

    accepted: tuple[int, ...] = (0, 2, 3)
    num_speculative_tokens: int = 3
    speculates: bool = True
    answer: Callable[[int], tuple[int, bytes] | None] = lambda _: None
    lag: int = 0
    others: int = 0
    model: str = 'a "model", with {braces},position="9"'
    created: float = 1.5e9
    requests: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    earlier: int = 7  # completions before the test
    base_url: str = ""

    def metrics(self, num_completions: int) -> str:
        """Of two engines, which take turns."""
        steps, K = len(self.accepted), self.num_speculative_tokens
        counts = {"generation_tokens": (steps + sum(self.accepted) + self.others, "")}
        if self.speculates:
            name = "spec_decode_num"
            counts[f"{name}_drafts"] = steps, ""
            counts[f"{name}_draft_tokens"] = steps * K, ""
            counts[f"{name}_accepted_tokens"] = sum(self.accepted), ""
            for k in range(K):
                counts[f"{name}_accepted_tokens_per_pos {k}"] = (
                    sum(x > k for x in self.accepted), f',position="{k}"',
                )  # fmt: skip
        model = self.model.replace("\\", "\\\\").replace('"', '\\"')
        return "".join(
            SAMPLE.format(
                name=name.split()[0], engine=engine, model=model, more=more,
                value=count * ((num_completions + engine) // 2), created=self.created,
            )
            for engine in range(2)
            for name, (count, more) in counts.items()
        )  # fmt: skip


@contextmanager
def serving(fake: FakeVllm) -> Iterator[FakeVllm]:
    """Serve on a free port of this machine."""
    lock, lagging = threading.Lock(), {"left": fake.lag}
    gate = threading.Semaphore(0)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.send(200, json.dumps({"data": [{"id": fake.model}]}).encode())
            elif self.path == "/metrics":
                done = fake.earlier + len(fake.requests)
                if fake.requests and lagging["left"]:
                    lagging["left"] -= 1
                    done -= 1
                self.send(200, fake.metrics(done).encode())
            else:
                self.send(404, b'{"detail": "Not Found"}')

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                index = len(fake.requests)
                fake.requests.append((self.path, body, self.headers["Authorization"]))
                fake.in_flight += 1
                fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
            gate.acquire(timeout=0.05)  # nobody releases it: a while for others to come
            with lock:
                fake.in_flight -= 1
            usage = {"completion_tokens": len(fake.accepted) + sum(fake.accepted)}
            self.send(*(fake.answer(index) or (200, json.dumps({"usage": usage}).encode())))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.base_url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
