"""What each objective reaches with a student that cannot represent the teacher: exact optimisation.

    python -m experiments.exact.reach [--teachers 3] [--steps 1500] [--rank 2]

V = 6, T = 4, an EOS, a teacher without structure, and a student whose logits have a fixed rank. Objectives
and their gradients are sums over all responses, so nothing is sampled: what is left is what the objective
wants. Prints a table in Markdown; ratios to KL's, means over the teachers with their range.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from amd_lightning.objectives.divergences import js, kl, rkl, skew_kl, tv
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap
from tests.exact.testbed import World, low_rank_features, random_logits, visitation, worst_case_gap

RATE = 0.05
Distance = Callable[[Tensor, Tensor], Tensor]


class Objective(NamedTuple):
    """β Σ_t E_teacher D + (1 − β) Σ_t E_student D, the student's states fixed or not."""

    distance: Distance
    beta: float
    future: bool = False
    """γ = 1: the gradient also goes through how often the student visits a state."""


def ridge(alpha: float, ridge: float = 2.0) -> Distance:
    """The gap of the closed-form critic, frozen."""

    def distance(log_p: Tensor, log_q: Tensor) -> Tensor:
        critic = closed_form_critic(log_ratio(log_p, log_q).detach(), alpha, ridge)
        return moment_gap(log_p.exp(), log_q.exp(), critic)

    return distance


def twice_tv(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The gap of the sign critic."""
    return 2 * tv(log_p, log_q)


OBJECTIVES = {
    "kl, β = 1": Objective(kl, 1.0),
    "rkl, single-step, β = 0": Objective(rkl, 0.0),
    "rkl of responses, β = 0, γ = 1": Objective(rkl, 0.0, future=True),
    "js, β = .5": Objective(js, 0.5),
    "skew kl .1, β = .5": Objective(skew_kl, 0.5),
    "ridge α = .1, β = .5": Objective(ridge(0.1), 0.5),
    "ridge α = .5, β = .5": Objective(ridge(0.5), 0.5),
    "sign, β = .5": Objective(twice_tv, 0.5),
    "sign, β = .5, γ = 1": Objective(twice_tv, 0.5, future=True),
}


class Reached(NamedTuple):
    """Of a student."""

    gap: float
    """sup over |r| ≤ 1 of J(teacher) − J(student)."""
    tv_off: float
    """2TV, Σ_t E over the teacher's states."""
    tv_on: float
    kl: float
    """Of whole responses."""
    length: float
    """Of the student's responses, over that of the teacher's."""


def reached(world: World, log_p: Tensor, log_q: Tensor) -> Reached:
    """How far the two policies are apart."""
    p, q = log_p.exp(), log_q.exp()
    off, on, apart = visitation(world, p), visitation(world, q), twice_tv(log_p, log_q)
    of_responses = (off * kl(log_p, log_q)).sum()
    found = (worst_case_gap(world, p, q), (off * apart).sum(), (on * apart).sum(), of_responses)
    return Reached(*map(float, (*found, on.sum() / off.sum())))


def optimise(
    world: World, log_p: Tensor, features: Tensor, start: Tensor, objective: Objective, steps: int
) -> Tensor:
    """The student's log-probabilities [S, V] after so many steps of Adam, its rate falling to 0."""
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    off = visitation(world, log_p.exp())
    for _ in range(steps):
        log_q = (features @ weight).log_softmax(-1)
        visits = objective.beta * off
        if objective.beta < 1.0:
            on = visitation(world, log_q.exp())
            visits = visits + (1 - objective.beta) * (on if objective.future else on.detach())
        optimizer.zero_grad()
        (visits * objective.distance(log_p, log_q)).sum().backward()
        optimizer.step()
        schedule.step()
    return (features @ weight).log_softmax(-1).detach()


def rows(world: World, teachers: int, rank: int, steps: int) -> Iterator[list[str]]:
    """A row an objective."""
    settings = []
    for seed in range(teachers):
        log_p = random_logits(world, seed).log_softmax(-1)
        features = low_rank_features(world, seed, rank)
        common = torch.zeros(rank, world.vocabulary_size, dtype=log_p.dtype)
        settings.append((log_p, features, common))
    base: list[Reached] = []
    for name, objective in OBJECTIVES.items():
        found = [
            reached(world, log_p, optimise(world, log_p, features, start, objective, steps))
            for log_p, features, start in settings
        ]
        base = base or found
        cells = []
        for column in range(4):
            ratios = [one[column] / other[column] for one, other in zip(found, base, strict=True)]
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if column == 0 else ""
            cells.append(f"{sum(ratios) / len(ratios):.2f}{spread}")
        yield [name, *cells, f"{sum(one.length for one in found) / len(found):.2f}"]


def main() -> None:
    """The command."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    asked.add_argument("--teachers", type=int, default=3)
    asked.add_argument("--steps", type=int, default=1500, help="of Adam")
    asked.add_argument("--rank", type=int, default=2, help="of the student's logits")
    options = asked.parse_args()
    torch.set_num_threads(1)
    head = ["", "worst-case gap", "2TV off", "2TV on", "KL of responses", "length"]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for row in rows(World(6, 4, eos=0), options.teachers, options.rank, options.steps):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
