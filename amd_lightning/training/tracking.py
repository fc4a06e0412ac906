"""What a run does between updates: progress, validation, checkpoints, and stopping in time."""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomTimeColumn
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from rich.progress import BarColumn, TimeRemainingColumn

from amd_lightning import ranks
from amd_lightning.errors import NonFiniteError
from amd_lightning.metric_direction import rises
from amd_lightning.modules.base import DistillationModule
from amd_lightning.training import checkpoint_files
from amd_lightning.training.metrics_file import Writer
from amd_lightning.training.state import Remembered, add_state
from amd_lightning.training.stopping import Stopping

log = logging.getLogger(__name__)

SHOWN = {
    "loss": ("train/loss", 1.0),
    "gap off": ("train/moment_gap_off", 1.0),
    "gap on": ("train/moment_gap_on", 1.0),
    "2TV on": ("train/tv_on", 2.0),
}
"""What progress shows: name -> (metric, factor)."""


def _shown(latest: Mapping[str, float]) -> dict[str, float]:
    return {name: factor * latest[key] for name, (key, factor) in SHOWN.items() if key in latest}


class StageBar(RichProgressBar):
    """A progress bar on a terminal: stage, update, updates a second, loss and moment gaps."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=1, leave=True)
        self.stage = stage

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """Lightning's, with a short bar and the time left alone: loss and gaps are to fit in 80 columns."""
        columns = []
        for column in super().configure_columns(trainer):
            if isinstance(column, BarColumn):
                column.bar_width = 6
            short = isinstance(column, CustomTimeColumn)
            columns.append(TimeRemainingColumn(compact=True) if short else column)
        return columns

    def _get_train_description(self, current_epoch: int) -> str:
        return self.stage

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = _shown(getattr(pl_module, "latest", {}))
        shown.pop("2TV on", None)  # in the lines, and in metrics.csv
        return shown


class StageLines(Callback):
    """The same as lines of the log, about ten a stage, where there is no terminal."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._started = time.perf_counter()
        self._first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        self._started = time.perf_counter()
        self._first = pl_module.update

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        update, updates = pl_module.update, pl_module.updates
        if update % max(1, updates // 10) and update != updates:
            return
        rate = (update - self._first) / (time.perf_counter() - self._started)
        values = [f"{name} {value:.3f}" for name, value in _shown(pl_module.latest).items()]
        log.info("%s: update %d/%d, %.1f updates/s, %s", self.stage, update, updates, rate, ", ".join(values))


class Validate(Callback):
    """Measures the student on the validation split every so many updates, and after the last.

    Args:
        every: updates between two validations; 0 for the last alone.
        measure: what to call; its result is logged under `valid/`.
        final: whether training, which has just stopped before its last update, is measured as well; the
            module is not told, and the checkpoint is written already: the run that goes on never saw it.
        tell: is called with the update and the metrics of every other one.

    Attributes:
        latest: the last one's metrics; `update` is when it was.
    """

    def __init__(
        self,
        every: int,
        measure: Callable[[], Mapping[str, float | None]],
        final: Callable[[], bool] = lambda: False,
        tell: Callable[[int, Mapping[str, float | None]], None] = lambda update, metrics: None,
    ) -> None:
        self.every = every
        self.measure = measure
        self.final = final
        self.tell = tell
        self.latest: dict[str, float | None] = {}
        self.update = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        update = pl_module.update
        if update == pl_module.updates or (self.every and update % self.every == 0):
            self._validate(pl_module)
            pl_module.validated(self.latest)
            self.tell(update, self.latest)
            pl_module.student.train()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        if self.final():
            self._validate(pl_module)

    def _validate(self, module: DistillationModule) -> None:
        axes = module.axes()  # of the student that is measured: before it takes its time
        self.latest = ranks.of_first(dict(self.measure()))
        self.update = module.update
        found = {f"valid/{name}": value for name, value in self.latest.items() if value is not None}
        module.log_to_all({**axes, **found})


class StopBetweenUpdates(Callback):
    """Asks `stopping` at the end of every update but the last."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping
        self._at = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopping.listen()
        self._at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        now = time.monotonic()
        if pl_module.update < pl_module.updates and self.stopping.after_update(now - self._at):
            trainer.should_stop = True
        self._at = now


class LastCheckpoint(Checkpoint):
    """`folder/last.ckpt`: every so many updates, after the last, and when the run is stopped between two.

    A run that fails within an update leaves `folder/failed.ckpt`. Lightning's ModelCheckpoint would leave
    out the updates after the last multiple of `every`.

    Args:
        folder: of the checkpoints.
        every: updates between two.
        keep: how many there are at most: last.ckpt, last_2.ckpt, ...
        validate, metric: after a validation with the best value so far, `folder/best.ckpt` is written too.
        best: that value, before the first update.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        *,
        keep: int = 2,
        validate: Validate | None = None,
        metric: str = "",
        best: float | None = None,
    ) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.validate = validate
        self.metric = metric
        self.best = best
        if ranks.rank() == 0:
            (folder / checkpoint_files.WRITING).unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        update = pl_module.update
        best = self._is_best(update)
        if best or update % self.every == 0 or update == pl_module.updates or trainer.should_stop:
            self._save(trainer, update, best)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        # What befell this rank alone leaves nobody to write with; a number that is not finite is everybody's.
        together = ranks.world_size() == 1 or isinstance(exception, NonFiniteError)
        # Who is in a hurry wants no file of half an update.
        if together and not isinstance(exception, KeyboardInterrupt):
            with contextlib.suppress(OSError, RuntimeError):  # the exception itself is what matters
                self.folder.mkdir(parents=True, exist_ok=True)
                trainer.save_checkpoint(self.folder / checkpoint_files.FAILED)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        remembered = Remembered(
            {} if self.validate is None else self.validate.latest, self.best, seconds=pl_module.seconds
        )
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and isinstance(writer := logger.experiment, Writer):
                writer.sync()
                remembered = remembered._replace(rows=writer.rows, columns=writer.columns)
            if isinstance(logger, WandbLogger):
                remembered = remembered._replace(wandb=logger.experiment.id)
        add_state(checkpoint, pl_module, remembered)

    def _is_best(self, update: int) -> bool:
        """Whether this update's validation is the best so far; takes note of it."""
        if self.validate is None or self.validate.update != update:
            return False
        value = self.validate.latest.get(self.metric)
        if value is None or (self.best is not None and not _better(self.metric, value, self.best)):
            return False
        self.best = value
        return True

    def _save(self, trainer: L.Trainer, update: int, best: bool) -> None:
        writing = self.folder / checkpoint_files.WRITING
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                trainer.save_checkpoint(writing)
            except (OSError, RuntimeError):
                if ranks.rank() == 0:  # who wrote: the others wait for its having written
                    trainer.strategy.barrier()
                raise
            if trainer.is_global_zero:
                if best:  # before it is the last: that one says that the best is this
                    checkpoint_files.keep_as_best(writing, self.folder)
                checkpoint_files.keep(writing, self.folder, self.keep)
        except (OSError, RuntimeError) as error:  # torch's writer makes the second of the first
            with contextlib.suppress(OSError):
                writing.unlink(missing_ok=True)
            log.warning(
                "the checkpoint of update %d could not be written (%s): the one before it stays, free some "
                "space; training goes on",
                update,
                " ".join(str(error).split())[:200],
            )


def _better(metric: str, value: float, other: float) -> bool:
    return value > other if rises(metric) else value < other
