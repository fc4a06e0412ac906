"""A small stand-in for the hub on a local port: the part of its HTTP API that `datasets` really calls.

`HubStub(files)` serves one data set from one branch, whatever id it is asked for, and records every request.
`behaviour` says how it answers: "serve", "hang" (accepts, never answers), "drip" (one byte now and then),
"slow" (a file comes in small pieces), "cut" (announces a file's whole length, sends half of it), or an HTTP
status to refuse everything with.
"""

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ERROR_CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}


class HubStub:
    """Serves `files` (path -> content) from http://127.0.0.1:PORT while the `with` block lasts."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        behaviour: str | int = "serve",
        commit: str = COMMIT,
        branch: str = "main",
    ) -> None:
        self.files = dict(files)
        self.behaviour = behaviour
        self.commit = commit
        self.branch = branch
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
            self.query = parse_qs(urlsplit(self.path).query)
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
            if "/revision/" in path and not path.endswith(
                (f"/revision/{stub.branch}", f"/revision/{stub.commit}")
            ):
                self._refuse(404, "RevisionNotFound")
            elif "/tree/" in path:
                self._tree(path.split("/tree/")[1].partition("/")[2].strip("/"))
            elif "/paths-info/" in path:
                self._json([])
            else:
                name = path.removeprefix("/api/datasets/").split("/revision/")[0]
                siblings = [{"rfilename": file} for file in stub.files]
                self._json({"id": name, "sha": stub.commit, "private": False, "siblings": siblings})

        def _tree(self, folder: str) -> None:
            """The files and folders in a folder, and all below it where the query says so."""
            below = f"{folder}/" if folder else ""
            recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries: dict[str, dict[str, object]] = {}
            for name, content in stub.files.items():
                if name.startswith(below):
                    parts = name.removeprefix(below).split("/")
                    for depth in range(1, len(parts)):
                        inner = below + "/".join(parts[:depth])
                        if recursive or depth == 1:
                            entries[inner] = {"type": "directory", "path": inner, "size": 0, "oid": inner}
                    if recursive or len(parts) == 1:
                        size, oid = len(content), _etag(content)
                        entries[name] = {"type": "file", "path": name, "size": size, "oid": oid}
            if folder and not entries:
                self._refuse(404, "EntryNotFound")
            else:
                self._json(list(entries.values()))

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
                pieces = 8 if stub.behaviour == "slow" else 1
                size = -(-len(content) // pieces)
                for start in range(0, len(content), size):
                    piece = content[start : start + size]
                    self.wfile.write(piece[: len(piece) // 2] if stub.behaviour == "cut" else piece)
                    self.wfile.flush()
                    time.sleep(0.05 * (pieces - 1))
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
