"""Where a distillation run's numbers, texts and pictures go beside metrics.csv.

Every logger gets the same keys for every method, over `update`; what they mean stands in
`modules/diagnostics.py` (train, critic, rollout, cost, time) and `evaluation/harness.py` (valid, test).
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from amd_lightning.errors import UserError
from amd_lightning.evaluation.harness import BINS, Evaluation
from amd_lightning.modules.diagnostics import AXES

RESPONSES = "valid/responses"
"""The key of the tables of sampled responses."""

TAG_LENGTH = 64
"""W&B refuses longer tags."""


@dataclass(frozen=True)
class WandbSettings:
    """Where and as what a run is logged to W&B; mode is "online", "offline" or "disabled".

    What differs in the seed alone shares group and job type; what is to be compared shares the group.
    """

    mode: str
    project: str
    group: str
    job_type: str
    name: str
    entity: str | None = None
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


def wandb_logger(folder: Path, settings: WandbSettings, run_id: str | None = None) -> WandbLogger | None:
    """A W&B run under `folder/wandb`, or None where it is disabled.

    Args:
        run_id: of the run that goes on; None for a new one.

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
            tags=[tag[:TAG_LENGTH] for tag in settings.tags],
            config=dict(settings.config),
            mode="offline" if offline else "online",
            id=run_id,
            resume=None if run_id is None or offline else "allow",  # offline, the id alone says it
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
    for axis in AXES:  # each may be chosen as the x-axis: it stands in every row
        run.define_metric(axis, step_metric="update", summary="last")
    return WandbLogger(save_dir=folder, experiment=run)


def require(package: str) -> None:
    """Refuse a logger whose package is missing; its extra has the same name.

    Raises:
        UserError: `package` cannot be imported.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"logger.{package} needs a package that is not there: pip install 'amd-lightning[{package}]' "
            f"(-e '.[{package}]' in a checkout), or leave it out"
        )


def tensorboard_logger(folder: Path) -> TensorBoardLogger:
    """Event files in `folder/tensorboard`, the metrics of metrics.csv as scalars."""
    return TensorBoardLogger(save_dir=folder, name="", version="tensorboard", default_hp_metric=False)


def mlflow_logger(folder: Path, uri: str | None, experiment: str, settings: WandbSettings) -> MLFlowLogger:
    """A run of MLflow's with the name, tags and configuration of W&B's, in `folder/mlflow` where `uri` is
    None.

    Raises:
        UserError: the place cannot be used.
    """
    if (
        uri is None
    ):  # MLflow wants databases, which its small package cannot open; it takes folders if told so
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    tags = {"group": settings.group, "job_type": settings.job_type, "tags": ",".join(settings.tags)}
    logger = MLFlowLogger(
        experiment_name=experiment,
        run_name=settings.name,
        tracking_uri=uri or (folder / "mlflow").absolute().as_uri(),
        tags=tags,
    )
    try:
        logger.log_hyperparams(dict(settings.config))
    except Exception as error:  # of the network, of HTTP, of a store: MLflow has many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"MLflow refuses logger.mlflow.uri={uri} ({reason}): set another") from error
    return logger


def show_validation(
    loggers: Sequence[Logger],
    axes: Mapping[str, float],
    evaluation: Evaluation,
    teacher_wrote: Sequence[str],
    rows: int,
) -> None:
    """Give W&B a validation's sampled responses to read, and how the per-token gaps are spread.

    Args:
        loggers: of the distillation stage.
        axes: where the validation stands on every x-axis, `update` among them.
        evaluation: of the student, on the validation split.
        teacher_wrote: a response of the teacher's to each of its prompts.
        rows: how many of them are shown, always the first.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            shown: dict[str, Any] = {
                f"valid/{name}_tokens": wandb.Histogram(
                    np_histogram=(np.asarray(counts), np.linspace(0.0, 1.0, BINS + 1))
                )
                for name, counts in evaluation.spreads.items()
            }
            if rows:
                shown[RESPONSES] = _sampled_table(axes["update"], evaluation, teacher_wrote, rows)
            logger.experiment.log({**axes, **shown})


def _sampled_table(update: float, evaluation: Evaluation, teacher_wrote: Sequence[str], rows: int) -> Any:
    """The first sampled response to each of the first prompts, between reference and teacher's."""
    import wandb

    table = wandb.Table(columns=["update", "id", "prompt", "reference", "teacher", "student"])
    sampled = [row for row in evaluation.predictions if row["kind"] == "sampled"]
    for row, theirs in list(zip(sampled, teacher_wrote, strict=False))[:rows]:
        table.add_data(int(update), row["id"], row["prompt"], row["references"][0], theirs, row["response"])
    return table


def finish(
    loggers: Sequence[Logger],
    results: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Sequence[Path],
) -> None:
    """Give the loggers the results, and W&B a table of responses and the figures; close them.

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
            if "stopped_at" in results:
                run.summary.update({"stopped_at": results["stopped_at"]})
            run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
            run.log({"test/responses": _response_table(predictions)})
            run.finish(exit_code=0)
        elif isinstance(logger, TensorBoardLogger | MLFlowLogger):
            levels = {
                f"test/{who}/{key}": value
                for who in predictions
                for key, value in results[who].items()
                if value is not None
            }
            logger.log_metrics(levels, step=int(results["updates"]))
            logger.finalize("success")


def close(loggers: Sequence[Logger]) -> None:
    """End the W&B run of one that has no results, so that the next in this process is its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


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
