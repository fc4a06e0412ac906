"""What a run tells while it runs: loggers, progress, validation and checkpoints.

Every logger gets the same keys for every method, with `update` as the x-axis; their meaning stands in
`modules/diagnostics.py` (train, critic, time) and `evaluation/harness.py` (valid).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomTimeColumn
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from rich.progress import BarColumn, TimeRemainingColumn

from amd_lightning.errors import UserError
from amd_lightning.modules.base import DistillationModule

log = logging.getLogger(__name__)

SHOWN = {
    "loss": ("train/loss", 1.0),
    "gap off": ("train/moment_gap_off", 1.0),
    "gap on": ("train/moment_gap_on", 1.0),
    "2TV on": ("train/tv_on", 2.0),
}
"""What progress shows: name -> (metric, factor)."""


@dataclass(frozen=True)
class WandbSettings:
    """Where and as what a run is logged to W&B; mode is "online", "offline" or "disabled"."""

    mode: str
    project: str
    group: str
    job_type: str
    name: str
    entity: str | None = None
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


def csv_logger(folder: Path) -> CSVLogger:
    """`folder/metrics.csv`, written through at every row, so that a run that dies loses none."""
    return CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)


def wandb_logger(folder: Path, settings: WandbSettings) -> WandbLogger | None:
    """A W&B run under `folder/wandb`, or None where it is disabled.

    Raises:
        UserError: mode=online and the server or the account is refused.
    """
    if settings.mode == "disabled":
        return None
    import wandb  # half a second, and not needed where it is disabled

    offline = settings.mode == "offline"
    try:
        # By ourselves: WandbLogger's own call passes an option that W&B warns about, and takes over a run
        # that an earlier, failed point of a sweep left open.
        run = wandb.init(
            dir=folder,
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            job_type=settings.job_type,
            name=settings.name,
            tags=list(settings.tags),
            config=dict(settings.config),
            mode="offline" if offline else "online",
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", x_disable_meta=offline, disable_git=offline),
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"W&B refuses mode=online ({' '.join(str(error).split())[:200]}): log in with `wandb login`, or "
            "leave logger.wandb.mode=offline"
        ) from error
    run.define_metric("update")
    run.define_metric("*", step_metric="update")
    return WandbLogger(save_dir=folder, experiment=run)


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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        update, updates = pl_module.update, pl_module.updates
        if update % max(1, updates // 10) and update != updates:
            return
        rate = update / (time.perf_counter() - self._started)
        values = [f"{name} {value:.3f}" for name, value in _shown(pl_module.latest).items()]
        log.info("%s: update %d/%d, %.1f updates/s, %s", self.stage, update, updates, rate, ", ".join(values))


class Validate(Callback):
    """Measures the student on the validation split every so many updates, and after the last.

    Args:
        every: updates between two validations; 0 for the last alone.
        measure: what to call; its result is logged under `valid/`.
    """

    def __init__(self, every: int, measure: Callable[[], Mapping[str, float | None]]) -> None:
        self.every = every
        self.measure = measure
        self.latest: dict[str, float | None] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        update = pl_module.update
        if update == pl_module.updates or (self.every and update % self.every == 0):
            self.latest = dict(self.measure())
            pl_module.log_to_all(
                {f"valid/{name}": value for name, value in self.latest.items() if value is not None}
            )
            pl_module.validated(self.latest)
            pl_module.student.train()


class LastCheckpoint(Checkpoint):
    """`folder/last.ckpt`: every so many updates, after the last, and when the run stops by an exception.

    Lightning's ModelCheckpoint would leave out the updates after the last multiple of `every`.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path = folder / "last.ckpt"
        self.every = every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        if pl_module.update % self.every == 0 or pl_module.update == pl_module.updates:
            trainer.save_checkpoint(self.path)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        trainer.save_checkpoint(self.path)


def finish(
    loggers: Sequence[Logger],
    results: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Sequence[Path],
) -> None:
    """Give W&B the results, a table of responses and the figures, and close it.

    Args:
        loggers: of the distillation stage.
        results: the content of results.json.
        predictions: rows of predictions.jsonl by who wrote the response.
        figures: pictures.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            run = logger.experiment
            for who in predictions:
                run.summary.update({f"test/{who}/{key}": value for key, value in results[who].items()})
            for name, levels in results["evaluation_sets"].items():
                for who in levels:
                    run.summary.update(
                        {f"test/{name}/{who}/{key}": value for key, value in levels[who].items()}
                    )
            run.summary.update({f"cost/seconds/{k}": v for k, v in results["cost"]["seconds"].items()})
            run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
            run.log({"test/responses": _response_table(predictions)})
            run.finish(exit_code=0)


def _response_table(predictions: Mapping[str, Sequence[Mapping[str, Any]]], rows: int = 50) -> Any:
    """Prompt, reference and everybody's best response, side by side."""
    import wandb

    best = {
        who: [row for row in written if row["kind"] != "sampled"][:rows]
        for who, written in predictions.items()
    }
    table = wandb.Table(columns=["id", "prompt", "reference", *best])
    for together in zip(*best.values(), strict=True):
        first = together[0]
        table.add_data(
            first["id"], first["prompt"], first["references"][0], *(row["response"] for row in together)
        )
    return table
