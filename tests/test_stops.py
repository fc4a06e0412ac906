"""Training that is stopped, by a signal or for want of time, is saved between two updates and goes on."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amd_lightning.errors import Interrupted
from amd_lightning.rollouts import BackendSampler
from amd_lightning.training.checkpoint_files import all_last
from amd_lightning.training.stopping import Stopping
from tests.trials import METHODS, Left, Trial, left, progress, same


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    found = {}
    for method in METHODS:
        trial = Trial(tmp_path_factory.mktemp("untouched") / method, method)
        trial.attempt()
        found[method] = left(trial)
    return found


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sends this process signals within an update's generation."""

    def send(*numbers: int, at: int) -> None:
        own, count = BackendSampler.__call__, 0

        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            for number in numbers if count == at else ():
                os.kill(os.getpid(), number)
            return own(*arguments)

        monkeypatch.setattr(BackendSampler, "__call__", call)

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
