"""A run on two ranks that is killed and taken up again is the run that nothing befell, bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from amd_lightning import ranks
from amd_lightning.rollouts import BackendSampler
from amd_lightning.training.state import GOING_ON, load
from amd_lightning.training.stopping import Stopping
from tests.processes import on_ranks
from tests.trials import Killed, Left, Trial, left, same


def attempt(folder: Path, at: int | None = None, victim: int = 1, stopping: bool = False) -> Left | None:
    """One rank dies in its so-many-th generation, and the other of it; or is told to stop there."""
    own, count, told = BackendSampler.__call__, 0, Stopping()

    def call(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == at and ranks.rank() == victim:
            if not stopping:
                raise Killed
            told.signum = 15
        return own(*arguments)

    trial = Trial(folder, updates=6)
    BackendSampler.__call__ = call  # type: ignore[assignment, method-assign]
    try:
        trial.attempt(told)
    except (Killed, RuntimeError, KeyboardInterrupt):
        return None
    finally:
        BackendSampler.__call__ = own  # type: ignore[method-assign]
    return left(trial) if ranks.rank() == 0 else None


@pytest.mark.slow
def test_killed_on_either_rank_it_ends_the_same(tmp_path: Path) -> None:
    untouched = on_ranks(2, attempt, tmp_path / "untouched", folder=tmp_path / "ranks_0")[0]
    assert untouched is not None
    streams = load(tmp_path / "untouched/checkpoints/last.ckpt")[GOING_ON]
    assert len(streams["random_of_others"]) == 1
    assert not bool((streams["random"]["torch"] == streams["random_of_others"][0]["torch"]).all())
    for place, how in enumerate([(4, 1), (3, 0), (3, 1, True)], start=1):
        folder = tmp_path / f"run_{place}"
        first = on_ranks(2, attempt, folder, *how, folder=tmp_path / f"ranks_{place}")
        assert first == [None, None]  # a signal that one rank hears stops both
        again = on_ranks(2, attempt, folder, folder=tmp_path / f"again_{place}")[0]
        assert again is not None
        same(again._asdict(), untouched._asdict(), str(how))


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert on_ranks(2, attempt, tmp_path / "run", 4, folder=tmp_path / "ranks") == [None, None]
    assert attempt(tmp_path / "run") is not None
    assert "the checkpoint is of 2 processes and 1 go on" in caplog.text
