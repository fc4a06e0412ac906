"""Distances between student and teacher on fixed held-out states, for whatever was trained."""

from collections.abc import Iterable

import torch

from amd_lightning.objectives.divergences import kl, rkl, tv
from amd_lightning.policies import Policy
from amd_lightning.types import Rollout

DISTANCES = {"tv": tv, "kl": kl, "rkl": rkl}


@torch.no_grad()
def mean_distances(student: Policy, teacher: Policy, rollouts: Iterable[Rollout]) -> dict[str, float]:
    """Total variation, KL and reverse KL between teacher and student, means over response tokens.

    Args:
        rollouts: the held-out states; data- or teacher-written ones give the off-policy distance,
            ones written by `student` the on-policy distance.

    Returns:
        "tv" in 0..1, "kl" and "rkl" in nats per token; student and teacher are left in evaluation mode.
    """
    student.eval()
    teacher.eval()
    device = next(student.parameters()).device
    sums = dict.fromkeys(DISTANCES, 0.0)
    count = 0
    for rollout in rollouts:
        rollout = rollout.to(device)
        log_p = teacher.log_probs(teacher.hidden(rollout))
        log_q = student.log_probs(student.hidden(rollout))
        for name, distance in DISTANCES.items():
            sums[name] += float(distance(log_p, log_q).double().sum())
        count += len(log_p)
    return {name: total / count for name, total in sums.items()}
