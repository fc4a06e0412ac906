"""Rows from files, and from a hub that works, refuses, or isn't there: a local server stands in for it.

The libraries read HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when they are imported. `TestEnvironment` sets them
for processes of its own; the other tests spare themselves the imports and set what the libraries made of
them.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from amd_lightning.data import sources
from amd_lightning.data.examples import Split
from amd_lightning.data.sources import hub_reachable, read_files, read_hub
from amd_lightning.errors import DataError, HubUnreachableError
from tests.data.hub_stub import COMMIT, HubStub

COLUMNS = ("id", "text")
HUB_ID = "someone/small-set"
OTHER_COMMIT = "f" * 40
INSTEAD = "data.source=files data.path=DIR"
DEMO = "scale=demo data.source=embedded"


def table(rows: int) -> bytes:
    """A CSV file as the hub's: quoted cells with line ends in them."""
    lines = [f'{number},"row {number}\r\nends"' for number in range(rows)]
    return "\r\n".join(["id,text", *lines, ""]).encode()


HUB_FILES = {
    "README.md": b"---\nlicense: other\n---\n",
    "train.csv": table(4),
    "validation.csv": table(3),
    "test.csv": table(2),
}


class TestReadFiles:
    ROWS = ({"id": "1", "text": "one,\ntwo"}, {"id": "2", "text": "NA"}, {"id": "x-3", "text": ""})

    @pytest.mark.parametrize("extension", ["jsonl", "json", "csv", "parquet"])
    def test_every_format_gives_the_same_rows(
        self,
        tmp_path: Path,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
        extension: str,
    ) -> None:
        cache = tmp_path_factory.mktemp("cache")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
        file = tmp_path / f"train.{extension}"
        source = datasets.Dataset.from_list(list(self.ROWS))
        if extension == "csv":
            source.to_csv(file)
        elif extension == "parquet":
            source.to_parquet(file)
        else:
            source.to_json(file, lines=extension == "jsonl")
        assert read_files(tmp_path, "train", COLUMNS) == list(self.ROWS)
        assert [path.name for path in tmp_path.iterdir()] == [file.name], "nothing is written there"
        assert list(cache.iterdir()) == [], "nor kept in the users' cache"

    @pytest.mark.parametrize("name", ["valid", "validation", "dev"])
    def test_names_of_the_valid_split(self, tmp_path: Path, name: str) -> None:
        write_rows(tmp_path / f"{name}.jsonl", self.ROWS)
        assert read_files(tmp_path, "valid", COLUMNS) == list(self.ROWS)

    def test_ids_stay_text_when_a_later_chunk_has_letters(self, tmp_path: Path) -> None:
        lines = [f"{number},x" for number in range(10_001)]
        (tmp_path / "train.csv").write_text("\n".join(["id,text", *lines, "007-1,x"]))
        rows = read_files(tmp_path, "train", COLUMNS)
        assert (rows[0]["id"], rows[-1]["id"]) == ("0", "007-1")

    def test_a_changed_file_is_read_anew(self, tmp_path: Path) -> None:
        file = tmp_path / "train.jsonl"
        write_rows(file, [{"id": "1", "text": "old"}])
        before = file.stat()
        assert read_files(tmp_path, "train", COLUMNS)[0]["text"] == "old"
        write_rows(file, [{"id": "1", "text": "new"}])
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time
        assert read_files(tmp_path, "train", COLUMNS)[0]["text"] == "new"

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=f"{tmp_path}/none does not exist.*train.jsonl.*{DEMO}"):
            read_files(tmp_path / "none", "train", COLUMNS)

    def test_a_file_for_a_directory(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "train.jsonl", self.ROWS)
        with pytest.raises(DataError, match="is a file, not a directory"):
            read_files(tmp_path / "train.jsonl", "train", COLUMNS)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "train.jsonl", self.ROWS)
        looked_for = r"no valid split in .*valid\.jsonl.*dev\.parquet.*data\.path=DIR"
        with pytest.raises(DataError, match=looked_for):
            read_files(tmp_path, "valid", COLUMNS)

    def test_two_files_for_one_split(self, tmp_path: Path) -> None:
        for name in ("valid.jsonl", "dev.csv"):
            write_rows(tmp_path / name, self.ROWS)
        with pytest.raises(DataError, match=r"several files for the valid split \(valid\.jsonl, dev\.csv\)"):
            read_files(tmp_path, "valid", COLUMNS)

    def test_a_missing_column(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "test.jsonl", self.ROWS)
        with pytest.raises(DataError, match=r"test\.jsonl has no column summary: it has id, text"):
            read_files(tmp_path, "test", ("id", "summary"))

    @pytest.mark.parametrize(
        "name, content",
        [("test.jsonl", ""), ("test.csv", ""), ("test.csv", "id,text\n"), ("test.json", "[]")],
    )
    def test_an_empty_split(self, tmp_path: Path, name: str, content: str) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=f"{name} has no rows"):
            read_files(tmp_path, "test", COLUMNS)

    @pytest.mark.parametrize(
        "name, content",
        [
            ("test.jsonl", b'{"id": "1", "text": "a"}\n{"id": "2", "te'),
            ("test.json", b'[{"id": "1", "text": "a"}, {"id": "2", "te'),
            ("test.csv", b'id,text\n1,a\n2,"b'),
            ("test.csv", b"id,text\n1,a\n2,b,c,d\n"),
            ("test.csv", b"id,text\n1,\xff\n"),
            ("test.jsonl", b'{"id": "1", "text": "\xff"}\n'),
            ("test.parquet", b"PAR1 and then no more"),
        ],
        ids=["jsonl", "json", "csv", "csv row", "csv bytes", "jsonl bytes", "parquet"],
    )
    def test_a_broken_file_is_named(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{tmp_path / name} cannot be read"):
            read_files(tmp_path, "test", COLUMNS)
        assert capfd.readouterr() == ("", ""), "the error says it all"


def write_rows(file: Path, rows: Any) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests' own offline mode off, empty caches, and no proxy between us and the stub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()  # it read the proxies when it was opened
    sources._hub_splits.cache_clear()


def read(endpoint: str, split: Split = "valid", **options: Any) -> list[dict[str, Any]]:
    """`read_hub` with HF_ENDPOINT=endpoint, as in a new process."""
    sources._hub_splits.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_ENDPOINT", endpoint)
        return read_hub(HUB_ID, split, options.pop("columns", COLUMNS), **options)


@pytest.fixture(scope="module")
def refused() -> str:
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.usefixtures("online")
class TestReadHub:
    def test_a_working_hub(self) -> None:
        with HubStub(HUB_FILES) as hub:
            rows = read(hub.endpoint)
        assert [row["id"] for row in rows] == [0, 1, 2]
        assert rows[0]["text"] == "row 0\r\nends"
        # One request is the client's own: which coding agents there are.
        asked = [path for _, path in hub.requests if path != "/api/agent-harnesses"]
        assert asked[0] == f"/api/datasets/{HUB_ID}/revision/main"
        assert all(COMMIT in path for path in asked[1:]), (
            "one commit, whatever happens to the branch meanwhile"
        )
        assert {f"/datasets/{HUB_ID}/resolve/{COMMIT}/{name}" for name in HUB_FILES} <= set(asked)

    def test_all_splits_of_a_run_are_of_one_commit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with HubStub(HUB_FILES) as hub:
            monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
            assert len(read_hub(HUB_ID, "train", COLUMNS)) == 4
            asked = len(hub.requests)
            hub.commit = OTHER_COMMIT
            assert len(read_hub(HUB_ID, "test", COLUMNS)) == 2
            assert len(hub.requests) == asked

    @pytest.mark.parametrize(
        "behaviour, reason",
        [("hang", "no answer within 1 s"), ("drip", "no answer within 1 s"), (503, "answers 503")],
    )
    def test_a_hub_that_does_not_answer(
        self, monkeypatch: pytest.MonkeyPatch, behaviour: str | int, reason: str
    ) -> None:
        monkeypatch.setattr(sources, "PROBE_SECONDS", 1.0)
        start = time.monotonic()
        with HubStub(HUB_FILES, behaviour) as hub, pytest.raises(HubUnreachableError) as caught:
            read(hub.endpoint)
        assert time.monotonic() - start < 8
        assert_helpful(caught.value, f"the hub cannot be reached for data set {HUB_ID}", reason)

    def test_a_hub_that_is_not_there(self, refused: str) -> None:
        for endpoint in (refused, "http://no-such-hub.invalid"):
            with pytest.raises(HubUnreachableError) as caught:
                read(endpoint)
            assert_helpful(caught.value, f"({endpoint}: ConnectError", "no cached copy of revision main")

    @pytest.mark.parametrize(
        "seconds, reachable", [(600.0, False), (0.3, True)], ids=["hub gone", "too slow"]
    )
    def test_a_download_that_stands_still(
        self, monkeypatch: pytest.MonkeyPatch, seconds: float, reachable: bool
    ) -> None:
        ended = threading.Event()
        monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: ended.wait(60))
        monkeypatch.setattr(sources, "PROBE_SECONDS", 0.2)
        monkeypatch.setattr(sources, "DOWNLOAD_SECONDS", seconds)
        monkeypatch.setattr(sources, "_commit", lambda *_: COMMIT)
        monkeypatch.setattr(sources, "hub_reachable", lambda: reachable)
        start = time.monotonic()
        with pytest.raises(HubUnreachableError) as caught:
            read("http://no-such-hub.invalid")
        ended.set()
        assert 0.3 < time.monotonic() - start < 5
        assert_helpful(caught.value, "stopped answering")

    def test_a_download_that_breaks_off(self) -> None:
        with HubStub(HUB_FILES, "cut") as hub, pytest.raises(HubUnreachableError) as caught:
            read(hub.endpoint)
        assert_helpful(caught.value, "peer closed connection")

    def test_a_cached_copy_stands_in(self, refused: str, caplog: pytest.LogCaptureFixture) -> None:
        with HubStub(HUB_FILES) as hub:
            rows = read(hub.endpoint)
        for revision in ("main", COMMIT):
            caplog.clear()
            assert read(refused, revision=revision) == rows
            assert len(caplog.messages) == 1, "only ours, not those of the library"
            assert f"using the cached copy of commit {COMMIT}" in caplog.text
        with pytest.raises(HubUnreachableError) as caught:
            read(refused, revision=OTHER_COMMIT)
        assert_helpful(caught.value, f"no cached copy of revision {OTHER_COMMIT}")

    def test_a_newer_commit_replaces_the_cached_copy(self) -> None:
        with HubStub(HUB_FILES) as hub:
            assert len(read(hub.endpoint)) == 3
        with HubStub(HUB_FILES | {"validation.csv": table(5)}, commit=OTHER_COMMIT) as hub:
            assert len(read(hub.endpoint)) == 5

    @pytest.mark.parametrize(
        "status, reason",
        [
            (401, "it does not exist, or it is private or gated and HF_TOKEN gives no access"),
            (403, "it does not exist, or it is private or gated and HF_TOKEN gives no access"),
            (404, "there is none of this name"),
        ],
    )
    def test_a_refusal(self, status: int, reason: str) -> None:
        with HubStub(HUB_FILES, status) as hub, pytest.raises(DataError) as caught:
            read(hub.endpoint)
        assert_helpful(caught.value, f"{hub.endpoint} refuses data set {HUB_ID} ({status}): {reason}")

    def test_an_unknown_revision(self) -> None:
        with HubStub(HUB_FILES) as hub, pytest.raises(DataError) as caught:
            read(hub.endpoint, revision="nowhere")
        assert_helpful(caught.value, "(404): it has no revision 'nowhere'")

    def test_a_missing_column(self) -> None:
        with HubStub(HUB_FILES) as hub:
            problem = f"data set {HUB_ID}, split test has no column summary: it has id, text"
            with pytest.raises(DataError, match=problem):
                read(hub.endpoint, "test", columns=("id", "summary"))

    def test_a_broken_file(self) -> None:
        files = HUB_FILES | {"validation.csv": b'id,text\n1,"a'}
        with HubStub(files) as hub, pytest.raises(DataError) as caught:
            read(hub.endpoint)
        assert_helpful(caught.value, f"data set {HUB_ID} cannot be read from the hub (ParserError")

    def test_configurations(self) -> None:
        card = b"---\nconfigs:\n- config_name: a\n  data_files: train.csv\n---\n"
        with HubStub(HUB_FILES | {"README.md": card}) as hub:
            assert len(read(hub.endpoint, "train", config="a")) == 4
            with pytest.raises(DataError) as caught:
                read(hub.endpoint, "valid", config="a")
            assert_helpful(caught.value, f"data set {HUB_ID} has no valid split: it has train")
            with pytest.raises(DataError) as caught:
                read(hub.endpoint, "train", config="b")
            assert_helpful(caught.value, "BuilderConfig 'b' not found. Available: ['a']")


def assert_helpful(error: Exception, *parts: str) -> None:
    """One line with these parts and both ways out."""
    message = str(error)
    for part in (*parts, INSTEAD, DEMO):
        assert part in message
    assert "\n" not in message


SCRIPT = f"""
import json, logging, time
logging.basicConfig()
from amd_lightning.data import sources
start = time.monotonic()
try:
    print(json.dumps(sources.read_hub({HUB_ID!r}, "valid", {COLUMNS!r})))
except sources.HubUnreachableError as error:
    print(json.dumps(str(error)))
print(time.monotonic() - start)
"""


class TestEnvironment:
    """New processes with only environment variables set."""

    def start(self, **variables: str) -> "subprocess.Popen[str]":
        dropped = ("HF_", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**kept, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self, process: "subprocess.Popen[str]") -> tuple[Any, float, str]:
        """What `read_hub` gave, its seconds, and the log."""
        output, log = process.communicate(timeout=120)
        answer, seconds = output.splitlines()
        return json.loads(answer), float(seconds), log

    def test_endpoint_home_and_offline_mode(self, tmp_path: Path, refused: str) -> None:
        with HubStub(HUB_FILES) as hub:
            rows, _, log = self.result(self.start(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path)))
        assert [row["id"] for row in rows] == [0, 1, 2], log
        assert len(hub.requests) > 5
        offline, _, log = self.result(
            self.start(HF_ENDPOINT=refused, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
        )
        assert offline == rows
        assert f"(offline mode is on): using the cached copy of commit {COMMIT}" in log

    @pytest.mark.slow
    def test_a_hanging_hub_ends_the_process_within_twenty_seconds(self, tmp_path: Path) -> None:
        with HubStub(HUB_FILES, "hang") as hub:
            process = self.start(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path))
            message, seconds, _ = self.result(process)
        assert "no answer within 10 s" in message
        assert seconds < 15


class TestHubReachable:
    @pytest.fixture(autouse=True)
    def _online(self, online: None) -> None:
        """All of these need it."""

    @pytest.mark.parametrize(
        "behaviour, expected", [("serve", True), (401, True), (404, True), (500, False), (503, False)]
    )
    def test_answers(self, behaviour: str | int, expected: bool) -> None:
        with HubStub({}, behaviour) as hub:
            assert hub_reachable(hub.endpoint, timeout=5) is expected

    @pytest.mark.parametrize("behaviour", ["hang", "drip"])
    def test_the_time_is_wall_clock_time(self, behaviour: str) -> None:
        with HubStub({}, behaviour) as hub:
            start = time.monotonic()
            assert not hub_reachable(hub.endpoint, timeout=0.5)
            assert time.monotonic() - start < 2

    def test_nobody_there(self, refused: str) -> None:
        assert not hub_reachable(refused)
        assert not hub_reachable("http://no-such-hub.invalid")

    def test_offline_mode_asks_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with HubStub({}) as hub:
            assert not hub_reachable(hub.endpoint)
        assert hub.requests == []
