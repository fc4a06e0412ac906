"""The distillation stage: training with validations and checkpoints, from update 0 or from one of these."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import lightning as L
from lightning.pytorch.loggers import Logger

from amd_lightning import ranks
from amd_lightning.data.examples import TokenisedExample
from amd_lightning.errors import Pruned
from amd_lightning.evaluation.harness import Evaluation
from amd_lightning.modules.base import DistillationModule
from amd_lightning.policies import Policy
from amd_lightning.spec import RunSpec
from amd_lightning.training.checkpoint_files import FOLDER
from amd_lightning.training.fitting import fit, seed_for
from amd_lightning.training.loggers import close, show_validation
from amd_lightning.training.metrics_file import csv_logger
from amd_lightning.training.preemption import interruption
from amd_lightning.training.profiling import Profile
from amd_lightning.training.state import (
    Checkpoint,
    Remembered,
    Restore,
    load,
    newest,
    remembered_in,
    restore,
)
from amd_lightning.training.stopping import Stopping
from amd_lightning.training.tracking import LastCheckpoint, StopBetweenUpdates, Validate

log = logging.getLogger(__name__)


class Distilled(NamedTuple):
    """What the stage leaves beside the trained student.

    Attributes:
        validation: the last one.
        tokens: see `Outcome.tokens`.
        loggers: still open.
        seconds_before: of training before this process took it up.
        stopped_at: the update at which time was up; None where all were made.
    """

    validation: Mapping[str, float | None]
    tokens: dict[str, int]
    loggers: list[Logger]
    seconds_before: float
    stopped_at: int | None


def distil(
    spec: RunSpec,
    student: Policy,
    teacher: Policy,
    stored: Sequence[TokenisedExample],
    *,
    measure: Callable[[DistillationModule], Evaluation],
    teacher_wrote: Sequence[str],
    metric: str,
    pad_id: int,
    resume: Path | None,
    stopping: Stopping,
) -> Distilled:
    """Train the student against the teacher.

    Args:
        stored: the off-policy rows.
        measure: the student on the validation split.
        teacher_wrote: a response of the teacher's to each of its prompts, to be shown beside the student's.
        metric: of a validation, which `best.ckpt` goes by.
        resume: a checkpoint, or a folder of which the newest is taken; None begins at update 0.
        stopping: what may end it early.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        Interrupted: by a signal; the state is saved.
        Pruned: it was given up.
    """
    folder = spec.folder / FOLDER
    L.seed_everything(seed_for("distil", spec.seed), verbose=False)
    module = spec.make_module(student, teacher)
    checkpoint = _begin(module, resume)
    before = Remembered() if checkpoint is None else remembered_in(checkpoint)
    if ranks.rank() > 0:  # each rank draws from streams of its own; critics are drawn alike before
        L.seed_everything(seed_for(f"distil rank {ranks.rank()}", spec.seed), verbose=False)
    loggers: list[Logger] = []
    if ranks.rank() == 0:
        loggers = [csv_logger(spec.folder, before.rows, before.columns), *spec.loggers(before.wandb)]

    def validation() -> Mapping[str, float | None]:
        axes = {"update": module.update, **module.axes()}
        found = measure(module)
        show_validation(loggers, axes, found, teacher_wrote, spec.shown_responses)
        return found.metrics

    validate = Validate(
        spec.trainer.validate_every,
        validation,
        final=lambda: stopping.out_of_time,
        tell=lambda update, metrics: stopping.validated(update, metrics.get(metric)),
    )
    validate.latest = dict(before.validation)
    last = LastCheckpoint(
        folder,
        spec.trainer.checkpoint_every,
        keep=spec.trainer.keep_checkpoints,
        validate=validate,
        metric=metric,
        best=before.best,
    )
    if module.update < module.updates:
        with stopping.listening():
            fit(
                module,
                stored,
                stage="distil",
                spec=spec.distillation,
                trainer=spec.trainer,
                seed=seed_for("distil", spec.seed),
                pad_id=pad_id,
                folder=spec.folder,
                loggers=loggers,
                callbacks=[
                    StopBetweenUpdates(stopping),
                    *([] if checkpoint is None else [Restore(checkpoint)]),
                    validate,
                    last,
                    *(
                        [Profile(spec.folder / "profile")]
                        if spec.trainer.profile and ranks.rank() == 0
                        else []
                    ),
                ],
            )
    stopping.agree()
    if stopping.signum is not None:
        raise interruption(stopping.signum, module.update, module.updates)
    if stopping.given_up is not None and module.update < module.updates:
        close(loggers)
        raise Pruned(metric, stopping.given_up, module.update)
    return Distilled(
        validate.latest,
        dict(module.tokens_seen),
        loggers,
        before.seconds,
        module.update if stopping.out_of_time else None,
    )


def _begin(module: DistillationModule, resume: Path | None) -> Checkpoint | None:
    """Bring the module to where it was; None where it begins."""
    if resume is None:
        return None
    checkpoint = None
    if resume.is_dir() or not resume.exists():
        path = None
        if ranks.rank() == 0:  # which one is whole is for one rank to say
            path, checkpoint = newest(resume) or (None, None)
        path = ranks.of_first(path)
    else:
        path = resume
    if path is None:
        log.info("distil: no checkpoint to go on from, beginning at update 0")
        return None
    checkpoint = checkpoint or load(path)
    restore(module, checkpoint)
    log.info("distil: going on after update %d of %d (%s)", module.update, module.updates, path)
    return checkpoint
