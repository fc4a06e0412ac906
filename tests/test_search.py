"""`+sweep=optuna`: what is proposed, given up and gone on with; points are faked, but for the last test."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from amd_lightning import run
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import DataError, NonFiniteError, Pruned
from amd_lightning.metric_direction import rises
from amd_lightning.sweeps import sweep
from amd_lightning.sweeps.index import Row, Status, SweepIndex
from amd_lightning.sweeps.study import (
    Report,
    has_study,
    open_trials,
    overrides_of,
    reporting,
    settle,
    study_in,
)
from tests import test_run
from tests.test_run import MICRO, Command

optuna = pytest.importorskip("optuna", reason="pip install -e '.[optuna]'")
command = test_run.command

SEARCH = (
    "+experiment=samsum +sweep=optuna hydra.sweeper.trials=8 hydra.sweeper.startup=2 hydra.sweep.dir=sweep "
    "evaluation.metric=tv_on"
)


class Points:
    """Stands for `run.run`: a point is the worse the farther beta is from a half, at every validation."""

    def __init__(self) -> None:
        self.ran: list[tuple[float, ...]] = []
        self.failing: dict[int, BaseException] = {}

    def __call__(
        self, config: RunConfig, plain: Mapping[str, Any], command: str, report: Report | None
    ) -> float | None:
        folder = Path(config.output_dir)
        beta = config.objective.beta
        self.ran.append((beta, config.optim.student.learning_rate, config.critic.alpha))
        if error := self.failing.get(int(folder.name.partition("_")[0])):
            raise error
        assert report is not None
        value = abs(beta - 0.5)
        for update in (1, 2, 3):
            if report(update, value):
                raise Pruned("tv_on", value, update)
        who: dict[str, Any] = {"teacher": {}, "student_start": {}, "student": {}}
        (folder / "results.json").write_text(json.dumps({**who, "command": command}))
        return value


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Points:
    fake = Points()
    monkeypatch.setattr(run, "run", fake)
    return fake


def rows() -> list[Row]:
    return SweepIndex(Path("sweep")).rows()


def test_a_search_gives_up_what_lags_and_names_the_best(command: Command, ran: Points) -> None:
    found = command(SEARCH)
    assert (found.status, found.error) == (0, "")
    points = rows()
    assert [row.point for row in points] == list(range(8))
    assert [row.status for row in points[:2]] == [Status.done] * 2  # with nothing to compare
    assert {row.status for row in points} == {Status.done, Status.pruned}
    best = min((row for row in points if row.status == Status.done), key=lambda row: row.value or 0.0)
    assert f"best: point {best.point}, tv_on" in found.out
    assert f"python -m amd_lightning.run +experiment=samsum evaluation.metric=tv_on {best.overrides}" in (
        found.out.replace("hydra.sweeper.", "")
    )
    assert all(
        0.0 <= beta <= 1.0 and 3e-4 <= rate <= 1e-2 and 0.1 <= alpha <= 0.5 for beta, rate, alpha in ran.ran
    )
    states = [trial.state.name for trial in study_in(Path("sweep"), maximise=False, startup=2).trials]
    assert states == [{"done": "COMPLETE", "pruned": "PRUNED"}[row.status] for row in points]


def test_what_failed_runs_again_and_the_search_ends_with_as_many_points(
    command: Command, ran: Points
) -> None:
    ran.failing = {1: DataError("row 7 is broken: mend it"), 3: NonFiniteError("the loss is nan")}
    found = command(SEARCH)
    assert found.status == 1
    assert "1 of the sweep's points failed:\n  - 1_moment" in found.error
    before = rows()
    assert [row.status for row in before[1:4:2]] == [Status.failed, Status.pruned]
    first = ran.ran[1]
    ran.ran, ran.failing = [], {}
    found = command("sweep_resume=sweep")
    assert (found.status, found.error) == (0, "")
    assert ran.ran == [first]
    after = rows()
    assert after[1].status in (Status.done, Status.pruned)
    assert after[1].overrides == before[1].overrides
    assert [row for row in after if row.point != 1] == [row for row in before if row.point != 1]


def test_a_search_that_was_stopped_asks_what_it_would_have_asked(command: Command, ran: Points) -> None:
    assert command(SEARCH).status == 0
    everything = ran.ran
    Path("sweep").rename("whole")
    ran.ran, ran.failing = [], {5: KeyboardInterrupt()}
    assert command(SEARCH).status == 128 + signal.SIGINT
    assert len(rows()) == 6
    ran.failing = {}
    assert command("sweep_resume=sweep").status == 0
    assert ran.ran == [*everything[:6], *everything[5:]]


def test_the_command_line_sets_the_space(command: Command, ran: Points) -> None:
    line = (
        f"{SEARCH} hydra.sweeper.trials=3 critic.alpha=0.3 'critic.rank=int(interval(4,6))' seed=choice(7,8)"
    )
    assert command(line).status == 0
    assert {alpha for *_, alpha in ran.ran} == {0.3}
    found = [dict(text.split("=") for text in row.overrides.split()) for row in rows()]
    assert {"4", "5", "6"} >= {point["critic.rank"] for point in found}
    assert {"7", "8"} >= {point["seed"] for point in found}


def test_optuna_that_is_missing_is_one_line(
    command: Command, ran: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    assert command(SEARCH).error == "+sweep=optuna needs optuna: pip install -e '.[optuna]'"
    assert not Path("sweep").exists()


@pytest.mark.parametrize("maximise", [True, False])
def test_a_trial_is_given_up_below_the_median(maximise: bool, tmp_path: Path) -> None:
    study = study_in(tmp_path, maximise=maximise, startup=1)
    assert has_study(tmp_path)
    space = {"seed": optuna.distributions.IntDistribution(0, 9)}
    best, worst = study.ask(space), study.ask(space)
    good, bad = (1.0, 0.0) if maximise else (0.0, 1.0)
    assert not reporting(study, best.number)(2, good)
    settle(study, {0: Row(0, "", status=Status.done, value=good)})
    assert [trial.number for trial in open_trials(study)] == [worst.number]
    assert reporting(study, worst.number)(2, bad)
    again = reporting(study_in(tmp_path, maximise=maximise, startup=1), worst.number)
    assert again(2, bad)  # told once more, when it went on from before
    assert reporting(study, worst.number)(3, float("nan"))
    settle(study, {1: Row(1, "", status=Status.done, value=None)})
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]


def test_names_and_numbers() -> None:
    assert overrides_of({"a.b": 0.00123456, "c": 3, "d": "x"}) == ["a.b=0.001235", "c=3", "d=x"]
    assert [rises(name) for name in ("auto", "sampled_bleu", "tv_on")] == [True, True, False]


@pytest.mark.slow
def test_a_run_that_is_given_up_stops(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, float]] = []

    def report(update: int, value: float) -> bool:
        told.append((update, value))
        return update == 2

    monkeypatch.setattr(run, "report_of", lambda *arguments: report)
    line = f"{MICRO} optim.student.updates=5 trainer.validate_every=2 evaluation.metric=tv_on -m seed=0"
    found = command(f"{line} hydra.sweep.dir=sweep")
    assert found.status == 0, found.err
    (row,) = rows()
    assert (row.status, row.metric) == (Status.pruned, "tv_on")
    assert told == [(2, row.value)]
    folder = Path("sweep") / row.directory
    assert not (folder / "results.json").exists()
    assert "1 given up" in found.out
