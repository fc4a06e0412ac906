"""Which actions an expectation over the vocabulary is taken on, kept small: [N, M] in place of [N, V].

A critic is trained for several steps against policies that do not move meanwhile. What the steps need of
the policies is fixed before the first: for M actions a state, the difference p − q, the ridge's mixture
and the log-ratio.

    full      every action, M = V: exact
    top_k     the k most likely actions under (p + q)/2, and all others lumped into one, the tail: exact
              for critics that do not tell tail actions apart, and a lower bound for the best critic
    sampled   m actions drawn from each policy: unbiased, with the variance of the draws

With p, q the next-token distributions of teacher and student, mixture = alpha·p + (1 − alpha)·q.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from amd_lightning.objectives.moments import log_ratio

Policies = tuple[Tensor, Tensor] | None
"""p and q [N, V] where somebody has them already: they are used up. None for what log p and log q say."""

TAIL = -1
"""The action that stands for all that are not among the k."""
GROUP = 8
"""Among how many actions the largest is looked for first, see `_largest`."""


class Support(NamedTuple):
    """M actions at each of N states, and what both policies say of them; constants to every critic."""

    actions: Tensor | None
    """[N, M] long, `TAIL` for the lumped rest; None where M = V and every action stands at its own index."""
    difference: Tensor
    """[N, M] (p − q)(a), or its sampled stand-in: E_{p−q} f is the sum of difference · f."""
    mixture: Tensor
    """[N, M] alpha·p + (1 − alpha)·q, or its stand-in: E_mixture f² is the sum of mixture · f²."""
    log_ratio: Tensor
    """[N, M] log p/q."""

    def at(self, rows: Any) -> "Support":
        """Some of the states."""
        return Support._make(None if part is None else part[rows] for part in self)

    def gap(self, critic: Tensor) -> Tensor:
        """Σ_a (p − q)(a) f(a). [N, M] -> [N]."""
        return (self.difference * critic).sum(-1)

    def penalty(self, critic: Tensor) -> Tensor:
        """½ Σ_a mixture(a) f(a)². [N, M] -> [N]."""
        return 0.5 * (self.mixture * critic.square()).sum(-1)


@torch.no_grad()
def full_support(log_p: Tensor, log_q: Tensor, alpha: float, policies: Policies = None) -> Support:
    """Every action. [N, V], [N, V] -> M = V."""
    p, q = policies or (log_p.exp(), log_q.exp())
    return Support(None, p - q, alpha * p + (1.0 - alpha) * q, log_ratio(log_p, log_q))


@torch.no_grad()
def top_k_support(log_p: Tensor, log_q: Tensor, alpha: float, k: int, policies: Policies = None) -> Support:
    """The k most likely actions under (p + q)/2 and the tail. [N, V], [N, V] -> M = k + 1.

    The tail's probabilities are the sums over all others; with k ≥ V − 1 this is `full_support`.
    """
    if k >= log_p.shape[-1] - 1:
        return full_support(log_p, log_q, alpha, policies)
    p, q = policies or (log_p.exp(), log_q.exp())
    actions = _largest(p + q, k)
    log_p = _with_tail(log_p.gather(-1, actions), actions, p)
    log_q = _with_tail(log_q.gather(-1, actions), actions, q)
    p, q = log_p.exp(), log_q.exp()
    actions = torch.cat([actions, actions.new_full((len(actions), 1), TAIL)], dim=-1)
    return Support(actions, p - q, alpha * p + (1.0 - alpha) * q, log_ratio(log_p, log_q))


@torch.no_grad()
def sampled_support(
    log_p: Tensor, log_q: Tensor, alpha: float, samples: int, policies: Policies = None
) -> Support:
    """`samples` actions drawn from the teacher and as many from the student. [N, V], [N, V] -> M = 2·samples.

    An action's difference is +1/samples where the teacher drew it and −1/samples where the student did,
    so that the gap is mean f over the teacher's draws less mean f over the student's.
    """
    p, q = policies or (log_p.exp(), log_q.exp())
    drawn = [torch.multinomial(policy, samples, replacement=True) for policy in (p, q)]
    actions = torch.cat(drawn, dim=-1)
    share = torch.full_like(actions, 1, dtype=log_p.dtype) / samples
    by_teacher = (torch.arange(2 * samples, device=actions.device) < samples).expand_as(actions)
    return Support(
        actions,
        torch.where(by_teacher, share, -share),
        torch.where(by_teacher, alpha * share, (1.0 - alpha) * share),
        log_ratio(log_p.gather(-1, actions), log_q.gather(-1, actions)),
    )


def _largest(values: Tensor, k: int) -> Tensor:
    """Where the k largest of each row are, in no order. [N, V] -> [N, k]; k < V.

    They lie in the k groups whose maxima are the largest, and finding groups first reads most values once.
    """
    count = values.shape[-1] // GROUP
    if count <= GROUP * k:  # too few groups for it to pay
        return values.topk(k, dim=-1, sorted=False).indices
    grouped, left = values[:, : GROUP * count], values.shape[-1] - GROUP * count
    groups = grouped.unflatten(-1, (GROUP, count)).amax(1).topk(k, dim=-1, sorted=False).indices
    members = torch.arange(0, GROUP * count, count, device=values.device)
    candidates = (groups.unsqueeze(-1) + members).flatten(1)
    if left:
        rest = torch.arange(GROUP * count, values.shape[-1], device=values.device)
        candidates = torch.cat([candidates, rest.expand(len(values), left)], dim=-1)
    return candidates.gather(-1, values.gather(-1, candidates).topk(k, dim=-1, sorted=False).indices)


def _with_tail(log_top: Tensor, actions: Tensor, probabilities: Tensor) -> Tensor:
    """[N, k] log-probabilities -> [N, k + 1], the last one that of everything else.

    `probabilities` is used up: the rest is summed, for 1 less the k is rounding where the rest is small.
    """
    rest = probabilities.scatter_(-1, actions, 0.0).sum(-1, keepdim=True)
    return torch.cat([log_top, rest.log()], dim=-1)
