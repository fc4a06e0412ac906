"""A stub of a chat-completions endpoint that does as a script says, and a run's folder to judge."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "sk-very-secret-0123456789"

Script = Callable[[int, dict[str, Any]], "Answer"]


class Answer:
    """What the stub does with one request."""

    def __init__(
        self,
        text: str = "7 8\nreasons",
        status: int = 200,
        wait: float = 0.0,
        raw: str | None = None,
        **headers: str,
    ) -> None:
        self.status, self.wait, self.headers = status, wait, headers
        message = {"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 100}}
        self.body = json.dumps(message) if raw is None else raw


class Stub:
    """A server on a free local port.

    Attributes:
        script: (number of the request from 0, its body) -> what to answer.
        seen: bodies and headers of all requests.
    """

    def __init__(self) -> None:
        self.script: Script = lambda number, body: Answer()
        self.seen: list[tuple[dict[str, Any], dict[str, str]]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                number = len(stub.seen)
                stub.seen.append((body | {"path": self.path}, dict(self.headers)))
                answer = stub.script(number, body)
                time.sleep(answer.wait)
                try:
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.send_header("Content-Length", str(len(answer.body.encode())))
                    self.end_headers()
                    self.wfile.write(answer.body.encode())
                except OSError:
                    pass  # the client has gone: it was to time out

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=lambda: self.server.serve_forever(poll_interval=0.02), daemon=True).start()


@pytest.fixture
def stub() -> Iterator[Stub]:
    found = Stub()
    yield found
    found.server.shutdown()
    found.server.server_close()


def write_run(folder: Path, responses: list[str], prompt: str = "Dialogue {}") -> Path:
    """A folder with predictions.jsonl: the best response and two draws to every prompt, of two models."""
    folder.mkdir(parents=True)
    rows = [
        {
            "who": who,
            "id": f"e{place}",
            "kind": kind,
            "prompt": prompt.format(place),
            "references": [f"gold {place}", "another wording"],
            "response": text if who == "student" and kind == "greedy" else f"{who} {kind} {draw} {place}",
        }
        for who in ("teacher", "student")
        for kind, draws in (("greedy", 1), ("sampled", 2))
        for draw in range(draws)
        for place, text in enumerate(responses)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "results.json").write_text(json.dumps({"task": "samsum"}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", ["good text", "bad text", "good text again"])
