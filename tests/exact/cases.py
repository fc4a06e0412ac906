"""A teacher, a student and a reward or critic on an enumerated world, and what is asked of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from amd_lightning.objectives.divergences import tv
from amd_lightning.objectives.moments import moment_gap

from .testbed import World, expected_return, random_logits, visitation


class Case(NamedTuple):
    """A teacher, a student and a reward (or critic) on one world."""

    world: World
    p: Tensor
    q: Tensor
    reward: Tensor

    @property
    def gap(self) -> float:
        """J(teacher) − J(student)."""
        teacher, student = (expected_return(self.world, policy, self.reward) for policy in (self.p, self.q))
        return float(teacher - student)

    def off(self, per_state: Tensor) -> float:
        """Σ_t E over the teacher's states."""
        return float((visitation(self.world, self.p) * per_state).sum())

    def on(self, per_state: Tensor) -> float:
        """Σ_t E over the student's states."""
        return float((visitation(self.world, self.q) * per_state).sum())


def make_case(world: World, seed: int, reward_bound: float | None = None) -> Case:
    p, q = random_logits(world, seed).softmax(-1), random_logits(world, seed + 1).softmax(-1)
    reward = random_logits(world, seed + 2)
    return Case(world, p, q, reward if reward_bound is None else reward_bound * torch.tanh(reward))


def student_gradient(world: World, seed: int, objective: str, critic: Tensor | None = None) -> Tensor:
    """Autograd through everything, the states' distribution included, w.r.t. the student's logits [S, V]."""
    p = random_logits(world, seed).softmax(-1)
    logits = random_logits(world, seed + 1).requires_grad_()
    q = logits.softmax(-1)
    visits = visitation(world, p if objective.endswith("off") else q)
    if critic is None:
        per_state = 2 * tv(p.log(), q.log())
    else:
        per_state = moment_gap(p, q, critic)
    return torch.autograd.grad((visits * per_state).sum(), logits)[0]
