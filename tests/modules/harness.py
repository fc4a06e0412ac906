"""Modules over tiny policies, trained for a few updates; what each optimizer step saw is recorded."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from amd_lightning.critics import (
    ClosedFormCritic,
    CriticHead,
    CriticPair,
    KernelCritic,
    LearnedCritic,
    QCritic,
    ResidualCritic,
    SignCritic,
    TanhCritic,
)
from amd_lightning.data.examples import TokenisedExample
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.divergence import DivergenceModule
from amd_lightning.modules.optim import Optimisation
from amd_lightning.objectives.divergences import DIVERGENCES
from amd_lightning.objectives.support import full_support, top_k_support
from amd_lightning.policies import Policy
from amd_lightning.ranks import whole
from amd_lightning.rollouts import BackendSampler
from amd_lightning.training.fitting import StageSpec, TrainerSpec, fit
from amd_lightning.types import Batch
from tests.helpers import PAD, VOCABULARY, t5, tokenised

CONSTANT = Optimisation(learning_rate=1e-2, schedule="constant")
CRITIC = Optimisation(learning_rate=3e-2, betas=(0.5, 0.99), schedule="constant")


def module(
    method: str,
    beta: float,
    *,
    student: Policy | None = None,
    teacher: Policy | None = None,
    updates: int = 3,
    micro_batch_size: int = 8,
    optimisation: Optimisation = CONSTANT,
    critic_optimisation: Optimisation = CRITIC,
    steps: int = 3,
    top_k: int | None = None,
    **settings: Any,
) -> DistillationModule:
    """`method` is a divergence, nll, or a kind of critic: residual, learned, closed_form, ..."""
    student = student or t5(1)
    teacher = teacher or t5(2, d_model=24)
    shared: dict[str, Any] = {
        "sampler": BackendSampler(6),
        "beta": beta,
        "normalise": "token",
        "optimisation": optimisation,
        "updates": updates,
        "micro_batch_size": micro_batch_size,
        "log_every": 1,
        **settings,
    }
    if method == "nll" or method in DIVERGENCES:
        return DivergenceModule(student, teacher, distance=method, **shared)
    torch.manual_seed(3)
    return AdversarialModule(
        student,
        teacher,
        critics=CriticPair(critic(method, student, teacher), critic(method, student, teacher)),
        support=partial(top_k_support, alpha=0.5, k=top_k) if top_k else partial(full_support, alpha=0.5),
        ridge=0.0 if method in ("linear", "tanh") else 2.0,
        critic_optimisation=critic_optimisation,
        critic_steps_per_update=steps,
        **shared,
    )


def critic(kind: str, student: Policy, teacher: Policy) -> QCritic:
    """A critic of rank 8 whose head has random weights, so that its value is not zero."""
    if kind == "closed_form":
        return ClosedFormCritic(alpha=0.5, ridge=2.0)
    if kind == "sign":
        return SignCritic()
    if kind == "kernel":
        return KernelCritic(teacher.token_embeddings)
    head = CriticHead(student.hidden_size, teacher.hidden_size, VOCABULARY, rank=8)
    nn.init.normal_(head.values.weight, std=0.3)
    if kind == "residual":
        return ResidualCritic(head, alpha=0.5, ridge=2.0)
    return TanhCritic(head) if kind == "tanh" else LearnedCritic(head)


class Step(NamedTuple):
    """What one optimizer step was asked for."""

    who: str
    loss: float
    norm: float
    gradients: dict[str, Tensor | None]
    """Of the whole module's parameters, after clipping."""
    parameters: dict[str, Tensor]
    """Of the whole module, after the step."""


class Trained(NamedTuple):
    """A trained module and what happened meanwhile."""

    module: DistillationModule
    steps: list[Step]
    logged: list[dict[str, float]]
    global_step: int

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: whole(value.detach()).clone() for name, value in self.module.named_parameters()}


class Recorder(Logger):
    """Keeps what is logged."""

    name, version = "recorder", ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(dict(metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class GlobalStep(Callback):
    """Remembers `trainer.global_step`."""

    value = -1

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.value = trainer.global_step


def answers(row: TokenisedExample, count: int) -> tuple[list[int], ...]:
    """Stand-ins for the teacher's samples: the row's response, cut ever shorter."""
    return tuple(row.response_ids[drop % len(row.response_ids) :] for drop in range(count))


class Accumulated(NamedTuple):
    """What one update's passes leave behind where no optimizer steps."""

    metrics: dict[str, float]
    gradients: dict[str, Tensor | None]
    """Of the whole module's parameters; the critics' from the last of their K times."""


def accumulate(some: DistillationModule, batch: Batch, diagnose: bool = False) -> Accumulated:
    """An update on a batch, without Lightning and without a step."""
    optimizers = [some.optimisation.optimizer(some.student.parameters())]
    if isinstance(some, AdversarialModule) and some.critics.learns:
        optimizers.append(some.critic_optimisation.optimizer(some.critics.parameters()))

    def no_step(optimizer: Any, network: nn.Module, loss: float, clip: float, who: str) -> float:
        return math.sqrt(
            sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None)
        )

    stand_ins: dict[str, Any] = {
        "manual_backward": lambda loss: loss.backward(),
        "_optimizers": lambda: optimizers,
        "_step": no_step,
    }
    for name, stand_in in stand_ins.items():
        object.__setattr__(some, name, stand_in)
    some.student.train()
    metrics = some._update(batch, diagnose)
    gradients = {
        name: None if value.grad is None else value.grad.clone() for name, value in some.named_parameters()
    }
    return Accumulated(metrics, gradients)


def train(
    some: DistillationModule,
    folder: Path,
    *,
    batch_size: int = 4,
    rows: int = 10,
    samples: int = 0,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    strategy: str = "ddp",
    sharded_teacher: bool = False,
    precision: str = "32-true",
) -> Trained:
    """Train on random rows, each with so many samples, for as many updates as the module's schedule has."""
    steps: list[Step] = []
    own_step = some._step

    def recording_step(optimizer: Any, network: nn.Module, loss: float, clip: float, who: str) -> float:
        norm = own_step(optimizer, network, loss, clip, who)
        gradients = {
            name: None if value.grad is None else whole(value.grad).clone()
            for name, value in some.named_parameters()
        }
        parameters = {name: whole(value.detach()).clone() for name, value in some.named_parameters()}
        steps.append(Step(who, loss, norm, gradients, parameters))
        return norm

    object.__setattr__(some, "_step", recording_step)
    recorder, counter = Recorder(), GlobalStep()
    torch.manual_seed(seed)
    fit(
        some,
        [row._replace(samples=answers(row, samples)) for row in tokenised(rows)],
        stage="test",
        spec=StageSpec(some.updates, batch_size, some.micro_batch_size, some.optimisation),
        trainer=TrainerSpec(
            "cpu", precision, 1, 0, 1, "off", strategy=strategy, sharded_teacher=sharded_teacher
        ),
        seed=seed,
        pad_id=PAD,
        folder=folder,
        loggers=[recorder],
        callbacks=[counter, *callbacks],
    )
    return Trained(some, steps, recorder.rows, counter.value)
