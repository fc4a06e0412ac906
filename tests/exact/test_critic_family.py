"""One critic family contains the usual divergences: freeze f, and the moment gap has their gradient.

The states are fixed; the left side is the package's `moment_gap` under autograd, the right side the
gradient worked out by hand and, where the package has the divergence, its own function's.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from amd_lightning.objectives import divergences
from amd_lightning.objectives.moments import moment_gap

from . import formulas
from .family import FAMILY, tanh_half_log_ratio
from .testbed import World, random_logits

WORLDS = pytest.mark.parametrize("world", [World(5, 3), World(5, 3, eos=0)], ids=["no_eos", "eos"])


@pytest.mark.parametrize("name", FAMILY)
@WORLDS
def test_a_frozen_critic_has_the_gradient_of_a_divergence(name: str, world: World) -> None:
    member = FAMILY[name]
    log_p = random_logits(world, seed=0).log_softmax(-1)
    logits = random_logits(world, seed=1).requires_grad_()
    log_q = logits.log_softmax(-1)
    critic = member.critic(log_p.exp(), log_q.exp()).detach()
    (gradient,) = torch.autograd.grad(
        moment_gap(log_p.exp(), log_q.exp(), critic).sum(), logits, retain_graph=True
    )
    value, by_hand = member.by_hand(log_p.exp(), log_q.detach().exp())
    torch.testing.assert_close(gradient, member.factor * by_hand, rtol=0, atol=1e-13)
    packaged = member.package(log_p, log_q)
    torch.testing.assert_close(packaged, value, rtol=0, atol=1e-13)
    (gradient,) = torch.autograd.grad(packaged.sum(), logits)
    torch.testing.assert_close(gradient, by_hand, rtol=0, atol=1e-13)


def test_every_divergence_of_the_package_is_in_the_family() -> None:
    packaged = {getattr(member.package, "func", member.package) for member in FAMILY.values()}
    assert packaged == set(divergences.DIVERGENCES.values())


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


def policies(rows: int = 8, actions: int = 50) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a teacher and a student."""
    logits = torch.randn(2, rows, actions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1)
    return log_p, log_q


def test_the_ends_of_the_jensen_shannon_family_are_limits() -> None:
    """Also in float32, where a difference of KLs to the mixture would be rounding and nothing else."""
    log_p, log_q = policies()
    forward, reverse = divergences.kl(log_p, log_q) / 4, divergences.rkl(log_p, log_q) / 4
    torch.testing.assert_close(divergences.js(log_p, log_q, js_mixture=0.0), forward, rtol=1e-14, atol=0)
    torch.testing.assert_close(divergences.js(log_p, log_q, js_mixture=1.0), reverse, rtol=1e-14, atol=0)
    for end, mixtures in ((forward, (1e-4, 1e-6)), (reverse, (1 - 1e-4, 1 - 1e-6))):
        far, near = (divergences.js(log_p, log_q, js_mixture=s) - end for s in mixtures)
        # They approach in proportion to what is left of the other.
        torch.testing.assert_close(near / far, torch.full_like(far, 0.01), rtol=0.02, atol=0)
        assert (near / end).abs().max().item() < 2e-5
    single_p, single_q = log_p.float(), log_q.float()
    for s in (1e-6, 1e-4, 0.1, 0.5, 0.9, 1 - 1e-4, 1 - 1e-6):
        for divergence in (partial(divergences.js, js_mixture=s), partial(divergences.skew_kl, skew=s)):
            exact = divergence(single_p.double(), single_q.double())
            inexact = divergence(single_p, single_q).double()
            torch.testing.assert_close(inexact, exact, rtol=1e-5, atol=2e-6 * (1 - s))


@pytest.mark.parametrize("small", [1e-4, 1e-7])
def test_small_exponents_approach_the_limits_of_the_alpha_beta_family(small: float) -> None:
    log_p, log_q = policies()
    for at in (1.0, 0.5):
        for exponents in ((at, 0.0), (0.0, at)):
            alpha, beta = (exponent or small for exponent in exponents)
            near = divergences.alpha_beta(log_p, log_q, ab_alpha=alpha, ab_beta=beta)
            limit = formulas.alpha_beta(log_p.exp(), log_q.exp(), *exponents)[0]
            torch.testing.assert_close(near, limit, rtol=20 * small, atol=0.0)
