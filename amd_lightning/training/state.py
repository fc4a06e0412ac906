"""The state of training on disk: checkpoints that are whole or not there, and what brings a module back.

A checkpoint is Lightning's file (what learns, optimizers, schedules), with the module's counters and replayed
responses, and under `GOING_ON` the random streams and what the callbacks remember. The frozen teacher and
frozen weights of the student are not in it. On reading, the checksums of its zip archive are compared.
"""

import logging
import os
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from amd_lightning import ranks
from amd_lightning.errors import CheckpointError
from amd_lightning.training.checkpoint_files import all_last

log = logging.getLogger(__name__)

GOING_ON = "going_on"
FORMAT = 1
"""Stands in every checkpoint; raised when it comes to hold something else."""

Checkpoint = dict[str, Any]


# -- files -------------------------------------------------------------------------------------------


class SyncedFile(TorchCheckpointIO):
    """Writes a checkpoint to its file and syncs it; Lightning's own writer goes by memory and /tmp."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def load(path: Path) -> Checkpoint:
    """A checkpoint, on the CPU.

    Raises:
        CheckpointError: it is damaged, or of a version that a run cannot go on from.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, UnpicklingError) as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({' '.join(str(error).split())[:120]})"
        ) from error
    if checkpoint.get(GOING_ON, {}).get("format") != FORMAT:
        raise CheckpointError(f"the checkpoint {path} is of another version of amd_lightning")
    return checkpoint


def newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that is whole, with a warning for each that is not; None where there is none."""
    for path in all_last(folder):
        try:
            return path, load(path)
        except CheckpointError as error:
            log.warning("%s; taking the one before it", error)
    return None


# -- random streams ------------------------------------------------------------------------------------


def random_streams() -> dict[str, Any]:
    """The global streams of Python, numpy, torch and this process's GPU, as tensors and plain values.

    Of no other GPU: a run may go on where fewer are seen.
    """
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {"key": key, "pos": int(numpy["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
    }


def set_random_streams(streams: Mapping[str, Any]) -> None:
    """What `random_streams` gave."""
    random.setstate(streams["python"])
    numpy = streams["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {"key": key, "pos": numpy["state"]["pos"]}})
    torch.set_rng_state(streams["torch"])
    if streams["cuda"] and torch.cuda.is_initialized():
        every = streams["cuda"]  # one of each GPU that was seen, in checkpoints of earlier versions
        torch.cuda.set_rng_state(every[min(torch.cuda.current_device(), len(every) - 1)])


# -- a module ------------------------------------------------------------------------------------------


class Remembered(NamedTuple):
    """What a checkpoint holds beside the module, its optimizers and the random streams.

    Attributes:
        validation: the last one's metrics.
        best: the best value of the metric that `best.ckpt` goes by; None before the first.
        rows, columns: of metrics.csv.
        wandb: the W&B run's id; None without one.
        seconds: of training so far.
    """

    validation: Mapping[str, float | None] = {}
    best: float | None = None
    rows: int = 0
    columns: tuple[str, ...] = ()
    wandb: str | None = None
    seconds: float = 0.0


def add_state(checkpoint: Checkpoint, module: L.LightningModule, remembered: Remembered) -> None:
    """Complete Lightning's checkpoint: random streams (of every rank) and what is remembered; frozen weights
    go."""
    for name in _frozen(module):
        checkpoint["state_dict"].pop(name, None)
    plain = {**remembered._asdict(), "validation": dict(remembered.validation)}
    own, *others = ranks.gathered([random_streams()])
    checkpoint[GOING_ON] = {"format": FORMAT, "random": own, "remembered": plain}
    if others:
        checkpoint[GOING_ON]["random_of_others"] = others


def remembered_in(checkpoint: Checkpoint) -> Remembered:
    """What `add_state` was given."""
    return Remembered(**checkpoint[GOING_ON]["remembered"])


def _frozen(module: L.LightningModule) -> set[str]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {name for name, value in parameters if not value.requires_grad}


def restore(module: L.LightningModule, checkpoint: Checkpoint) -> None:
    """Bring back weights and counters; `Restore` does the rest once there are optimizers.

    Raises:
        CheckpointError: it is another model's.
    """
    try:
        missing, unknown = module.load_state_dict(checkpoint["state_dict"], strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint is of other models ({str(error).splitlines()[-1]})") from error
    if unknown or set(missing) - _frozen(module):
        wrong = [*unknown, *missing][0]
        raise CheckpointError(f"the checkpoint is of other models (they differ in {wrong})")
    module.on_load_checkpoint(checkpoint)


class Restore(Callback):
    """Brings back optimizers and schedules, and the random streams right before the first update.

    Not earlier: what Lightning sets up in between draws from them.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint: Checkpoint | None = checkpoint

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._checkpoint is not None
        trainer.strategy.load_optimizer_state_dict(self._checkpoint)
        schedules = zip(trainer.lr_scheduler_configs, self._checkpoint["lr_schedulers"], strict=True)
        for config, state in schedules:
            config.scheduler.load_state_dict(state)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._checkpoint is not None:
            self._set_random_streams(self._checkpoint[GOING_ON])
            self._checkpoint = None  # it holds as much as both networks and their optimizers

    def _set_random_streams(self, going_on: Mapping[str, Any]) -> None:
        streams = [going_on["random"], *going_on.get("random_of_others", [])]
        if len(streams) != ranks.world_size() and ranks.rank() == 0:
            log.warning(
                "the checkpoint is of %d processes and %d go on: the student's responses are drawn otherwise "
                "than in a run that was never interrupted",
                len(streams),
                ranks.world_size(),
            )
        if ranks.rank() < len(streams):
            set_random_streams(streams[ranks.rank()])
