"""`+sweep=optuna`: a sweep whose points an Optuna study proposes, one batch after another.

Everything else is as in any sweep: a point is a run, `index.py` keeps account, a launcher says where
points run, `sweep_resume=DIR` goes on.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from amd_lightning.analysis.runs import read_results
from amd_lightning.metric_direction import rises
from amd_lightning.sweeps.index import Row, Status, SweepIndex
from amd_lightning.sweeps.points import parsed
from amd_lightning.sweeps.study import (
    Report,
    has_study,
    open_trials,
    overrides_of,
    reporting,
    settle,
    study_in,
)

SWEEPER = "amd_lightning_optuna"


@dataclass
class SearchConfig:
    """Hydra's `hydra.sweeper` of a search.

    Attributes:
        trials: how many points there are to be in all, given up or not.
        at_once: points that are proposed together and run at the same time; 0: one a core.
        startup: see `study_in`.
        seed: of what is proposed.
        params: the space: KEY: interval(A, B), tag(log, interval(A, B)), int(interval(A, B)), choice(A, B).
    """

    _target_: str = "hydra_plugins.amd_lightning_optuna.OptunaSweeper"
    trials: int = 20
    at_once: int = 1
    startup: int = 5
    seed: int = 0
    params: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name=SWEEPER, node=SearchConfig)


class Search(Sweeper):
    """Asks the study in the sweep's directory for points, and has them run; see `SearchConfig`."""

    def __init__(self, trials: int, at_once: int, startup: int, seed: int, params: Mapping[str, Any]) -> None:
        self.trials = trials
        self.at_once = at_once if at_once > 0 else os.cpu_count() or 1
        self.startup = startup
        self.seed = seed
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra gives before `sweep`."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run points until there are as many as asked for; those that are open from before come first."""
        fixed, space = _split([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        assert self.config is not None
        index = SweepIndex(Path(self.config.hydra.sweep.dir))
        maximise = rises(self.config.evaluation.metric)
        tried: set[int] = set()
        while True:
            study = study_in(index.folder, maximise=maximise, startup=self.startup, seed=self.seed)
            settle(study, {row.point: row for row in index.rows()})
            batch = {trial.number: trial.params for trial in open_trials(study) if trial.number not in tried}
            missing = self.trials - len(study.get_trials(deepcopy=False))
            for _ in range(min(self.at_once - len(batch), missing)):
                trial = study.ask(space)
                batch[trial.number] = trial.params
            if not batch:
                return
            tried |= batch.keys()
            self._launch({number: [*fixed, *overrides_of(params)] for number, params in batch.items()})

    def _launch(self, jobs: Mapping[int, list[str]]) -> None:
        """Have points run; a launcher numbers its jobs from a first one on."""
        assert self.launcher is not None
        self.validate_batch_is_legal(list(jobs.values()))
        for _, together in groupby(enumerate(sorted(jobs)), key=lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in together]
            self.launcher.launch([jobs[number] for number in numbers], initial_job_idx=numbers[0])


def _split(texts: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides of every point, and the space of the others; where a key comes twice, the last one."""
    found = {override.get_key_element(): override for override in map(parsed, texts)}
    swept = {key: override for key, override in found.items() if override.is_sweep_override()}
    fixed = [f"{key}={one.get_value_element_as_str()}" for key, one in found.items() if key not in swept]
    return fixed, {key: _distribution(one) for key, one in swept.items()}


def _distribution(override: Override) -> Any:
    """The values of a swept override, for Optuna."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    assert value.start is not None
    assert value.end is not None
    if isinstance(value.start, int):
        return IntDistribution(value.start, int(value.end), log="log" in value.tags)
    return FloatDistribution(value.start, value.end, log="log" in value.tags)


def register() -> None:
    """Make the sweeper known to Hydra, whose own search for plugins passes over editable installations."""
    Plugins.instance().register(import_module(f"hydra_plugins.{SWEEPER}").OptunaSweeper)


def report_of(folder: Path, number: int, metric: str) -> Report | None:
    """What a point of a search calls after its validations; None in any other sweep.

    Args:
        folder: of the sweep.
        number: of the point.
        metric: `evaluation.metric`.
    """
    if not has_study(folder):
        return None
    settings = HydraConfig.get().sweeper
    study = study_in(folder, maximise=rises(metric), startup=settings.startup, seed=settings.seed)
    return reporting(study, number)


def best_point(folder: Path, rows: Sequence[Row]) -> str | None:
    """The best finished point of a search, with the command that makes it alone; None where there is none."""
    done = [row for row in rows if row.status == Status.done and row.value is not None]
    if not has_study(folder) or not done:
        return None
    sign = 1.0 if rises(done[0].metric) else -1.0
    best = max(done, key=lambda row: sign * (row.value or 0.0))
    command = read_results(folder / best.directory)["command"]
    return f"best: point {best.point}, {best.metric} {best.value:.4g}: {command}"
