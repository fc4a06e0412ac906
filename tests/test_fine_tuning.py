"""Teacher and student start: training that dies is gone on with by whoever makes the artifact next."""

import csv
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from amd_lightning.cache import Artifact, ArtifactCache
from amd_lightning.errors import CheckpointError, Interrupted, NonFiniteError
from amd_lightning.modules.base import DistillationModule
from amd_lightning.training import state as training_state
from amd_lightning.training.checkpoint_files import all_last
from amd_lightning.training.fine_tuning import METRICS, fine_tune
from amd_lightning.training.fitting import StageSpec, TrainerSpec
from tests.helpers import PAD, t5, tokenised
from tests.modules.harness import CONSTANT, module
from tests.trials import Clock, Killed, progress, same

UPDATES = 6
INPUTS = {"data": "ten rows"}
FORK = multiprocessing.get_context("fork")


def make(folder: Path, unfinished: Path, method: str = "nll", width: int = 16) -> float:
    L.seed_everything(0, verbose=False)
    teacher = module(
        method, 1.0, student=t5(1, dropout_rate=0.1, d_model=width), updates=UPDATES, log_every=2
    )
    before = fine_tune(
        teacher,
        tokenised(10),
        stage="teacher",
        spec=StageSpec(UPDATES, 4, 2, CONSTANT),
        trainer=TrainerSpec("cpu", "32-true", 2, 0, 2, "off"),
        seed=3,
        pad_id=PAD,
        folder=folder,
        unfinished=unfinished,
    )
    torch.save(teacher.student.state_dict(), folder / "weights.pt")
    return before


def artifact(root: Path, **options: Any) -> Artifact:
    """A teacher in a cache; each attempt goes on from what the one before left."""
    cache = ArtifactCache(root)
    return cache.get_or_make(
        "teacher", INPUTS, lambda folder: make(folder, cache.unfinished("teacher", INPUTS), **options)
    )


def left(found: Artifact) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    """The weights, and metrics.csv without its clocks."""
    with (found.path / METRICS).open(newline="") as file:
        rows = [
            {name: value for name, value in row.items() if not name.startswith("time/")}
            for row in csv.DictReader(file)
        ]
    return torch.load(found.path / "weights.pt", weights_only=True), rows


def unfinished(root: Path) -> Path:
    return ArtifactCache(root).unfinished("teacher", INPUTS)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("untouched")
    found = artifact(root)
    assert not unfinished(root).exists()
    weights, rows = left(found)
    assert [row["update"] for row in rows] == ["1", "2", "4", "6"]
    return weights, rows


def test_killed_anywhere_the_teacher_is_the_same(
    untouched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment at which something is written, and at some updates."""
    clock = Clock(monkeypatch)
    artifact(tmp_path / "count")
    names = list(clock.names)
    moments = {place + 1 for place, name in enumerate(names) if name in ("fsync", "replace")}
    moments |= {place + 1 for place, name in enumerate(names) if name in ("_step", "save")}
    for moment in sorted(moments)[::2]:
        root = tmp_path / str(moment)
        clock.count, clock.at = 0, moment
        with pytest.raises(Killed):
            artifact(root)
        clock.at = None
        same(left(artifact(root)), untouched, f"kill at {moment} ({names[moment - 1]})")
        assert not unfinished(root).exists()


def test_who_waited_for_a_process_that_is_killed_goes_on_where_it_was(
    untouched: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two points of a sweep that share a teacher."""
    began = tmp_path / "began"

    def die() -> None:
        own, count = DistillationModule._step, 0

        def step(self: DistillationModule, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == 5:
                began.touch()
                time.sleep(1.0)  # for the other to come
                os.kill(os.getpid(), signal.SIGKILL)
            return own(self, *arguments)

        DistillationModule._step = step  # type: ignore[assignment, method-assign]
        artifact(tmp_path / "cache")

    first = FORK.Process(target=die)
    first.start()
    while not began.exists() and first.is_alive():
        time.sleep(0.05)
    with caplog.at_level(logging.INFO, logger="amd_lightning"):
        found = artifact(tmp_path / "cache")
    first.join()
    assert first.exitcode == -signal.SIGKILL
    assert any(message.startswith("teacher: going on after update 4 of 6") for message in caplog.messages)
    same(left(found), untouched)
    assert [path.name for path in found.path.parent.iterdir() if "lock" not in path.name] == [found.key]


def test_the_time_before_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        clock = Clock(patched)
        clock.at = 20
        with pytest.raises(Killed):
            artifact(tmp_path)
    (newest, *_) = all_last(unfinished(tmp_path))
    before = training_state.remembered_in(training_state.load(newest)).seconds
    assert 0.0 < before < artifact(tmp_path).seconds


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Does something in the so-many-th step."""

    def act(what: Callable[[], None], at: int) -> None:
        own, count = DistillationModule._step, 0

        def step(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                what()
            return own(*arguments)

        monkeypatch.setattr(DistillationModule, "_step", step)

    return act


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_update_and_the_state_is_saved(
    number: int, untouched: Any, tmp_path: Path, within: Callable[..., None]
) -> None:
    within(lambda: os.kill(os.getpid(), number), at=3)
    with pytest.raises(Interrupted) as stopped:
        artifact(tmp_path)
    assert stopped.value.signum == number
    assert stopped.value.words == (
        "stopped after update 3 of 6 of the teacher; the next run that needs it goes on from there "
        f"({unfinished(tmp_path)})"
    )
    assert progress(all_last(unfinished(tmp_path))[0]) == 3
    same(left(artifact(tmp_path)), untouched)


def test_nothing_is_kept_of_a_training_that_would_come_to_the_same(
    tmp_path: Path, within: Callable[..., None]
) -> None:
    def refuse() -> None:
        raise NonFiniteError("a loss is not finite")

    within(refuse, at=5)
    with pytest.raises(NonFiniteError):
        artifact(tmp_path)
    assert not unfinished(tmp_path).exists()


def test_another_modules_state_is_refused_with_its_place(tmp_path: Path, within: Callable[..., None]) -> None:
    within(lambda: os.kill(os.getpid(), signal.SIGINT), at=3)
    with pytest.raises(Interrupted):
        artifact(tmp_path)
    with pytest.raises(CheckpointError, match=rf"of other models .*: remove {unfinished(tmp_path)}, and"):
        artifact(tmp_path, width=24)


def test_what_a_maker_goes_on_from_outlives_it_until_the_artifact_is_there(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    place = cache.unfinished("teacher", INPUTS)

    def begin(folder: Path) -> None:
        place.mkdir()
        (place / "state").touch()
        raise KeyboardInterrupt

    def go_on(folder: Path) -> float:
        (place / "state").unlink()
        return 1000.0

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_make("teacher", INPUTS, begin)
    assert cache.unfinished("teacher", {"data": "others"}) != place
    made = cache.get_or_make("teacher", INPUTS, go_on)
    assert made.seconds > 1000.0
    assert not place.exists()
    place.mkdir()  # of one that was killed right before it could remove it
    assert cache.get_or_make("teacher", INPUTS, go_on).seconds == made.seconds
    assert not place.exists()
