"""Training that is killed anywhere and taken up again is the training that nothing befell, bit for bit."""

import errno
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amd_lightning.errors import CheckpointError
from amd_lightning.training import state as training_state
from amd_lightning.training.checkpoint_files import all_last
from amd_lightning.training.state import load, newest, random_streams, set_random_streams
from tests.trials import METHODS, Clock, Killed, Left, Trial, left, progress, same


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    found = {}
    for method in METHODS:
        trial = Trial(tmp_path_factory.mktemp("untouched") / method, method)
        trial.attempt()
        found[method] = left(trial)
    return found


# -- kills -------------------------------------------------------------------------------------------


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


def test_the_stream_of_this_processs_gpu_alone_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {place: torch.tensor([place], dtype=torch.uint8) for place in range(8)}
    came_back: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: streams[2])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: came_back.append(int(state)))
    kept = random_streams()
    assert [int(state) for state in kept["cuda"]] == [2]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # fewer are seen now
    set_random_streams(kept)
    set_random_streams({**kept, "cuda": [streams[place] for place in range(8)]})  # of an earlier version
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    set_random_streams({**kept, "cuda": [streams[place] for place in range(8)]})
    assert came_back == [2, 0, 3]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert random_streams()["cuda"] == []
    set_random_streams(kept)
    assert came_back == [2, 0, 3]
