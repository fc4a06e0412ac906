"""`python -m amd_lightning.push` against a stub of the hub; no network."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from amd_lightning.errors import HubUnreachableError, UserError
from amd_lightning.push import FILES, main, model_folder, push


class Stub:
    """Notes what is asked of it, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[Any] = []

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        self.calls.append(("create_repo", repo_id, private, exist_ok))
        if self.error:
            raise self.error

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> str:
        self.calls.append(("upload_folder", repo_id, folder_path, allow_patterns))
        return "done"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, file in (("student", "config.json"), ("student_adapters", "adapter_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    return tmp_path


def test_the_students_files_go_up_in_one_commit(run: Path) -> None:
    hub = Stub()
    assert push(model_folder(run, adapters=False), "org/name", hub, private=True) == "org/name"
    assert hub.calls == [
        ("create_repo", "org/name", True, True),
        ("upload_folder", "org/name", run / "student", FILES),
    ]
    assert not any(Path("events.pt").match(pattern) for pattern in FILES)


def test_what_stands_for_a_model(run: Path, tmp_path: Path) -> None:
    assert model_folder(run, adapters=True) == run / "student_adapters"
    assert model_folder(run / "student", adapters=False) == run / "student"
    with pytest.raises(UserError, match=r"has no config\.json: name the folder of a finished run"):
        model_folder(tmp_path / "student_adapters", adapters=False)


def refusal(status: int) -> HfHubHTTPError:
    answer: Any = httpx.Response(status, request=httpx.Request("POST", "https://x"))
    return HfHubHTTPError("no", response=answer)


@pytest.mark.parametrize(
    "error, said, kind",
    [
        (refusal(401), "refuses org/name \\(401\\): log in with", UserError),
        (httpx.ConnectError("no route"), "does not answer \\(ConnectError\\)", HubUnreachableError),
        (ConnectionError("no route"), "does not answer", HubUnreachableError),
    ],
    ids=["refused", "no route", "no connection"],
)
def test_what_goes_wrong_is_said(error: Exception, said: str, kind: type[Exception], run: Path) -> None:
    with pytest.raises(kind, match=said):
        push(run, "org/name", Stub(error), private=False)


def test_another_error_is_ours(run: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        push(run, "org/name", Stub(ZeroDivisionError()), private=False)


def test_the_real_client_says_that_it_is_offline(run: Path) -> None:
    """HF_HUB_OFFLINE=1 stands for every test."""
    with pytest.raises(HubUnreachableError, match="unset HF_HUB_OFFLINE"):
        push(run / "student", "org/name", HfApi(), private=False)
    with pytest.raises(UserError, match="no repository's name: write ORG/NAME"):
        push(run / "student", "a/b/c", HfApi(), private=False)
    with pytest.raises(SystemExit, match="error: nothing can be uploaded in offline mode"):
        main([str(run), "--to", "org/name"])
    with pytest.raises(SystemExit, match="--to"):
        main([str(run)])
