"""Fine-tuning of teacher and student start, from update 0 or from what a process that died left of it.

Checkpoints and metrics.csv lie beside the artifact that is being made, under its key: whoever makes it next,
the same run again or another one that waited for it, goes on there. They go when the artifact is complete.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from amd_lightning.data.examples import TokenisedExample
from amd_lightning.errors import CheckpointError, NonFiniteError
from amd_lightning.modules.base import DistillationModule
from amd_lightning.training.fitting import StageSpec, TrainerSpec, fit
from amd_lightning.training.metrics_file import csv_logger
from amd_lightning.training.preemption import interruption
from amd_lightning.training.state import Checkpoint, Remembered, Restore, newest, remembered_in, restore
from amd_lightning.training.stopping import Stopping
from amd_lightning.training.tracking import LastCheckpoint, StopBetweenUpdates

log = logging.getLogger(__name__)

METRICS = "metrics.csv"


def fine_tune(
    module: DistillationModule,
    examples: Sequence[TokenisedExample],
    *,
    stage: str,
    spec: StageSpec,
    trainer: TrainerSpec,
    seed: int,
    pad_id: int,
    folder: Path,
    unfinished: Path,
) -> float:
    """Train a module that is at update 0 to its last one; bit for bit what it would be if nothing befell it.

    Args:
        stage: what it is called.
        seed: of the data's order; the global random streams are the caller's.
        folder: gets metrics.csv.
        unfinished: where the state of training is kept, and looked for.

    Returns:
        The seconds of training before this process took it up.

    Raises:
        CheckpointError: what lies in `unfinished` is of another module.
        Interrupted: by a signal; the state is saved.
        NonFiniteError: it would come to the same again, so nothing is kept.
    """
    checkpoint = _begin(module, unfinished, stage)
    before = Remembered() if checkpoint is None else remembered_in(checkpoint)
    stopping = Stopping()  # a budget of time is distillation's
    if module.update < module.updates:
        try:
            with stopping.listening():
                fit(
                    module,
                    examples,
                    stage=stage,
                    spec=spec,
                    trainer=trainer,
                    seed=seed,
                    pad_id=pad_id,
                    folder=folder,
                    loggers=[csv_logger(unfinished, before.rows, before.columns)],
                    callbacks=[
                        StopBetweenUpdates(stopping),
                        *([] if checkpoint is None else [Restore(checkpoint)]),
                        LastCheckpoint(unfinished, trainer.checkpoint_every, keep=trainer.keep_checkpoints),
                    ],
                )
        except NonFiniteError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    if stopping.signum is not None:
        stopped = interruption(stopping.signum)
        stopped.words = (
            f"stopped after update {module.update} of {module.updates} of the {stage}; the next run that "
            f"needs it goes on from there ({unfinished})"
        )
        raise stopped
    if (unfinished / METRICS).is_file():
        shutil.copyfile(unfinished / METRICS, folder / METRICS)
    return before.seconds


def _begin(module: DistillationModule, unfinished: Path, stage: str) -> Checkpoint | None:
    """Bring the module to where it was; None where it begins."""
    found = newest(unfinished)
    if found is None:
        return None
    path, checkpoint = found
    try:
        restore(module, checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: remove {unfinished}, and the {stage} begins anew") from error
    log.info("%s: going on after update %d of %d (%s)", stage, module.update, module.updates, path)
    return checkpoint
