"""Distances on k + 1 events in place of V actions: the teacher's k likeliest actions, and all others as one.

What is kept of a teacher that is not asked again. With P, Q the two distributions on these events, any
f-divergence (kl, rkl, js, tv, the skew ones, jeffreys, and the gap of the closed-form and the sign critic)
obeys D(P‖Q) ≤ D(p‖q), the data-processing inequality (Csiszár 1967); they are equal where the policies
agree on the proportions within the rest, and always where k reaches the vocabulary. For tv the difference is
at most the teacher's mass in the rest. akl and alpha_beta are no f-divergences: near, but no bound.
"""

import torch
from torch import Tensor


def likeliest(log_p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest actions; log-probabilities of these and of the rest. [N, V] -> [N, k], [N, k + 1].

    Where k reaches V, every action is one of them and there is no rest: [N, V] twice.
    """
    vocabulary = log_p.shape[-1]
    top, actions = log_p.topk(min(k, vocabulary), dim=-1)
    if k >= vocabulary:
        return actions, top
    return actions, torch.cat([top, _rest(log_p, actions)], dim=-1)


def coarsened(log_q: Tensor, actions: Tensor) -> Tensor:
    """Log-probabilities of these actions and of the rest, differentiable. [N, V], [N, k] -> [N, k + 1].

    [N, V] where k = V. The actions of a row differ from each other.
    """
    top = log_q.gather(-1, actions)
    if actions.shape[-1] == log_q.shape[-1]:
        return top
    return torch.cat([top, _rest(log_q, actions)], dim=-1)


def _rest(log_probs: Tensor, actions: Tensor) -> Tensor:
    """log Σ of everything else, summed rather than 1 less the k: the rest may be below rounding. [N, 1]."""
    return log_probs.scatter(-1, actions, -torch.inf).logsumexp(-1, keepdim=True)
