"""The moment gap, the ridge, and the critic that maximises the one under the other."""

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from amd_lightning.objectives.divergences import tv
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap, ridge_penalty

P, Q = (torch.tensor([row], dtype=torch.float64) for row in ([0.5, 0.5], [0.9, 0.1]))
F = torch.tensor([[1.0, -1.0]], dtype=torch.float64)

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 10**6)
alphas = st.floats(0.02, 0.98)
ridges = st.floats(0.1, 10.0)


def policies(seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a teacher and a student [4, 6]."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    log_p, log_q = logits.log_softmax(-1)
    return log_p, log_q


def noise(seed: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regularised(p: Tensor, q: Tensor, critic: Tensor, alpha: float, ridge: float) -> Tensor:
    """What a critic ascends, at each state [N]."""
    return moment_gap(p, q, critic) - ridge * ridge_penalty(p, q, critic, alpha)


# --- The moment gap ---


def test_values_by_hand() -> None:
    assert moment_gap(P, Q, F).item() == pytest.approx(-0.4 * 1 + 0.4 * -1)
    assert ridge_penalty(P, Q, 2 * F, alpha=0.5).item() == pytest.approx(0.5 * 4 * (0.7 + 0.3))
    assert ridge_penalty(P, Q, torch.tensor([[1.0, 0.0]]), alpha=1.0).item() == pytest.approx(0.5 * 0.5)
    assert ridge_penalty(P, Q, torch.tensor([[1.0, 0.0]]), alpha=0.0).item() == pytest.approx(0.5 * 0.9)
    critic = closed_form_critic(log_ratio(P.log(), Q.log()), alpha=0.5, ridge=2.0)
    torch.testing.assert_close(critic, torch.tensor([[-0.4 / 1.4, 0.4 / 0.6]], dtype=torch.float64))


@quick
@given(seed=seeds)
def test_the_gap_is_zero_at_equality_odd_and_linear_in_the_critic(seed: int) -> None:
    p, q = (z.exp() for z in policies(seed))
    f, g = noise(seed), noise(seed + 1)
    assert moment_gap(p, p, f).abs().max().item() == 0.0
    torch.testing.assert_close(moment_gap(q, p, f), -moment_gap(p, q, f))
    torch.testing.assert_close(
        moment_gap(p, q, 2 * f - g), 2 * moment_gap(p, q, f) - moment_gap(p, q, g), rtol=1e-10, atol=1e-12
    )


@quick
@given(seed=seeds)
def test_the_gap_of_a_bounded_critic_is_at_most_twice_the_total_variation(seed: int) -> None:
    log_p, log_q = policies(seed)
    p, q = log_p.exp(), log_q.exp()
    assert moment_gap(p, q, torch.tanh(noise(seed))).abs().le(2 * tv(log_p, log_q) + 1e-14).all()
    torch.testing.assert_close(moment_gap(p, q, (p - q).sign()), 2 * tv(log_p, log_q))


def test_gradients_agree_with_finite_differences() -> None:
    log_p, log_q = policies(0)
    critic = noise(0).requires_grad_()
    logits = log_q.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, f: moment_gap(log_p.exp(), z.softmax(-1), f), (logits, critic))
    assert torch.autograd.gradcheck(
        lambda z, f: ridge_penalty(log_p.exp(), z.softmax(-1), f, 0.3), (logits, critic)
    )
    assert torch.autograd.gradcheck(lambda r: closed_form_critic(r, 0.3, 2.0), (critic,))


# --- The ridge's role ---


@quick
@given(seed=seeds, alpha=alphas, shift=st.floats(-5, 5))
def test_the_ridge_settles_what_the_gap_leaves_open(seed: int, alpha: float, shift: float) -> None:
    """f + b(s) has the gap of f; among all b the penalty prefers the one with E_μ f = 0."""
    p, q = (z.exp() for z in policies(seed))
    critic = noise(seed)
    torch.testing.assert_close(moment_gap(p, q, critic + shift), moment_gap(p, q, critic), rtol=0, atol=1e-12)
    mean = ((alpha * p + (1 - alpha) * q) * critic).sum(-1, keepdim=True)
    centred = ridge_penalty(p, q, critic - mean, alpha)
    expected = centred + 0.5 * (shift + mean.squeeze(-1)).square()
    torch.testing.assert_close(ridge_penalty(p, q, critic + shift, alpha), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_with_a_ridge_the_critic_fades_as_the_student_arrives(alpha: float) -> None:
    log_p, far = policies(0)
    sizes = []
    for distance in (1e-2, 1e-3, 1e-4):
        log_q = (log_p + distance * (far - log_p)).log_softmax(-1)
        sizes.append(closed_form_critic(log_ratio(log_p, log_q), alpha, ridge=2.0).abs().max().item())
    assert sizes[0] / sizes[1] == pytest.approx(10, rel=0.3)
    assert sizes[1] / sizes[2] == pytest.approx(10, rel=0.03)


# --- The closed form ---


@quick
@given(seed=seeds, alpha=alphas, ridge=ridges)
def test_the_closed_form_is_stationary_and_nothing_is_better(seed: int, alpha: float, ridge: float) -> None:
    log_p, log_q = policies(seed)
    p, q = log_p.exp(), log_q.exp()
    best = closed_form_critic(log_ratio(log_p, log_q), alpha, ridge).requires_grad_()
    value = regularised(p, q, best, alpha, ridge)
    (slope,) = torch.autograd.grad(value.sum(), best)
    assert slope.abs().max().item() < 1e-13
    # The objective is a paraboloid: a step δ away costs exactly the penalty of δ.
    step = noise(seed)
    lost = value - regularised(p, q, best + step, alpha, ridge)
    torch.testing.assert_close(lost, ridge * ridge_penalty(p, q, step, alpha), rtol=1e-6, atol=1e-12)
    assert lost.gt(0).all()


@quick
@given(seed=seeds, alpha=alphas, ridge=ridges)
def test_at_the_optimum_half_the_gap_is_left(seed: int, alpha: float, ridge: float) -> None:
    """Max = ½ gap = ½ Σ (p − q)² / (ridge·μ)."""
    log_p, log_q = policies(seed)
    p, q = log_p.exp(), log_q.exp()
    best = closed_form_critic(log_ratio(log_p, log_q), alpha, ridge)
    torch.testing.assert_close(regularised(p, q, best, alpha, ridge), 0.5 * moment_gap(p, q, best))
    expected = ((p - q).square() / (ridge * (alpha * p + (1 - alpha) * q))).sum(-1)
    torch.testing.assert_close(moment_gap(p, q, best), expected)


@quick
@given(ratio=st.floats(-60, 60), alpha=alphas, ridge=ridges)
def test_the_closed_form_is_bounded_and_has_the_sign_of_the_log_ratio(
    ratio: float, alpha: float, ridge: float
) -> None:
    critic = closed_form_critic(torch.tensor(ratio, dtype=torch.float64), alpha, ridge).item()
    assert -1 / (ridge * (1 - alpha)) * (1 + 1e-12) <= critic <= 1 / (ridge * alpha) * (1 + 1e-12)
    assert critic * ratio >= 0.0


def test_the_default_is_tanh_of_half_the_log_ratio() -> None:
    ratio = torch.linspace(-50, 50, 401, dtype=torch.float64)
    torch.testing.assert_close(closed_form_critic(ratio, 0.5, 2.0), torch.tanh(ratio / 2), rtol=1e-14, atol=0)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.9])
def test_it_keeps_its_accuracy_in_float32_however_small_the_ratio(alpha: float) -> None:
    size = torch.logspace(-8, 2, 60)
    ratio = torch.cat([-size, size, torch.zeros(1)])
    exact = closed_form_critic(ratio.double(), alpha, 2.0)
    torch.testing.assert_close(closed_form_critic(ratio, alpha, 2.0).double(), exact, rtol=2e-6, atol=0)
    # The same from the quotient (p − q)/μ, divided by the larger of p and q and with expm1 for tiny ratios.
    fall = torch.exp(-ratio.double().abs())
    numerator = -torch.expm1(-ratio.double().abs()) * ratio.double().sign()
    up = ratio >= 0
    mixture = torch.where(up, alpha + (1 - alpha) * fall, alpha * fall + 1 - alpha)
    torch.testing.assert_close(exact, numerator / (2.0 * mixture), rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_impossible_actions_get_the_bounds_and_actions_impossible_for_both_nothing(alpha: float) -> None:
    log_p = torch.tensor([[0.0, 0.0, -inf, -inf]]).log_softmax(-1)
    log_q = torch.tensor([[0.0, -inf, 0.0, -inf]]).log_softmax(-1).requires_grad_()
    ratio = log_ratio(log_p, log_q)
    assert ratio.tolist() == [[0.0, inf, -inf, 0.0]]
    critic = closed_form_critic(ratio.detach(), alpha, ridge=2.0)
    torch.testing.assert_close(critic, torch.tensor([[0.0, 0.5 / alpha, -0.5 / (1 - alpha), 0.0]]))
    gap = moment_gap(log_p.exp(), log_q.exp(), critic)
    (gradient,) = torch.autograd.grad(gap.sum(), log_q)
    assert gap.isfinite().all()
    assert gradient.isfinite().all()


def test_the_ratio_survives_probabilities_that_underflow() -> None:
    log_p, log_q = torch.tensor([[0.0, -400.0]]), torch.tensor([[-400.0, 0.0]])
    assert log_ratio(log_p, log_q).tolist() == [[400.0, -400.0]]
    assert closed_form_critic(log_ratio(log_p, log_q), 0.5, 2.0).tolist() == [[1.0, -1.0]]
