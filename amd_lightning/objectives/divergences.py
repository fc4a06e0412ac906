"""Distances between the next-token distributions of teacher and student, one value a state.

Every function takes log-probabilities [N, V] (`log_p` the teacher's, `log_q` the student's) and
returns [N], in nats where it is an entropy. Gradients flow into whichever argument requires them.
Impossible actions (log-probability −inf) contribute their limit, never a NaN.

    name    value                      0 at equality   source
    kl      KL(teacher‖student)        yes             Hinton et al. 2015 (KD)
    rkl     KL(student‖teacher)        yes             Gu et al. 2024 (MiniLLM), single-step term
    tv      ½ Σ_a |p − q|              yes             Wen et al. 2023 (f-distill)
    nll     −log q(a)                  no              maximum likelihood (SFT, SeqKD)
"""

import torch
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(teacher‖student) = Σ_a p (log p − log q): mode-covering. [N, V], [N, V] -> [N].

    Infinite where the student rules out an action that the teacher takes.
    """
    return _expectation(log_p, log_q)


def rkl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(student‖teacher) = Σ_a q (log q − log p): mode-seeking. [N, V], [N, V] -> [N]."""
    return _expectation(log_q, log_p)


def tv(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation ½ Σ_a |p − q|, between 0 and 1. [N, V], [N, V] -> [N].

    Twice this is the moment gap of the best critic bounded by 1 (identity I5).
    """
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def nll(log_q: Tensor, actions: Tensor) -> Tensor:
    """−log q(action): the negative log-likelihood of one action a state. [N, V], [N] -> [N]."""
    return -log_q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def _expectation(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Σ a (log a − log b), taking 0 · anything as 0, also where a is only too small to represent."""
    a = log_a.exp()
    difference = torch.where(a == 0.0, 0.0, log_a - log_b)
    return (a * difference).sum(-1)
