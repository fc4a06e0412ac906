"""A small stand-in for the hub on a local port: the part of its HTTP API that `datasets` really calls.

`HubStub(files)` serves one data set, whatever id it is asked for, and records every request. `behaviour` says
how it answers: "serve", "hang" (accepts, never answers), "drip" (one byte now and then), "cut" (announces a
file's whole length, sends half of it), or an HTTP status to refuse everything with.
"""

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ERROR_CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}


class HubStub:
    """Serves `files` (path -> content) from http://127.0.0.1:PORT while the `with` block lasts."""

    def __init__(
        self, files: Mapping[str, bytes], behaviour: str | int = "serve", commit: str = COMMIT
    ) -> None:
        self.files = dict(files)
        self.behaviour = behaviour
        self.commit = commit
        self.requests: list[tuple[str, str]] = []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubStub":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(stub: HubStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr: the requests are recorded instead."""

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            stub.requests.append((self.command, path))
            if isinstance(stub.behaviour, int):
                self._refuse(stub.behaviour, ERROR_CODES.get(stub.behaviour, ""))
            elif stub.behaviour == "hang":
                stub.closing.wait(60)
            elif stub.behaviour == "drip":
                self._drip()
            elif path.startswith("/api/datasets/"):
                self._api(path)
            elif "/resolve/" in path:
                self._file(path.split("/resolve/")[1].split("/", 1))
            else:
                self._json({})

        def _api(self, path: str) -> None:
            if "/revision/" in path and not path.endswith(("/revision/main", f"/revision/{stub.commit}")):
                self._refuse(404, "RevisionNotFound")
            elif "/tree/" in path:
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                    for name, content in stub.files.items()
                ]
                self._json(entries)
            elif "/paths-info/" in path:
                self._json([])
            else:
                name = path.removeprefix("/api/datasets/").split("/revision/")[0]
                siblings = [{"rfilename": file} for file in stub.files]
                self._json({"id": name, "sha": stub.commit, "private": False, "siblings": siblings})

        def _file(self, revision_and_name: list[str]) -> None:
            content = stub.files.get(revision_and_name[1])
            if content is None:
                self._refuse(404, "EntryNotFound")
                return
            self.send_response(200)
            self.send_header("ETag", f'"{_etag(content)}"')
            self.send_header("X-Repo-Commit", stub.commit)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[: len(content) // 2] if stub.behaviour == "cut" else content)
                self.close_connection = stub.behaviour == "cut"

        def _json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", stub.commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _drip(self) -> None:
            while not stub.closing.is_set():
                try:
                    self.wfile.write(b"H")
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.2)

    return Handler


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
