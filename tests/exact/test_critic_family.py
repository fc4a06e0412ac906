"""One critic family contains the usual divergences: freeze f, and the moment gap has their gradient.

The states are fixed; the left side is the package's `moment_gap` under autograd, the right side the
gradient worked out by hand and, where the package has the divergence, its own function's.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from amd_lightning.objectives import divergences
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap

from . import formulas
from .testbed import World, random_logits

SKEW = 0.1


class Member(NamedTuple):
    """A critic, as a function of p and q, and the divergence whose gradient it has."""

    critic: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    package: Callable[[Tensor, Tensor], Tensor] | None = None


def tanh_half_log_ratio(p: Tensor, q: Tensor) -> Tensor:
    return closed_form_critic(log_ratio(p.log(), q.log()), alpha=0.5, ridge=2.0)


def skew_critic(p: Tensor, q: Tensor) -> Tensor:
    """The closed form is skew KL's critic, .9p/(.1p + .9q), scaled by (1 − skew)² ridge and shifted."""
    ridge = 1.0 / (1.0 - SKEW) ** 2
    return closed_form_critic(log_ratio(p.log(), q.log()), alpha=SKEW, ridge=ridge)


FAMILY = {
    "kl": Member(lambda p, q: p / q, lambda p, q: formulas.kl(p, q)[1], divergences.kl),
    "rkl": Member(lambda p, q: (p / q).log(), lambda p, q: formulas.rkl(p, q)[1], divergences.rkl),
    "2 kl(p, middle)": Member(tanh_half_log_ratio, lambda p, q: 2 * formulas.skew_kl(p, q, 0.5)[1]),
    "js": Member(lambda p, q: 0.5 * ((p + q) / (2 * q)).log(), lambda p, q: formulas.js(p, q)[1]),
    "skew kl": Member(
        lambda p, q: 0.9 * p / (0.1 * p + 0.9 * q), lambda p, q: formulas.skew_kl(p, q, SKEW)[1]
    ),
    "skew kl, closed form": Member(skew_critic, lambda p, q: formulas.skew_kl(p, q, SKEW)[1]),
    "2 tv": Member(
        lambda p, q: (p - q).sign(),
        lambda p, q: 2 * formulas.tv(p, q)[1],
        lambda log_p, log_q: 2 * divergences.tv(log_p, log_q),
    ),
}


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("world", [World(5, 3), World(5, 3, eos=0)], ids=["no_eos", "eos"])
def test_a_frozen_critic_has_the_gradient_of_a_divergence(name: str, world: World) -> None:
    member = FAMILY[name]
    log_p = random_logits(world, seed=0).log_softmax(-1)
    logits = random_logits(world, seed=1).requires_grad_()
    log_q = logits.log_softmax(-1)
    critic = member.critic(log_p.exp(), log_q.exp()).detach()
    (gradient,) = torch.autograd.grad(
        moment_gap(log_p.exp(), log_q.exp(), critic).sum(), logits, retain_graph=True
    )
    by_hand = member.gradient(log_p.exp(), log_q.detach().exp())
    torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-13)
    if member.package is not None:
        (packaged,) = torch.autograd.grad(member.package(log_p, log_q).sum(), logits)
        torch.testing.assert_close(packaged, by_hand, rtol=0, atol=1e-13)


def test_only_the_ridge_family_fades_out_as_the_student_arrives() -> None:
    """The sign critic pulls as hard one step away from the teacher as it did far off: it oscillates."""
    world = World(5, 3)
    teacher, direction = random_logits(world, seed=0), random_logits(world, seed=1)
    pull: dict[str, list[float]] = {"ridge": [], "sign": []}
    for distance in (1.0, 0.1, 0.01):
        p, q = teacher.softmax(-1), (teacher + distance * direction).softmax(-1)
        for name, critic in (("ridge", tanh_half_log_ratio(p, q)), ("sign", (p - q).sign())):
            pull[name].append(float(formulas.frozen_critic(p, q, critic)[1].norm()))
    assert pull["ridge"][1] / pull["ridge"][2] == pytest.approx(10, rel=0.1)
    assert pull["sign"][2] > 0.5 * pull["sign"][0]
