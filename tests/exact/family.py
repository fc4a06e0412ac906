"""The frozen critics whose moment gap has the gradient of a divergence, each with that divergence.

A table that the tests hold and `experiments/exact` prints.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from amd_lightning.objectives import divergences
from amd_lightning.objectives.moments import closed_form_critic, log_ratio

from . import formulas

SKEW = 0.1

Function = Callable[[Tensor, Tensor], Tensor]


class Member(NamedTuple):
    """A critic, as a function of p and q, and the divergence whose gradient it has."""

    critic: Function
    by_hand: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Of p and q: value and gradient."""
    package: Function
    """Of log p and log q: value."""
    factor: float = 1.0
    """The critic has this times the divergence's gradient."""


def tanh_half_log_ratio(p: Tensor, q: Tensor) -> Tensor:
    return closed_form_critic(log_ratio(p.log(), q.log()), alpha=0.5, ridge=2.0)


def skew_critic(p: Tensor, q: Tensor) -> Tensor:
    """The closed form is skew KL's critic, .9p/(.1p + .9q), scaled by (1 − skew)² ridge and shifted."""
    ridge = 1.0 / (1.0 - SKEW) ** 2
    return closed_form_critic(log_ratio(p.log(), q.log()), alpha=SKEW, ridge=ridge)


def js_critic(p: Tensor, q: Tensor, mixture: float) -> Tensor:
    return ((mixture * p + (1 - mixture) * q) / q).log() / (4 * mixture)


def skew_rkl_critic(p: Tensor, q: Tensor) -> Tensor:
    m = 0.1 * q + 0.9 * p
    return (m / q).log() + 0.1 * q / m


def akl_critic(p: Tensor, q: Tensor, head: float) -> Tensor:
    share = formulas.akl_share(p, q, head).unsqueeze(-1)
    return share * p / q + (1 - share) * (p / q).log()


def alpha_beta_critic(p: Tensor, q: Tensor, alpha: float, beta: float) -> Tensor:
    """Between log p/q at alpha 0 and p/q at alpha 1, weighed by the student's probability."""
    return q ** (alpha + beta - 1) * ((p / q) ** alpha - 1) / alpha


def js_member(mixture: float) -> Member:
    return Member(
        partial(js_critic, mixture=mixture),
        partial(formulas.js, mixture=mixture),
        partial(divergences.js, js_mixture=mixture),
    )


def akl_member(head: float) -> Member:
    return Member(
        partial(akl_critic, head=head),
        partial(formulas.akl, head=head),
        partial(divergences.akl, akl_head=head),
    )


def alpha_beta_member(alpha: float, beta: float, critic: Function | None = None) -> Member:
    return Member(
        critic or partial(alpha_beta_critic, alpha=alpha, beta=beta),
        partial(formulas.alpha_beta, alpha=alpha, beta=beta),
        partial(divergences.alpha_beta, ab_alpha=alpha, ab_beta=beta),
    )


MIDDLE = partial(formulas.skew_kl, skew=0.5), partial(divergences.skew_kl, skew=0.5)
SKEW_KL = partial(formulas.skew_kl, skew=SKEW), partial(divergences.skew_kl, skew=SKEW)

FAMILY = {
    "kl": Member(lambda p, q: p / q, formulas.kl, divergences.kl),
    "rkl": Member(lambda p, q: (p / q).log(), formulas.rkl, divergences.rkl),
    "2 kl(p, middle)": Member(tanh_half_log_ratio, *MIDDLE, factor=2.0),
    "js": Member(
        lambda p, q: 0.5 * ((p + q) / (2 * q)).log(), formulas.js, partial(divergences.js, js_mixture=0.5)
    ),
    "js .1": js_member(0.1),
    "js .9": js_member(0.9),
    "skew kl": Member(lambda p, q: 0.9 * p / (0.1 * p + 0.9 * q), *SKEW_KL),
    "skew kl, closed form": Member(skew_critic, *SKEW_KL),
    "skew rkl": Member(
        skew_rkl_critic,
        partial(formulas.skew_rkl, skew=SKEW),
        partial(divergences.skew_rkl, skew=SKEW),
    ),
    "jeffreys": Member(lambda p, q: p / q + (p / q).log(), formulas.jeffreys, divergences.jeffreys),
    "akl .5": akl_member(0.5),
    "akl .9": akl_member(0.9),
    "alpha .2, beta .7": alpha_beta_member(0.2, 0.7),
    "alpha .7, beta .2": alpha_beta_member(0.7, 0.2),
    "alpha .5, beta 0": alpha_beta_member(0.5, 0.0),
    "alpha 0, beta .5": alpha_beta_member(0.0, 0.5, lambda p, q: q**-0.5 * (p / q).log()),
    "half the squared distance": alpha_beta_member(1.0, 1.0, lambda p, q: p - q),
    "2 tv": Member(lambda p, q: (p - q).sign(), formulas.tv, divergences.tv, factor=2.0),
}
