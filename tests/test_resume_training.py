"""Training that is killed anywhere and taken up again is the training that nothing befell, bit for bit."""

import csv
import errno
import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from amd_lightning import training_state
from amd_lightning.checkpoint_files import all_last
from amd_lightning.distillation import Distilled, distil
from amd_lightning.errors import CheckpointError, Interrupted
from amd_lightning.evaluation.harness import Evaluation
from amd_lightning.metrics_file import Writer
from amd_lightning.modules.adaptive import AdaptiveBeta
from amd_lightning.modules.base import DistillationModule
from amd_lightning.policies import Policy
from amd_lightning.replay import ReplayBuffer, Reuse
from amd_lightning.rollouts import HfSampler
from amd_lightning.stopping import Stopping
from amd_lightning.training import StageSpec, TrainerSpec
from amd_lightning.training_state import load, newest, random_streams, set_random_streams
from tests.helpers import PAD, t5, tokenised
from tests.modules.harness import CONSTANT, module

UPDATES = 6


class Killed(BaseException):
    """What kill -9 would be, in the process of the test."""


METHODS: dict[str, Callable[[], dict[str, Any]]] = {
    "residual": lambda: {"replay": ReplayBuffer(12, refresh=0.5, decay=True, shuffle=True, seed=3)},
    "rkl": lambda: {"replay": Reuse(3), "adaptive": AdaptiveBeta(0.2, step=0.3, tolerance=0.0)},
}


class Trial:
    """A distillation of six updates in a folder; each attempt goes on from what the one before left."""

    def __init__(self, folder: Path, method: str = "residual", updates: int = UPDATES) -> None:
        self.folder = folder
        self.method = method
        self.updates = updates
        self.made: DistillationModule | None = None
        self.keep = 2

    def _make(self, student: Policy, teacher: Policy) -> DistillationModule:
        self.made = module(
            self.method,
            0.5,
            student=student,
            teacher=teacher,
            updates=self.updates,
            log_every=2,
            **METHODS[self.method](),
        )
        return self.made

    def measure(self, some: DistillationModule) -> Evaluation:
        """Best at update 4; draws from a stream, as a metric might."""
        random.random()
        weight = float(next(some.student.parameters()).detach().sum())
        return Evaluation({"kl_off": abs(some.update - 4.0) + weight / 1e6, "rouge_l": 1.0}, [])

    def attempt(self, stopping: Stopping | None = None) -> Distilled:
        spec: Any = SimpleNamespace(
            folder=self.folder,
            seed=0,
            make_module=self._make,
            trainer=TrainerSpec("cpu", "32-true", 2, 2, 2, "off", self.keep),
            distillation=StageSpec(self.updates, 4, 2, CONSTANT),
            loggers=lambda run_id: [],
            shown_responses=0,
        )
        self.folder.mkdir(exist_ok=True)
        return distil(
            spec,
            t5(1, dropout_rate=0.1),
            t5(2, d_model=24),
            tokenised(10),
            measure=self.measure,
            teacher_wrote=[],
            metric="kl_off",
            pad_id=PAD,
            resume=self.folder / "checkpoints",
            stopping=stopping or Stopping(),
        )

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


class Left(NamedTuple):
    """What a finished trial leaves."""

    weights: dict[str, torch.Tensor]
    curve: list[list[str]]
    last: dict[str, Any]
    best: dict[str, Any]


def left(trial: Trial) -> Left:
    assert trial.made is not None
    with (trial.folder / "metrics.csv").open(newline="") as file:
        table = list(csv.reader(file))
    clocks = [place for place, name in enumerate(table[0]) if name.startswith("time/")]
    for row in table[1:]:
        for place in clocks:
            row[place] = ""
    return Left(
        {name: value.clone() for name, value in trial.made.state_dict().items()},
        table,
        *(content(trial.checkpoints / name) for name in ("last.ckpt", "best.ckpt")),
    )


def content(path: Path) -> dict[str, Any]:
    """A checkpoint without its clocks, and without what Lightning counts by itself."""
    found = load(path)
    found[training_state.GOING_ON]["remembered"].pop("seconds")
    for name in ("seconds", "global_step", "loops", "epoch"):
        found.pop(name)
    return found


def same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, however nested."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            same(mine, theirs, f"{where}[{place}]")
    else:
        assert one == other, where


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    found = {}
    for method in METHODS:
        trial = Trial(tmp_path_factory.mktemp("untouched") / method, method)
        trial.attempt()
        found[method] = left(trial)
    return found


# -- kills -------------------------------------------------------------------------------------------


class Clock:
    """Counts everything at which a kill would leave something half done, and kills at its turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.at: int | None = None
        self.names: list[str] = []
        for owner, name in (
            (DistillationModule, "_step"),  # of the student, and K of the critics
            (HfSampler, "__call__"),
            (torch, "save"),
            (os, "fsync"),
            (Path, "replace"),
            (Writer, "save"),
        ):
            monkeypatch.setattr(owner, name, self._ticking(getattr(owner, name), name))

    def _ticking(self, own: Any, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            self.names.append(name)
            if self.count == self.at:
                if name == "save" and len(arguments) > 1:  # torch's: half of the file is there
                    arguments[1].write(b"PK\x03\x04 and no more")
                    arguments[1].flush()
                raise Killed(name)
            return own(*arguments, **named)

        return call


def test_killed_anywhere_it_ends_the_same(
    untouched: dict[str, Left], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At moments that every kind of operation has a part in; twice in a row at every third."""
    clock = Clock(monkeypatch)
    Trial(tmp_path / "count").attempt()
    total, names = clock.count, list(clock.names)
    assert {"_step", "__call__", "save", "fsync", "replace"} == set(names)
    draw = random.Random(5)
    moments = [draw.choice([k for k in range(total) if names[k] == name]) + 1 for name in sorted(set(names))]
    moments += draw.sample(range(1, total + 1), 7)
    for place, moment in enumerate(moments):
        trial = Trial(tmp_path / str(place))
        for at in (moment, max(1, moment // 3)) if place % 3 == 0 else (moment,):
            clock.count, clock.at = 0, at
            with pytest.raises(Killed):
                trial.attempt()
        clock.at = None
        trial.attempt()
        same(
            left(trial)._asdict(), untouched["residual"]._asdict(), f"kill at {moment} ({names[moment - 1]})"
        )


def test_reused_batches_and_a_moving_beta_come_back(
    untouched: dict[str, Left], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    trial = Trial(tmp_path / "run", "rkl")
    for at in (25, 12):
        clock.count, clock.at = 0, at
        with pytest.raises(Killed):
            trial.attempt()
        assert all_last(trial.checkpoints)
    clock.at = None
    trial.attempt()
    same(left(trial)._asdict(), untouched["rkl"]._asdict())


def test_taken_up_after_its_last_update_nothing_is_trained(
    untouched: dict[str, Left], tmp_path: Path
) -> None:
    trial = Trial(tmp_path / "run")
    first = trial.attempt()
    again = trial.attempt()
    assert again.validation == first.validation
    assert again.tokens == first.tokens
    assert again.seconds_before > 0.0
    same(left(trial)._asdict(), untouched["residual"]._asdict())


# -- files -------------------------------------------------------------------------------------------


def progress(path: Path) -> int:
    return int(load(path)["progress"]["update"])


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run")
    trial.attempt()
    names = {path.name: progress(path) for path in trial.checkpoints.iterdir()}
    assert names == {"last.ckpt": 6, "last_2.ckpt": 4, "best.ckpt": 4}
    assert not [name for name in load(trial.checkpoints / "last.ckpt")["state_dict"] if "teacher" in name]
    trial.keep, trial.updates = 1, 8
    trial.attempt()
    assert [progress(path) for path in all_last(trial.checkpoints)] == [8]


@pytest.mark.parametrize("how", ["cut short", "one byte", "empty"])
def test_a_damaged_checkpoint_is_passed_over(
    how: str, untouched: dict[str, Left], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial = Trial(tmp_path / "run")
    trial.attempt()
    path = trial.checkpoints / "last.ckpt"
    written = path.read_bytes()
    middle = len(written) // 2
    broken = {
        "cut short": written[:-100],
        "one byte": written[:middle] + bytes([written[middle] ^ 1]) + written[middle + 1 :],
        "empty": b"",
    }
    path.unlink()  # best.ckpt may be the same file
    path.write_bytes(broken[how])
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)
    caplog.clear()
    found = newest(trial.checkpoints)
    assert found is not None
    assert found[0].name == "last_2.ckpt"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages[0].endswith("taking the one before it")
    trial.attempt()
    same(left(trial)._asdict(), untouched["residual"]._asdict())


def test_a_full_disk_leaves_the_checkpoint_before_and_training_goes_on(
    untouched: dict[str, Left],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own, count = torch.save, 0

    def full(content: Any, file: Any) -> None:
        nonlocal count
        count += 1
        if count < 2:
            return own(content, file)
        file.write(b"as much as there was room for")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    trial = Trial(tmp_path / "run")
    with caplog.at_level(logging.WARNING, logger="amd_lightning"):
        trial.attempt()
    assert len(caplog.messages) == 2
    assert "the checkpoint of update 4 could not be written ([Errno 28] No space left" in caplog.messages[0]
    assert [progress(path) for path in all_last(trial.checkpoints)] == [2]
    assert not list(trial.checkpoints.glob(".*"))
    assert trial.made is not None
    same(dict(trial.made.state_dict()), untouched["residual"].weights)


def test_a_real_limit_on_a_files_size_is_a_full_disk(tmp_path: Path) -> None:
    """Torch's own writer, which the test above replaces, fails in its own way."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            training_state.SyncedFile().save_checkpoint({"x": torch.zeros(100_000)}, tmp_path / "x.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    Trial(tmp_path / "run").attempt()
    other = Trial(tmp_path / "run", "rkl")
    with pytest.raises(CheckpointError, match="the checkpoint is of other models"):
        other.attempt()


def test_random_streams_come_back(tmp_path: Path) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    torch.save(random_streams(), tmp_path / "streams.pt")
    first = draws()
    assert draws() != first
    set_random_streams(torch.load(tmp_path / "streams.pt", weights_only=True))
    assert draws() == first


# -- stops -------------------------------------------------------------------------------------------


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sends this process signals within an update's generation."""

    def send(*numbers: int, at: int) -> None:
        own, count = HfSampler.__call__, 0

        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            for number in numbers if count == at else ():
                os.kill(os.getpid(), number)
            return own(*arguments)

        monkeypatch.setattr(HfSampler, "__call__", call)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield send
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_update_and_the_state_is_saved(
    number: int, untouched: dict[str, Left], tmp_path: Path, signalled: Callable[..., None]
) -> None:
    trial = Trial(tmp_path / "run")
    signalled(number, at=3)
    with pytest.raises(Interrupted) as stopped:
        trial.attempt()
    assert stopped.value.signum == number
    assert trial.made is not None
    assert (stopped.value.update, stopped.value.updates) == (trial.made.update, 6)
    assert progress(trial.checkpoints / "last.ckpt") == trial.made.update < 6
    trial.attempt()
    # An additional checkpoint is one more of the last: only the newest and the best are those of before.
    same(left(trial)._asdict(), untouched["residual"]._asdict())


def test_the_second_signal_does_not_wait(
    untouched: dict[str, Left], tmp_path: Path, signalled: Callable[..., None]
) -> None:
    trial = Trial(tmp_path / "run")
    signalled(signal.SIGINT, signal.SIGINT, at=3)
    with pytest.raises((Interrupted, SystemExit)):
        trial.attempt()
    assert trial.made is not None
    assert not (trial.checkpoints / "failed.ckpt").exists()
    assert all(progress(path) % 2 == 0 for path in all_last(trial.checkpoints))
    trial.attempt()
    same(left(trial)._asdict(), untouched["residual"]._asdict())


def test_a_budget_of_time_ends_with_a_validation_that_was_never_there(
    untouched: dict[str, Left], tmp_path: Path
) -> None:
    trial = Trial(tmp_path / "run")
    done = trial.attempt(Stopping(seconds=0.0))
    assert done.stopped_at == 1
    assert done.validation["kl_off"] is not None
    table = (trial.folder / "metrics.csv").read_text()
    assert "valid/kl_off" in table
    assert progress(trial.checkpoints / "last.ckpt") == 1
    assert trial.attempt(Stopping(seconds=1e6)).stopped_at is None
    same(left(trial)._asdict(), untouched["residual"]._asdict())
