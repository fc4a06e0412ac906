"""An Optuna study in a sweep's directory: trial N is the sweep's point N.

    FOLDER/study.log         Optuna's journal, which any number of processes append to

The sweeper asks for trials and tells how they ended; a point reports its validations and is told whether they
are among the worse half at that update. A trial that failed or was killed stays open, and goes on with the
sweep.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amd_lightning.sweeps.index import Row, Status

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

JOURNAL = "study.log"
NAME = "sweep"

Report = Callable[[int, float], bool]
"""Takes an update and the metric of its validation; whether to give the trial up."""


def has_study(folder: Path) -> bool:
    """Whether the sweep in this directory is a search."""
    return (folder / JOURNAL).exists()


def study_in(folder: Path, *, maximise: bool, startup: int, seed: int = 0) -> "Study":
    """The study of a sweep, begun if there is none.

    The tree-structured Parzen estimator (Bergstra et al. 2011) proposes, and the median rule (Golovin et al.
    2017) gives up; trials that are under way count as bad ones, so that several at a time differ.

    Args:
        folder: of the sweep.
        maximise: whether more of the metric is better.
        startup: trials that are drawn at random, and that end before any is given up.
        seed: of the sampler, together with the number of trials so far: a search that goes on asks what it
            would have asked.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # constant_liar in 4
    study = optuna.create_study(
        study_name=NAME,
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        direction="maximize" if maximise else "minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=startup),
        load_if_exists=True,
    )
    count = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=startup, constant_liar=True, seed=seed + count
    )
    return study


def reporting(study: "Study", number: int) -> Report:
    """What trial `number` calls after a validation."""
    import optuna

    before = study.get_trials(deepcopy=False)[number]
    trial = optuna.trial.Trial(study, before._trial_id)

    def report(update: int, value: float) -> bool:
        if not math.isfinite(value):
            return True
        if update not in before.intermediate_values:  # where it was stopped, and goes on from earlier
            trial.report(value, update)
        return trial.should_prune()

    return report


def settle(study: "Study", rows: Mapping[int, Row]) -> None:
    """Tell the study of every point that has ended since."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False):
        row = rows.get(trial.number)
        if trial.state.is_finished() or row is None:
            continue
        if row.status == Status.pruned:
            study.tell(trial.number, state=TrialState.PRUNED)
        elif row.status == Status.done and row.value is not None and math.isfinite(row.value):
            study.tell(trial.number, row.value)
        elif row.status == Status.done:
            study.tell(trial.number, state=TrialState.FAIL)


def open_trials(study: "Study") -> list["FrozenTrial"]:
    """Those that have not ended, by number."""
    return [trial for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]


def overrides_of(params: Mapping[str, Any]) -> list[str]:
    """A trial's parameters as overrides, numbers to four digits, as one would type them."""
    typed = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in params.items()}
    return [f"{key}={value}" for key, value in typed.items()]
