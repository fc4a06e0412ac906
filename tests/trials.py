"""Trainings of seconds that tests kill, stop and take up again, and what they leave."""

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from amd_lightning.evaluation.harness import Evaluation
from amd_lightning.modules.adaptive import AdaptiveBeta
from amd_lightning.modules.base import DistillationModule
from amd_lightning.policies import Policy
from amd_lightning.replay import ReplayBuffer, Reuse
from amd_lightning.rollouts import BackendSampler
from amd_lightning.training import state as training_state
from amd_lightning.training.distillation import Distilled, distil
from amd_lightning.training.fitting import StageSpec, TrainerSpec
from amd_lightning.training.metrics_file import Writer
from amd_lightning.training.state import load
from amd_lightning.training.stopping import Stopping
from tests.helpers import PAD, t5, tokenised
from tests.modules.harness import CONSTANT, module

UPDATES = 6


class Killed(BaseException):
    """What kill -9 would be, in the process of the test."""


METHODS: dict[str, Callable[[], dict[str, Any]]] = {
    "residual": lambda: {"replay": ReplayBuffer(12, refresh=0.5, decay=True, shuffle=True, seed=3)},
    "rkl": lambda: {"replay": Reuse(3), "adaptive": AdaptiveBeta(0.2, step=0.3, tolerance=0.0)},
}


class Trial:
    """A distillation of six updates in a folder; each attempt goes on from what the one before left."""

    def __init__(self, folder: Path, method: str = "residual", updates: int = UPDATES) -> None:
        self.folder = folder
        self.method = method
        self.updates = updates
        self.made: DistillationModule | None = None
        self.keep = 2

    def _make(self, student: Policy, teacher: Policy) -> DistillationModule:
        self.made = module(
            self.method,
            0.5,
            student=student,
            teacher=teacher,
            updates=self.updates,
            log_every=2,
            **METHODS[self.method](),
        )
        return self.made

    def measure(self, some: DistillationModule) -> Evaluation:
        """Best at update 4; draws from a stream, as a metric might."""
        random.random()
        weight = float(next(some.student.parameters()).detach().sum())
        return Evaluation({"kl_off": abs(some.update - 4.0) + weight / 1e6, "rouge_l": 1.0}, [])

    def attempt(self, stopping: Stopping | None = None) -> Distilled:
        spec: Any = SimpleNamespace(
            folder=self.folder,
            seed=0,
            make_module=self._make,
            trainer=TrainerSpec("cpu", "32-true", 2, 2, 2, "off", self.keep),
            distillation=StageSpec(self.updates, 4, 2, CONSTANT),
            loggers=lambda run_id: [],
            shown_responses=0,
        )
        self.folder.mkdir(exist_ok=True)
        return distil(
            spec,
            t5(1, dropout_rate=0.1),
            t5(2, d_model=24),
            tokenised(10),
            measure=self.measure,
            teacher_wrote=[],
            metric="kl_off",
            pad_id=PAD,
            resume=self.folder / "checkpoints",
            stopping=stopping or Stopping(),
        )

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


class Left(NamedTuple):
    """What a finished trial leaves."""

    weights: dict[str, torch.Tensor]
    curve: list[list[str]]
    last: dict[str, Any]
    best: dict[str, Any]


def left(trial: Trial) -> Left:
    assert trial.made is not None
    with (trial.folder / "metrics.csv").open(newline="") as file:
        table = list(csv.reader(file))
    clocks = [place for place, name in enumerate(table[0]) if name.startswith("time/")]
    for row in table[1:]:
        for place in clocks:
            row[place] = ""
    return Left(
        {name: value.clone() for name, value in trial.made.state_dict().items()},
        table,
        *(content(trial.checkpoints / name) for name in ("last.ckpt", "best.ckpt")),
    )


def content(path: Path) -> dict[str, Any]:
    """A checkpoint without its clocks, and without what Lightning counts by itself."""
    found = load(path)
    found[training_state.GOING_ON]["remembered"].pop("seconds")
    for name in ("seconds", "global_step", "loops", "epoch"):
        found.pop(name)
    return found


def same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, however nested."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            same(mine, theirs, f"{where}[{place}]")
    else:
        assert one == other, where


class Clock:
    """Counts everything at which a kill would leave something half done, and kills at its turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.at: int | None = None
        self.names: list[str] = []
        for owner, name in (
            (DistillationModule, "_step"),  # of the student, and K of the critics
            (BackendSampler, "__call__"),
            (torch, "save"),
            (os, "fsync"),
            (Path, "replace"),
            (Writer, "save"),
        ):
            monkeypatch.setattr(owner, name, self._ticking(getattr(owner, name), name))

    def _ticking(self, own: Any, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            self.names.append(name)
            if self.count == self.at:
                if name == "save" and len(arguments) > 1:  # torch's: half of the file is there
                    arguments[1].write(b"PK\x03\x04 and no more")
                    arguments[1].flush()
                raise Killed(name)
            return own(*arguments, **named)

        return call


def progress(path: Path) -> int:
    return int(load(path)["progress"]["update"])
