"""One process a run's directory."""

import multiprocessing
import time
from pathlib import Path

import pytest

from amd_lightning.errors import UserError
from amd_lightning.running import one_run
from amd_lightning.running.resume import LOCK, held, is_held, unfinished_beside
from tests import test_run
from tests.test_resume_run import CONFIG, left_behind
from tests.test_run import MICRO, Command

command = test_run.command
FORK = multiprocessing.get_context("fork")


def hold(folder: Path) -> None:
    with held(folder):
        (folder / "held").touch()
        time.sleep(60)


def test_a_directory_is_one_processs_until_that_is_killed(tmp_path: Path) -> None:
    worker = FORK.Process(target=hold, args=(tmp_path,))
    worker.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    assert is_held(tmp_path)
    with pytest.raises(UserError, match=f"^another process runs in {tmp_path}: wait for it"), held(tmp_path):
        pass
    worker.kill()
    worker.join()
    assert not is_held(tmp_path)
    with held(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_processes_of_one_run_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with held(tmp_path):
            pass


def test_a_run_that_is_refused_its_directory_writes_nothing(command: Command) -> None:
    folder = Path("taken")
    folder.mkdir()
    with held(folder.absolute()):
        found = command(f"{MICRO} hydra.run.dir=taken")
    assert found.status == 1
    assert found.error == f"another process runs in {folder.absolute()}: " + (
        "wait for it, end it, or choose another hydra.run.dir"
    )
    assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_run_that_was_refused_for_itself_leaves_no_lock(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise UserError("no")

    monkeypatch.setattr(one_run, "_run", refuse)
    assert command(f"{MICRO} hydra.run.dir=taken").error == "no"
    assert not Path("taken").exists()
    Path("mine").mkdir()
    Path("mine/notes").touch()
    assert command(f"{MICRO} hydra.run.dir=mine").error == "no"
    assert [path.name for path in Path("mine").iterdir()] == ["notes"]


def test_a_run_that_cannot_write_its_log_leaves_no_lock(command: Command) -> None:
    Path("mine/run.log").mkdir(parents=True)
    assert command(f"{MICRO} hydra.run.dir=mine").error.startswith("the run's directory cannot be used")
    assert [path.name for path in Path("mine").iterdir()] == ["run.log"]


def test_a_run_beside_that_is_under_way_is_not_told_of(tmp_path: Path) -> None:
    beside = left_behind(tmp_path / "01")
    with held(beside):
        assert unfinished_beside(tmp_path / "02", CONFIG) is None
    assert unfinished_beside(tmp_path / "02", CONFIG) == beside
