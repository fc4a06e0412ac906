"""Distances that know their own gradient, in a few passes over [N, V].

What `divergences.py` and `moments.py` say is what is meant. Autograd would walk back through each of their
dozen operations and keep a tensor for most; here value and gradient in log q come out of one forward pass,
and one [N, V] is kept. log p is a constant. With m = s·p + (1 − s)·q, but for skew_rkl's:

    name        ∂/∂ log q(a)
    kl          −p
    rkl         q log q/p + q
    js          q log(q/m) / (4s)
    tv          −½ q sign(p − q)
    skew_kl     −(1 − s) p q/m
    skew_rkl    q log q/m + (1 − s) p q/m,   m = s·q + (1 − s)·p
    moment gap  −q f
"""

from collections.abc import Callable
from functools import partial
from math import log
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from amd_lightning.objectives.divergences import DIVERGENCES
from amd_lightning.objectives.moments import log_ratio, moment_gap

Form = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""log p, log q [N, V] -> the distance [N] and its gradient in log q [N, V], two new tensors."""


def divergence(name: str, log_p: Tensor, log_q: Tensor, **parameters: float) -> Tensor:
    """`DIVERGENCES[name]`, with its gradient known where log q alone requires one. [N, V], [N, V] -> [N].

    Can be differentiated once, and walked back through once.

    ValueError: as `DIVERGENCES[name]`.
    """
    if name in FORMS and _student_alone(log_p, log_q):
        DIVERGENCES[name](log_p[:0], log_q[:0], **parameters)  # which refuses what has no meaning
        return _Known.apply(partial(FORMS[name], **parameters), log_p, log_q)
    return DIVERGENCES[name](log_p, log_q, **parameters)


def gap(p: Tensor, q: Tensor, log_q: Tensor, critic: Tensor) -> Tensor:
    """`moments.moment_gap`, differentiable in log q, whose exponential q is. [N, V] four times -> [N].

    p, q and the critic are constants.
    """
    p, q, critic = p.detach(), q.detach(), critic.detach()
    if torch.is_grad_enabled() and log_q.requires_grad:
        return _Known.apply(lambda *_: (moment_gap(p, q, critic), (q * critic).neg_()), p, log_q)
    return moment_gap(p, q, critic)


def _student_alone(log_p: Tensor, log_q: Tensor) -> bool:
    return torch.is_grad_enabled() and log_q.requires_grad and not log_p.requires_grad


class _Known(torch.autograd.Function):
    """A distance whose gradient is there with its value."""

    @staticmethod
    def forward(ctx: Any, form: Form, log_p: Tensor, log_q: Tensor) -> Tensor:
        value, gradient = form(log_p, log_q)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return None, None, gradient.mul_(upstream.unsqueeze(-1))  # nobody else holds it


def _kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    return _excess(p, log_p, log_q).mul_(p).sum(-1), p.neg_()


def _rkl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    terms = _excess(q, log_q, log_p).mul_(q)
    return terms.sum(-1), q.add_(terms)


def _js(log_p: Tensor, log_q: Tensor, *, js_mixture: float = 0.5) -> tuple[Tensor, Tensor]:
    if not 0.0 < js_mixture < 1.0:
        return _quarter(*(_rkl if js_mixture else _kl)(log_p, log_q))
    p_over_m, q_over_m, _ = _over_mixture(log_p, log_q, js_mixture)
    # The slopes of the two logarithms cancel: what is left is the student's part of the value itself.
    gradient = q_over_m.mul_(log_q.exp()).mul_(1.0 / (4.0 * js_mixture))
    p_part = p_over_m.mul_(log_p.exp()).mul_(1.0 / (4.0 * (1.0 - js_mixture)))
    return p_part.add_(gradient).sum(-1), gradient


def _tv(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    difference = log_p.exp().sub_(q)
    gradient = q.mul_(difference.sign()).mul_(-0.5)
    return difference.abs_().sum(-1).mul_(0.5), gradient


def _skew_kl(log_p: Tensor, log_q: Tensor, *, skew: float = 0.1) -> tuple[Tensor, Tensor]:
    if skew == 0.0:
        return _kl(log_p, log_q)
    p_over_m, _, both = _over_mixture(log_p, log_q, skew)
    p = log_p.exp()
    gradient = (p if skew <= 0.5 else log_q.exp()).div(both).mul_(skew - 1.0)
    return p_over_m.mul_(p).sum(-1), gradient


def _skew_rkl(log_p: Tensor, log_q: Tensor, *, skew: float = 0.1) -> tuple[Tensor, Tensor]:
    if skew == 0.0:
        return _rkl(log_p, log_q)
    q_over_m, _, both = _over_mixture(log_q, log_p, skew)
    q = log_q.exp()
    terms = q_over_m.mul_(q)
    # p q/m is q over what `both` is for a small share, and p over it for a large one.
    gradient = (q if skew <= 0.5 else log_p.exp()).div(both).mul_(1.0 - skew)
    return terms.sum(-1), gradient.add_(terms)


FORMS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "kl": _kl,
    "rkl": _rkl,
    "js": _js,
    "tv": _tv,
    "skew_kl": _skew_kl,
    "skew_rkl": _skew_rkl,
}
"""The divergences of this file; autograd goes through the others."""


def _quarter(value: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return value.mul_(0.25), gradient.mul_(0.25)


def _excess(a: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """log a − log b, 0 where a is 0 or too small to represent; a new tensor."""
    # A minimum is read faster than a comparison; elsewhere than on the CPU, asking would wait.
    if a.is_cpu and a.numel() and a.amin().item() > 0.0:
        return log_a - log_b
    return torch.where(a == 0.0, 0.0, log_a - log_b)


def _over_mixture(log_a: Tensor, log_b: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """log a/m, log b/m and m over the policy with the larger share (m/b up to ½, then m/a), where
    m = share·a + (1 − share)·b, 0 < share < 1. The limits are those of `divergences._log_over_mixture`."""
    limit = 0.5 * log(torch.finfo(log_a.dtype).max)
    ratio = log_ratio(log_a, log_b).clamp_(-limit, limit)
    if share <= 0.5:
        excess = torch.expm1(ratio).mul_(share)
        over_b = excess.log1p()
        return ratio.sub_(over_b), over_b.neg_(), excess.add_(1.0)
    excess = torch.expm1(-ratio).mul_(1.0 - share)
    over_a = excess.log1p()
    return over_a.neg(), ratio.add_(over_a).neg_(), excess.add_(1.0)
