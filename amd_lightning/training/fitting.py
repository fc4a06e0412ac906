"""Fitting a module with Lightning: one trainer for every stage."""

import hashlib
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger

from amd_lightning import ranks
from amd_lightning.data.datamodule import DistillationDataModule
from amd_lightning.data.examples import TokenisedExample
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.optim import Optimisation
from amd_lightning.training.state import SyncedFile
from amd_lightning.training.strategies import trainer_options
from amd_lightning.training.tracking import StageBar, StageLines


class StageSpec(NamedTuple):
    """How long and with which optimizer a stage trains; 0 updates takes a loaded model as it is."""

    updates: int
    batch_size: int
    micro_batch_size: int
    optimisation: Optimisation


class TrainerSpec(NamedTuple):
    """Where and how precisely everything is trained, and how it is shown ("auto", "bar", "lines", "off").

    `strategy` ("ddp" or "sharded") is that of several ranks, see `strategies`.
    """

    accelerator: str
    precision: str
    log_every: int
    validate_every: int
    checkpoint_every: int
    progress: str
    keep_checkpoints: int = 2
    strategy: str = "ddp"
    sharded_teacher: bool = False
    profile: bool = False


def fit(
    module: DistillationModule,
    examples: Sequence[TokenisedExample],
    *,
    stage: str,
    spec: StageSpec,
    trainer: TrainerSpec,
    seed: int,
    pad_id: int,
    folder: Path,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train `module` up to update `spec.updates` on stored responses; one that was restored goes on.

    On several ranks each takes its part of every batch: the batch is what one process would see.

    Args:
        stage: what the progress is called.
        seed: of the data's order; the global random streams are the caller's.
        folder: for what Lightning writes by itself.
        loggers, callbacks: beside the progress.
    """
    data = DistillationDataModule(
        examples,
        batch_size=spec.batch_size,
        updates=spec.updates,
        seed=seed,
        pad_id=pad_id,
        start=module.update,
        share=ranks.share(spec.batch_size),
    )
    progress = _progress(stage, trainer.progress) if ranks.rank() == 0 else []
    options, environment = trainer_options(trainer.strategy, trainer.sharded_teacher)
    with warnings.catch_warnings():
        # One worker reads lists that are in memory; there is nothing to gain from more.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
        # One process needs no srun.
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
        # Of FSDP2, for any block that ends in a view; nobody writes into T5's (two ranks equal one).
        warnings.filterwarnings("ignore", message=".*FSDP2-wrapped module .* returned a view tensor.*")
        # Lightning's own call of a torch function.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        L.Trainer(
            accelerator=trainer.accelerator,
            precision=trainer.precision,  # type: ignore[arg-type]  # one of config's choices
            max_epochs=1,
            logger=list(loggers) or False,
            log_every_n_steps=1,  # the module logs by itself, as often as `log_every` says
            callbacks=[*progress, *callbacks],
            plugins=[SyncedFile(), *environment],
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, StageBar) for callback in progress),
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            **options,
        ).fit(module, datamodule=data)


def device_of(accelerator: str) -> torch.device:
    """Where policies respond and are measured outside of the trainer: this rank's CUDA device, or the CPU."""
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", ranks.local_rank()) if gpu else torch.device("cpu")


def seed_for(stage: str, seed: int) -> int:
    """A stage's own seed: stages with the same number do not share random streams."""
    return int.from_bytes(hashlib.sha256(f"{stage}:{seed}".encode()).digest()[:4])


def quiet_libraries() -> None:
    """Leave the console to this project: Lightning's banners and tips say nothing about a run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _progress(stage: str, kind: str) -> list[Callback]:
    if kind == "off":
        return []
    bar = kind == "bar" or (kind == "auto" and sys.stderr.isatty())
    return [StageBar(stage) if bar else StageLines(stage)]
